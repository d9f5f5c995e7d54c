//! The roles that people log in as.
//!
//! The **owner** is what applications use. It owns its database and is no superuser: with its
//! password nobody reads the server's files or runs programs. The superuser `postgres` can log in only for an hour after an admin asked for it.

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use toygres_models::connection::SUPERUSER;
use toygres_models::{DatabaseName, Failure, FailureKind, InstanceSpec, RoleName};

use super::connection::Target;
use super::verifier::Verifier;
use super::{OwnSession, Session};
use crate::kill_point::kill_point;

/// Roles of PostgreSQL's own that the owner is a member of, where the version has them: they look at everything, and end,
/// maintain and check what isn't a superuser's. None of them reads or writes files, or runs programs
/// (<https://www.postgresql.org/docs/current/predefined-roles.html>).
const MEMBER_OF: [&str; 4] = ["pg_monitor", "pg_signal_backend", "pg_checkpoint", "pg_maintain"];
/// Before this version a role with `CREATEROLE` could make itself a member of any role, `pg_execute_server_program` too.
const CREATEROLE_IS_SAFE_FROM: i32 = 160_000;

/// Before this version everybody could make objects in the schema `public` of the database that superusers come to.
const PUBLIC_IS_CLOSED_FROM: i32 = 150_000;

/// Makes the owner and its database where there is no such role, with that password, which is asked for only then.
pub(crate) async fn make_owner(
    target: &Target,
    spec: &InstanceSpec,
    password: impl Future<Output = Result<SecretString, Failure>>,
) -> Result<(), Failure> {
    let session = Session::open(target).await?;
    if !session.has_role(spec.owner.as_str()).await? {
        let password = password.await?;
        session.make_owner(spec).await?;
        session.set_password(spec.owner.as_str(), &password, None).await?;
    }
    session.close().await;
    Ok(())
}

/// Sets the owner's password and lets it log in. The owner and its database are made where there is no such role.
pub(crate) async fn set_owner_password(target: &Target, spec: &InstanceSpec, password: &SecretString) -> Result<(), Failure> {
    let session = Session::open(target).await?;
    if !session.has_role(spec.owner.as_str()).await? {
        session.make_owner(spec).await?;
        kill_point("create-owner-made");
    }
    session.set_password(spec.owner.as_str(), password, None).await?;
    session.close().await;
    Ok(())
}

impl OwnSession {
    /// Whether a role logs in with that password, by what the server keeps of it: nobody logs in to find out.
    ///
    /// # Errors
    /// If the server doesn't answer.
    pub async fn has_password(self, role: &RoleName, password: &SecretString) -> Result<bool, Failure> {
        let verifier = "SELECT rolpassword FROM pg_catalog.pg_authid
                        WHERE rolname = $1 AND rolcanlogin AND coalesce(rolvaliduntil, 'infinity') > now()";
        let verifier: Option<Option<String>> = self.session.values(verifier, &[&role.as_str()]).await?.pop();
        self.close().await;
        let Some(verifier) = verifier.flatten().and_then(|verifier| Verifier::parse(&verifier)) else { return Ok(false) };
        let password = password.clone();
        let compared = tokio::task::spawn_blocking(move || verifier.may_be_of(&password)).await;
        compared
            .map_err(|error| Failure::transient(FailureKind::Internal, format!("the password could not be compared: {error}")))
    }
}

/// Lets the superuser log in with that password until then. An earlier password of it ends.
pub(crate) async fn open_superuser(target: &Target, password: &SecretString, valid_until: DateTime<Utc>) -> Result<(), Failure> {
    let session = Session::open(target).await?;
    let is_superuser = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = $1";
    match session.values(is_superuser, &[&SUPERUSER]).await?.pop() {
        Some(true) => {}
        None => session.make_superuser().await?,
        // Whoever took that from it has granted it to others, perhaps.
        Some(false) => {
            let message = format!(
                "the role {SUPERUSER} of this instance is no superuser any more: another superuser changed it; nothing was changed"
            );
            return Err(Failure::permanent(FailureKind::Conflict, message));
        }
    }
    session.set_password(SUPERUSER, password, Some(valid_until)).await?;
    // Over what the owner has set for its database: its own operators would come before PostgreSQL's.
    session.execute(&format!("ALTER ROLE {SUPERUSER} SET search_path = \"$user\", public")).await?;
    session.close().await;
    Ok(())
}

impl Session {
    async fn has_role(&self, role: &str) -> Result<bool, Failure> {
        self.value("SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)", &[&role]).await
    }

    /// Its name is taken before anybody else makes roles.
    async fn make_superuser(&self) -> Result<(), Failure> {
        if self.has_role(SUPERUSER).await? {
            return Ok(());
        }
        match self.execute(&format!("CREATE ROLE {SUPERUSER} SUPERUSER NOLOGIN")).await {
            // Another server made it at the same time.
            Err(_) if self.has_role(SUPERUSER).await? => Ok(()),
            ended => ended,
        }
    }

    /// Ends with the role: as long as it isn't there, something is missing.
    async fn make_owner(&self, spec: &InstanceSpec) -> Result<(), Failure> {
        self.make_superuser().await?;
        // Names of these types have nothing to quote; the quotes are for keywords.
        let (owner, database) = (spec.owner.as_str(), spec.database.as_str());
        if !self.has_database(database).await? {
            // On a slow disk it takes its time.
            self.execute("SET statement_timeout = '50s'").await?;
            // As long as there is no owner, a database of toygres's is the one that was made for it.
            let statement = match self.spare_database().await? {
                Some(spare) => format!("ALTER DATABASE \"{spare}\" RENAME TO \"{database}\""),
                None => format!("CREATE DATABASE \"{database}\""),
            };
            match self.execute(&statement).await {
                Err(_) if self.has_database(database).await? => {}
                ended => ended?,
            }
        }
        kill_point("create-database-made");
        let roles = "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname::text = ANY ($1) ORDER BY 1";
        let roles: Vec<String> = self.values(roles, &[&&MEMBER_OF[..]]).await?;
        let version: i32 = self.value("SELECT current_setting('server_version_num')::int", &[]).await?;
        if version < PUBLIC_IS_CLOSED_FROM {
            // What an owner puts there, a superuser would meet.
            self.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC").await?;
        }
        let create_role = if version >= CREATEROLE_IS_SAFE_FROM { "CREATEROLE" } else { "NOCREATEROLE" };
        // One transaction.
        let statements = format!(
            "CREATE ROLE \"{owner}\" NOSUPERUSER CREATEDB {create_role} NOREPLICATION NOBYPASSRLS NOLOGIN; \
             GRANT {} TO \"{owner}\" WITH ADMIN OPTION; \
             ALTER DATABASE \"{database}\" OWNER TO \"{owner}\"",
            roles.join(", ")
        );
        match self.execute(&statements).await {
            Err(_) if self.has_role(owner).await? => Ok(()),
            ended => ended,
        }
    }

    async fn has_database(&self, database: &str) -> Result<bool, Failure> {
        self.value("SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1)", &[&database]).await
    }

    /// A database of the default name that is toygres's still.
    async fn spare_database(&self) -> Result<Option<DatabaseName>, Failure> {
        let spare = DatabaseName::default();
        let is_ours = "SELECT EXISTS (SELECT FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles r ON r.oid = d.datdba
                                     WHERE d.datname = $1 AND r.rolname = current_user)";
        let is_ours: bool = self.value(is_ours, &[&spare.as_str()]).await?;
        Ok(is_ours.then_some(spare))
    }

    /// Only the password's SCRAM verifier leaves this process, and even that is logged nowhere.
    async fn set_password(&self, role: &str, password: &SecretString, valid_until: Option<DateTime<Utc>>) -> Result<(), Failure> {
        let verifier = postgres_protocol::password::scram_sha_256(password.expose_secret().as_bytes());
        let until = valid_until.map_or_else(|| "infinity".to_owned(), |until| until.to_rfc3339());
        // Nor seen by those who see all sessions.
        self.execute(
            "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic'; \
             SET track_activities = off; SET pg_stat_statements.track = 'none'",
        )
        .await?;
        // A verifier consists of base64 and `$:-`: nothing to quote.
        self.execute(&format!("ALTER ROLE \"{role}\" LOGIN PASSWORD '{verifier}' VALID UNTIL '{until}'")).await
    }
}

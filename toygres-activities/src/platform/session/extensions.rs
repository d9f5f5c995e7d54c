//! The extensions of an owner's database. Toygres makes them, since most need a superuser, and removes what it has made
//! and the spec no longer names. What the owner or an admin made stays.

use std::time::Duration;

use toygres_models::{Failure, FailureKind, InstanceSpec};

use super::Session;
use super::connection::{Error, Target};

/// How long the making of one may take.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Toygres's extensions that aren't wanted any more, and that no other one needs.
const SUPERFLUOUS: &str = "
    SELECT extname::text FROM pg_extension e JOIN pg_roles r ON r.oid = e.extowner
    WHERE r.rolname = current_user AND extname <> 'plpgsql' AND extname::text <> ALL ($1)
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
                      AND d.classid = 'pg_extension'::regclass)
    ORDER BY 1";

/// The foreign-data wrappers of an extension.
const WRAPPERS: &str = "
    SELECT quote_ident(fdwname) FROM pg_foreign_data_wrapper f
    JOIN pg_depend d ON d.classid = 'pg_foreign_data_wrapper'::regclass AND d.objid = f.oid AND d.deptype = 'e'
    JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
    WHERE e.extname = $1";

/// Makes the extensions that the spec names in its database, and removes those of toygres's that it doesn't name.
///
/// # Errors
/// Permanent where the server refuses one: this build doesn't have it, or something in the database needs it.
pub(crate) async fn set_extensions(target: &Target, spec: &InstanceSpec) -> Result<(), Failure> {
    let mut target = target.clone();
    target.config.dbname(spec.database.as_str());
    let session = Session::open(&target).await?;
    // The owner may have given its database settings of its own.
    session.execute("SET ROLE NONE; SET default_transaction_read_only = off; SET statement_timeout = '120s'").await?;
    let wanted: Vec<&str> = spec.extensions.iter().collect();
    for extension in &wanted {
        session.make_extension(extension, spec.owner.as_str()).await?;
    }
    loop {
        let superfluous: Vec<String> = session.values(SUPERFLUOUS, &[&wanted]).await?;
        if superfluous.is_empty() {
            break;
        }
        // What one of them needed comes in the next round.
        for extension in superfluous {
            session.change(&extension, "removed", &format!("DROP EXTENSION IF EXISTS {}", quoted(&extension))).await?;
        }
    }
    session.close().await;
    Ok(())
}

impl Session {
    async fn make_extension(&self, extension: &str, owner: &str) -> Result<(), Failure> {
        // Some say themselves where they belong.
        let own_schema = "SELECT v.schema IS NOT NULL FROM pg_available_extensions e
             JOIN pg_available_extension_versions v ON v.name = e.name AND v.version = e.default_version WHERE e.name = $1";
        let Some(own_schema) = self.values(own_schema, &[&extension]).await?.pop() else {
            let message = format!("the extension {extension} isn't in this build of PostgreSQL; nothing was changed");
            return Err(Failure::permanent(FailureKind::InvalidInput, message).with_field("extensions"));
        };
        let schema = if own_schema { "" } else { " SCHEMA public" };
        let name = quoted(extension);
        self.change(extension, "created", &format!("CREATE EXTENSION IF NOT EXISTS {name}{schema} CASCADE")).await?;
        for wrapper in self.values::<String>(WRAPPERS, &[&extension]).await? {
            let grant = format!("GRANT USAGE ON FOREIGN DATA WRAPPER {wrapper} TO {}", quoted(owner));
            self.change(extension, "created", &grant).await?;
        }
        Ok(())
    }

    async fn change(&self, extension: &str, participle: &str, statement: &str) -> Result<(), Failure> {
        let error = match tokio::time::timeout(TIME_LIMIT, self.connection.client.batch_execute(statement)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => Error::from(error),
            Err(_) => {
                let message = format!("the extension {extension} could not be {participle} within {} s", TIME_LIMIT.as_secs());
                return Err(Failure::transient(FailureKind::TimedOut, message));
            }
        };
        let told = |words: &str| format!("the extension {extension} could not be {participle}: {words}");
        Err(match error.refusal() {
            Some(refusal) => {
                let evidence = refusal.detail().unwrap_or_default().lines().map(str::to_owned).collect();
                Failure::permanent(FailureKind::InvalidInput, told(refusal.message()))
                    .with_field("extensions")
                    .with_evidence(evidence)
            }
            None => Failure::transient(FailureKind::ConnectionFailed, told(&error.to_string())),
        })
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

//! How toygres logs in to an instance, the same on every platform: over TLS, as the role `toygres`, by a client certificate
//! that a CA of its own signs. It needs no user's password. No user of the operating system can log in without credentials.
//!
//! `toygres` is the role that `initdb` makes, so nobody can drop it. [`owner`] makes the roles that people log in as.

pub(crate) mod activity;
pub(crate) mod connection;
pub(crate) mod extensions;
pub(crate) mod owner;
pub(crate) mod parameters;
mod verifier;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use connection::{Address, Connection, Target};
use native_tls::{Identity, TlsConnector};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres::types::{FromSql, ToSql};
use toygres_models::connection::MAINTENANCE_DATABASE;
use toygres_models::{Failure, FailureKind};

use super::certificates::CertificateAuthority;

/// The role as which toygres logs in to instances.
pub(crate) const TOYGRES: &str = "toygres";
/// How long connecting may take.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// How long a statement may take; the server ends most sooner.
const STATEMENT_LIMIT: Duration = Duration::from_secs(60);
/// A certificate is used for so long. It is valid for longer.
const USED_FOR: Duration = Duration::from_secs(12 * 60 * 60);

/// What it takes to log in to instances.
pub(crate) struct WayIn {
    /// What signs the servers' certificates, in PEM.
    servers_ca_pem: String,
    clients: CertificateAuthority,
    /// What shows toygres's certificate, and when that was made.
    tls: Mutex<Option<(SystemTime, TlsConnector)>>,
}

impl WayIn {
    pub(crate) fn new(servers: &CertificateAuthority, clients: CertificateAuthority) -> Self {
        Self { servers_ca_pem: servers.trusted_pem().to_owned(), clients, tls: Mutex::default() }
    }

    /// What signs the certificates that toygres shows.
    pub(crate) fn clients(&self) -> &CertificateAuthority {
        &self.clients
    }

    /// How to log in to the server at that address.
    pub(crate) fn target(&self, host: &str, port: u16) -> Result<Target, Failure> {
        let mut config = config();
        config.ssl_mode(SslMode::Require);
        Ok(Target { address: Address::Tcp { host: host.to_owned(), port }, config, tls: Some(self.tls()?) })
    }

    fn tls(&self) -> Result<TlsConnector, Failure> {
        let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        let is_young = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age < USED_FOR);
        if let Some((_, made)) = tls.as_ref().filter(|(at, _)| is_young(at)) {
            return Ok(made.clone());
        }
        let issued = self.clients.issue_client(TOYGRES)?;
        let made = || {
            let mut builder = connection::trusting(self.servers_ca_pem.as_bytes())?;
            // The CA signs for toygres's servers alone, and they are reached by many names.
            builder.danger_accept_invalid_hostnames(true);
            builder.identity(Identity::from_pkcs8(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes())?).build()
        };
        let made = made().map_err(|error: native_tls::Error| {
            Failure::permanent(FailureKind::Internal, format!("toygres's TLS for its log-ins can't be set up: {error}"))
        })?;
        *tls = Some((now, made.clone()));
        Ok(made)
    }
}

/// What every session of toygres's has: names are PostgreSQL's own, whatever somebody made, and nothing waits for long.
pub(crate) fn config() -> Config {
    let mut config = Config::new();
    config
        .user(TOYGRES)
        .dbname(MAINTENANCE_DATABASE)
        .application_name(TOYGRES)
        .options("-c search_path=pg_catalog -c statement_timeout=10s -c lock_timeout=5s");
    config
}

pub(crate) async fn log_in(target: &Target) -> Result<Connection, Failure> {
    let server = &target.address;
    let error = match tokio::time::timeout(TIME_LIMIT, target.connect()).await {
        Ok(Ok(connection)) => return Ok(connection),
        Ok(Err(error)) => error,
        Err(_) => return Err(log_in_failed(server, "no answer")),
    };
    Err(match error.refusal() {
        // Class 28: invalid authorization. Certificates are made anew, so it is the role.
        Some(refusal) if refusal.code().code().starts_with("28") => {
            let verb = if refusal.message().ends_with("does not exist") { "CREATE" } else { "ALTER" };
            let message = format!(
                "the server at {server} lets toygres in no more: {}. One of its superusers took that away, and can give it back: \
                 {verb} ROLE {TOYGRES} LOGIN SUPERUSER",
                refusal.message()
            );
            Failure::permanent(FailureKind::ConnectionFailed, message)
        }
        Some(refusal) if is_about_database(&error) => {
            let database = target.config.get_dbname().unwrap_or_default();
            let message =
                format!("toygres can't use the database {database} at {server}: {}; nothing was changed", refusal.message());
            Failure::permanent(FailureKind::InvalidInput, message)
        }
        _ => log_in_failed(server, &error.to_string()),
    })
}

/// Whether a log-in failed by the database alone: there is none of that name, it takes no connections, or its settings can't be
/// applied. No waiting mends that.
pub(crate) fn is_about_database(error: &connection::Error) -> bool {
    let code = error.refusal().map(|refusal| refusal.code().code());
    code.is_some_and(|code| ["3D", "55", "58P"].iter().any(|class| code.starts_with(class)))
}

fn log_in_failed(server: &Address, words: &str) -> Failure {
    Failure::transient(FailureKind::ConnectionFailed, format!("toygres could not log in to the server at {server}: {words}"))
}

/// Whether it answers SQL.
pub(crate) async fn answers(target: &Target) -> Result<(), Failure> {
    let session = Session::open(target).await?;
    session.execute("SELECT").await?;
    session.close().await;
    Ok(())
}

/// What has to be held while a connection is used: a forwarded port, say.
pub(crate) type Held = Box<dyn std::any::Any + Send + Sync>;

/// How to log in to a server, and what has to be held meanwhile.
pub(crate) type Way = (Target, Option<Held>);

/// A session of toygres's own in an instance, good for one question, by a log-in that no user of the instance has.
pub struct OwnSession {
    session: Session,
    _held: Option<Held>,
}

impl OwnSession {
    pub(crate) async fn open((target, held): Way) -> Result<Self, Failure> {
        Ok(Self { session: Session::open(&target).await?, _held: held })
    }

    /// Says goodbye, before what is held goes.
    async fn close(self) {
        self.session.close().await;
    }
}

/// A connection of toygres's own.
struct Session {
    server: Address,
    connection: Connection,
}

impl Session {
    async fn open(target: &Target) -> Result<Self, Failure> {
        Ok(Self { server: target.address.clone(), connection: log_in(target).await? })
    }

    /// One or several statements, without parameters.
    async fn execute(&self, statements: &str) -> Result<(), Failure> {
        self.in_time(self.connection.client.batch_execute(statements)).await
    }

    /// The first column of each row.
    async fn values<T>(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<T>, Failure>
    where
        T: for<'a> FromSql<'a>,
    {
        let rows = async {
            let rows = self.connection.client.query(query, parameters).await?;
            rows.iter().map(|row| row.try_get(0)).collect()
        };
        self.in_time(rows).await
    }

    /// The only value of a query that has one.
    async fn value<T>(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<T, Failure>
    where
        T: for<'a> FromSql<'a>,
    {
        self.in_time(async { self.connection.client.query_one(query, parameters).await?.try_get(0) }).await
    }

    /// The result of a statement, which is given up when it takes too long.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failure> {
        let refused = |words: &str| {
            let message = format!("a statement of toygres's failed at the server {}: {words}", self.server);
            Failure::transient(FailureKind::ConnectionFailed, message)
        };
        match tokio::time::timeout(STATEMENT_LIMIT, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(refused(&connection::Error::from(error).to_string())),
            Err(_) => Err(refused("no answer")),
        }
    }

    async fn close(self) {
        self.connection.close().await;
    }
}

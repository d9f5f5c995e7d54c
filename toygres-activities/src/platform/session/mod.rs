//! How toygres logs in to an instance, the same on every platform: over TLS, as the role `toygres`, by a client certificate
//! that a CA of its own signs. It needs no user's password. No user of the operating system can log in without credentials.
//!
//! `toygres` is the role that `initdb` makes, so nobody can drop it. [`owner`] makes the roles that people log in as.

pub(crate) mod extensions;
pub(crate) mod owner;
pub(crate) mod relay;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection, Executor};
use toygres_models::connection::MAINTENANCE_DATABASE;
use toygres_models::{Failure, FailureKind};

use super::certificates::{CertificateAuthority, Issued};

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
    certificate: Mutex<Option<(SystemTime, Arc<Issued>)>>,
}

impl WayIn {
    pub(crate) fn new(servers: &CertificateAuthority, clients: CertificateAuthority) -> Self {
        Self { servers_ca_pem: servers.trusted_pem().to_owned(), clients, certificate: Mutex::default() }
    }

    /// What signs the certificates that toygres shows.
    pub(crate) fn clients(&self) -> &CertificateAuthority {
        &self.clients
    }

    /// How to log in to the server at that address.
    pub(crate) fn options(&self, host: &str, port: u16) -> Result<PgConnectOptions, Failure> {
        let certificate = self.certificate()?;
        let options = PgConnectOptions::new_without_pgpass()
            .host(host)
            .port(port)
            .username(TOYGRES)
            .ssl_mode(PgSslMode::VerifyCa)
            .ssl_root_cert_from_pem(self.servers_ca_pem.clone().into_bytes())
            .ssl_client_cert_from_pem(&certificate.chain_pem)
            .ssl_client_key_from_pem(&certificate.key_pem);
        Ok(pinned(options))
    }

    fn certificate(&self) -> Result<Arc<Issued>, Failure> {
        let mut certificate = self.certificate.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        let is_young = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age < USED_FOR);
        if let Some((_, issued)) = certificate.as_ref().filter(|(at, _)| is_young(at)) {
            return Ok(issued.clone());
        }
        let issued = Arc::new(self.clients.issue_client(TOYGRES)?);
        *certificate = Some((now, issued.clone()));
        Ok(issued)
    }
}

/// With what every session of toygres's has: names are PostgreSQL's own, whatever somebody made, and nothing waits for long.
pub(crate) fn pinned(options: PgConnectOptions) -> PgConnectOptions {
    options
        .database(MAINTENANCE_DATABASE)
        .application_name(TOYGRES)
        .options([("search_path", "pg_catalog"), ("statement_timeout", "10s"), ("lock_timeout", "5s")])
        .disable_statement_logging()
}

async fn log_in(options: &PgConnectOptions) -> Result<PgConnection, Failure> {
    let server = server_of(options);
    match tokio::time::timeout(TIME_LIMIT, relay::connect(options)).await {
        Ok(Ok(connection)) => Ok(connection),
        // Class 28: invalid authorization. Certificates are made anew, so it is the role.
        Ok(Err(sqlx::Error::Database(error))) if error.code().is_some_and(|code| code.starts_with("28")) => {
            let verb = if error.message().ends_with("does not exist") { "CREATE" } else { "ALTER" };
            let message = format!(
                "the server at {server} lets toygres in no more: {}. One of its superusers took that away, and can give it back: \
                 {verb} ROLE {TOYGRES} LOGIN SUPERUSER",
                error.message()
            );
            Err(Failure::permanent(FailureKind::ConnectionFailed, message))
        }
        Ok(Err(error)) if is_about_database(&error) => {
            let database = options.get_database().unwrap_or_default();
            let words = error.as_database_error().map(|error| error.message()).unwrap_or_default();
            let message = format!("toygres can't use the database {database} at {server}: {words}; nothing was changed");
            Err(Failure::permanent(FailureKind::InvalidInput, message))
        }
        Ok(Err(error)) => Err(log_in_failed(&server, &error.to_string())),
        Err(_) => Err(log_in_failed(&server, "no answer")),
    }
}

/// Whether a log-in failed by the database alone: there is none of that name, it takes no connections, or its settings can't be
/// applied. No waiting mends that.
pub(crate) fn is_about_database(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| ["3D", "55", "58P"].iter().any(|class| code.starts_with(class)))
}

fn log_in_failed(server: &str, words: &str) -> Failure {
    Failure::transient(FailureKind::ConnectionFailed, format!("toygres could not log in to the server at {server}: {words}"))
}

/// The result of a statement, which is given up when it takes too long.
async fn in_time<T>(server: &str, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Failure> {
    let refused = |words: &str| {
        Failure::transient(
            FailureKind::ConnectionFailed,
            format!("a statement of toygres's failed at the server {server}: {words}"),
        )
    };
    match tokio::time::timeout(STATEMENT_LIMIT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(refused(&error.to_string())),
        Err(_) => Err(refused("no answer")),
    }
}

/// Whether it answers SQL.
pub(crate) async fn answers(options: &PgConnectOptions) -> Result<(), Failure> {
    has_room(options).await.map(drop)
}

/// Whether it answers SQL, and others can log in: `false` if all connections are taken but those that PostgreSQL keeps for
/// superusers and members of `pg_use_reserved_connections`.
pub(crate) async fn has_room(options: &PgConnectOptions) -> Result<bool, Failure> {
    let mut connection = log_in(options).await?;
    // The setting of 16 on is missing in older ones.
    let others = sqlx::query_scalar(
        "SELECT count(*) < current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
             - coalesce(current_setting('reserved_connections', true)::int, 0)
         FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    );
    let has_room = in_time(&server_of(options), others.persistent(false).fetch_one(&mut connection)).await?;
    let _ = connection.close().await;
    Ok(has_room)
}

/// A connection of toygres's own.
struct Session {
    server: String,
    connection: PgConnection,
}

impl Session {
    async fn open(options: &PgConnectOptions) -> Result<Self, Failure> {
        Ok(Self { server: server_of(options), connection: log_in(options).await? })
    }

    async fn execute(&mut self, statement: &str) -> Result<(), Failure> {
        in_time(&self.server, self.connection.execute(statement)).await.map(drop)
    }

    async fn close(self) {
        let _ = self.connection.close().await;
    }
}

fn server_of(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => format!("{}/.s.PGSQL.{}", socket.display(), options.get_port()),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

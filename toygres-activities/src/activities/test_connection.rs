//! Test a PostgreSQL connection.

use std::borrow::Cow;
use std::time::Duration;

use duroxide::ActivityContext;
use native_tls::TlsConnector;
use percent_encoding::percent_decode_str;
use secrecy::ExposeSecret;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslMode};
use toygres_models::connection::{CHANNEL_BINDING, MAINTENANCE_DATABASE};
use toygres_models::{Failure, FailureKind, Invalid, PostgresVersion};
use url::{Host, Url};

use crate::context::{Context, run_while_valid};
use crate::platform::session::connection::{Address, Error, Target, trusting};
use crate::platform::session::is_about_database;
use crate::platforms::Place;
use crate::secrets;
use crate::types::{TestConnectionInput, TestConnectionOutput};

/// Connecting, logging in and answering, together.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// PostgreSQL's own has about a hundred characters.
const MAX_VERSION_LENGTH: usize = 300;

/// See [`TEST_CONNECTION`](crate::names::activities::TEST_CONNECTION).
pub async fn test_connection_activity(
    context: Context,
    ctx: ActivityContext,
    input: TestConnectionInput,
) -> Result<TestConnectionOutput, Failure> {
    let operation = context.operation_context(&ctx).await?;
    let version = run_while_valid(operation.as_ref(), async {
        let place = context.place(operation.as_ref()).await?;
        // What the owner of an instance does with its database is no failure of an operation.
        log_in(&place, &input.connection_string, operation.is_some()).await
    });
    let version = version.await?;
    if let (Some(operation), Some((store, _)), Some(full)) = (&operation, context.operation(&ctx), full_version(&version)) {
        store.record_version(operation.instance().id, full).await?;
    }
    Ok(TestConnectionOutput { version, connected: true })
}

/// The version that the answer to `SELECT version()` names: `PostgreSQL 17.4 (Debian …) on …`.
fn full_version(answer: &str) -> Option<PostgresVersion> {
    answer.split_whitespace().nth(1)?.parse().ok()
}

/// Logs in by a URI whose password may be a reference; what `version()` says. If the database is gone or closed and
/// `takes_any_database`, the log-in counts all the same.
///
/// # Errors
/// [`FailureKind::ConnectionFailed`], permanent where the log-in itself is refused.
pub async fn log_in(place: &Place, connection_string: &str, takes_any_database: bool) -> Result<String, Failure> {
    let Parsed { host, port, mut target } = parse(place, connection_string).await?;
    let server = target.address.to_string();
    // Held until the answer is there.
    let way = place.platform.reach(&host, port).await?;
    if let Some(way) = &way {
        target.address = Address::Tcp { host: way.host.clone(), port: way.port };
    }
    let asked = async {
        match query_version(&target).await {
            // The role and its password were taken before the database was looked for.
            Err(error) if takes_any_database && is_about_database(&error) => {
                target.config.dbname(MAINTENANCE_DATABASE);
                query_version(&target).await
            }
            asked => asked,
        }
    };
    let version = tokio::time::timeout(TIME_LIMIT, asked).await.map_err(|_| {
        Failure::transient(FailureKind::ConnectionFailed, format!("{server} did not answer within {} s", TIME_LIMIT.as_secs()))
    })?;
    version.map_err(|error| refused(&server, &error))
}

struct Parsed {
    host: String,
    port: u16,
    target: Target,
}

/// As libpq understands it, of whose parameters those are known that toygres writes.
async fn parse(place: &Place, connection_string: &str) -> Result<Parsed, Failure> {
    // The parser's error isn't passed on: it may repeat the password.
    let malformed = |words: &str| Failure::from(Invalid::new("connection_string", words));
    let no_uri = || malformed("is not a postgresql://user@host:port/database URI");
    let url = Url::parse(connection_string).map_err(|_| no_uri())?;
    if !matches!(url.scheme(), "postgres" | "postgresql") || url.username().is_empty() {
        return Err(no_uri());
    }
    let decoded = |text: &'_ str| percent_decode_str(text).decode_utf8().map(Cow::into_owned).map_err(|_| no_uri());
    let host = match url.host().ok_or_else(no_uri)? {
        Host::Domain(name) => decoded(name)?,
        Host::Ipv4(ip) => ip.to_string(),
        Host::Ipv6(ip) => ip.to_string(),
    };
    let port = url.port().unwrap_or(5432);
    let mut config = Config::new();
    config.user(decoded(url.username())?);
    if let Some(database) = url.path().strip_prefix('/').filter(|database| !database.is_empty()) {
        config.dbname(decoded(database)?);
    }
    let mut tls_mode = Cow::from("prefer");
    let mut ca_pem = None;
    for (name, value) in url.query_pairs() {
        match (&*name, &*value) {
            ("sslmode", _) => tls_mode = value,
            ("sslrootcert", path) => {
                let read = tokio::fs::read(path).await;
                ca_pem = Some(read.map_err(|error| malformed(&format!("names the file {path}, which can't be read: {error}")))?);
            }
            (CHANNEL_BINDING, "require") => _ = config.channel_binding(ChannelBinding::Require),
            _ => return Err(malformed(&format!("has the parameter {name}={value}, which toygres doesn't know"))),
        }
    }
    let tls = match &*tls_mode {
        "disable" => None,
        mode => {
            let (ssl_mode, verifies_ca, verifies_host) = match mode {
                "prefer" => (SslMode::Prefer, false, false),
                "require" => (SslMode::Require, ca_pem.is_some(), false),
                "verify-ca" => (SslMode::Require, true, false),
                "verify-full" => (SslMode::Require, true, true),
                _ => return Err(malformed(&format!("has sslmode={mode}, which toygres doesn't know"))),
            };
            config.ssl_mode(ssl_mode);
            Some(tls_connector(ca_pem.as_deref(), verifies_ca, verifies_host).map_err(|error| {
                malformed(&format!("has no certificate of a CA in its sslrootcert, or none that TLS takes: {error}"))
            })?)
        }
    };
    if let Some(password) = url.password() {
        let password = decoded(password)?;
        match password.starts_with("secret://") {
            true => config.password(secrets::resolve(&*place.secrets, password.parse()?).await?.expose_secret()),
            false => config.password(password),
        };
    }
    Ok(Parsed { target: Target { address: Address::Tcp { host: host.clone(), port }, config, tls }, host, port })
}

fn tls_connector(ca_pem: Option<&[u8]>, verifies_ca: bool, verifies_host: bool) -> Result<TlsConnector, native_tls::Error> {
    let mut tls = match ca_pem {
        Some(pem) => trusting(pem)?,
        None => TlsConnector::builder(),
    };
    if !verifies_ca {
        // They would be read from the system's files, and not looked at.
        tls.disable_built_in_roots(true);
    }
    tls.danger_accept_invalid_certs(!verifies_ca).danger_accept_invalid_hostnames(!verifies_host).build()
}

async fn query_version(target: &Target) -> Result<String, Error> {
    let connection = target.connect().await?;
    let row = connection.client.query_one("SELECT pg_catalog.version()", &[]).await?;
    let version: &str = row.try_get(0)?;
    connection.close().await;
    // A superuser can have put another function in its place.
    Ok(version.chars().take(MAX_VERSION_LENGTH).collect())
}

fn refused(server: &str, error: &Error) -> Failure {
    let message = format!("{server} could not be used: {error}");
    // Class 28: invalid authorization, which no waiting mends. 57P03: starting up or shutting down.
    // A certificate that doesn't fit may be on its way: a load balancer's address comes late.
    let wrong_login = error.refusal().is_some_and(|refusal| refusal.code().code().starts_with("28"));
    if wrong_login {
        Failure::permanent(FailureKind::ConnectionFailed, message)
    } else {
        Failure::transient(FailureKind::ConnectionFailed, message)
    }
}

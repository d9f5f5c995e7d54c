//! Test a PostgreSQL connection.

use std::str::FromStr;
use std::time::Duration;

use duroxide::ActivityContext;
use percent_encoding::percent_decode_str;
use secrecy::ExposeSecret;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use toygres_models::connection::{CHANNEL_BINDING, MAINTENANCE_DATABASE};
use toygres_models::{Failure, FailureKind, Invalid, PostgresVersion};
use url::Url;

use crate::context::{Context, run_while_valid};
use crate::platform::session::{is_about_database, relay};
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
    let mut options = connect_options(place, connection_string).await?;
    let server = format!("{}:{}", options.get_host(), options.get_port());
    // Held until the answer is there.
    let way = place.platform.reach(options.get_host(), options.get_port()).await?;
    if let Some(way) = &way {
        options = options.host(&way.host).port(way.port);
    }
    let asked = async {
        match query_version(options.clone()).await {
            // The role and its password were taken before the database was looked for.
            Err(error) if takes_any_database && is_about_database(&error) => {
                query_version(options.database(MAINTENANCE_DATABASE)).await
            }
            asked => asked,
        }
    };
    let version = tokio::time::timeout(TIME_LIMIT, asked).await.map_err(|_| {
        Failure::transient(FailureKind::ConnectionFailed, format!("{server} did not answer within {} s", TIME_LIMIT.as_secs()))
    })?;
    version.map_err(|error| refused(&server, &error))
}

async fn connect_options(place: &Place, connection_string: &str) -> Result<PgConnectOptions, Failure> {
    // Neither parser's error is passed on: it may repeat the password.
    let malformed = || Failure::from(Invalid::new("connection_string", "is not a postgresql://user@host:port/database URI"));
    let url = Url::parse(connection_string).map_err(|_| malformed())?;
    // libpq's; this driver has no channel binding, and warns of what it doesn't know.
    let known: Vec<_> = url.query_pairs().into_owned().filter(|(name, _)| name != CHANNEL_BINDING).collect();
    let mut plain = url.clone();
    plain.query_pairs_mut().clear().extend_pairs(known);
    let options = PgConnectOptions::from_str(plain.as_str()).map_err(|_| malformed())?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(malformed());
    }
    let Some(password) = url.password().and_then(|password| percent_decode_str(password).decode_utf8().ok()) else {
        return Ok(options);
    };
    let password = match password.starts_with("secret://") {
        true => secrets::resolve(&*place.secrets, password.parse()?).await?.expose_secret().to_owned(),
        false => password.into_owned(),
    };
    Ok(options.password(&password))
}

async fn query_version(options: PgConnectOptions) -> Result<String, sqlx::Error> {
    let mut connection = relay::connect(&options.disable_statement_logging()).await?;
    let (version,): (String,) = sqlx::query_as("SELECT pg_catalog.version()").fetch_one(&mut connection).await?;
    connection.close().await?;
    // A superuser can have put another function in its place.
    Ok(version.chars().take(MAX_VERSION_LENGTH).collect())
}

fn refused(server: &str, error: &sqlx::Error) -> Failure {
    let message = format!("{server} could not be used: {error}");
    // Class 28: invalid authorization, which no waiting mends. 57P03: starting up or shutting down.
    // A certificate that doesn't fit may be on its way: a load balancer's address comes late.
    let wrong_login = error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code.starts_with("28"));
    if wrong_login {
        Failure::permanent(FailureKind::ConnectionFailed, message)
    } else {
        Failure::transient(FailureKind::ConnectionFailed, message)
    }
}

//! What toygres says to a server itself: over its socket, as `postgres`, with no password.

use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{Connection, Executor};
use toygres_models::connection::{DATABASE, USER};
use toygres_models::{Failure, FailureKind};

const TIMEOUT: Duration = Duration::from_secs(10);

async fn connect(socket_dir: &Path, port: u16) -> Result<PgConnection, Failure> {
    let options = PgConnectOptions::new_without_pgpass()
        .socket(socket_dir)
        .port(port)
        .username(USER)
        .database(DATABASE)
        .ssl_mode(PgSslMode::Disable)
        .application_name("toygres");
    match tokio::time::timeout(TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(refused(socket_dir, port, &error.to_string())),
        Err(_) => Err(refused(socket_dir, port, "no answer")),
    }
}

fn refused(socket_dir: &Path, port: u16, words: &str) -> Failure {
    Failure::transient(
        FailureKind::ConnectionFailed,
        format!("the server doesn't answer on its socket {}/.s.PGSQL.{port}: {words}", socket_dir.display()),
    )
}

async fn run(connection: &mut PgConnection, statement: &str, socket_dir: &Path, port: u16) -> Result<(), Failure> {
    match tokio::time::timeout(TIMEOUT, connection.execute(statement)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(refused(socket_dir, port, &error.to_string())),
        Err(_) => Err(refused(socket_dir, port, "no answer")),
    }
}

/// Whether it answers SQL.
pub(in crate::platform::local) async fn answers(socket_dir: &Path, port: u16) -> Result<(), Failure> {
    let mut connection = connect(socket_dir, port).await?;
    run(&mut connection, "SELECT 1", socket_dir, port).await?;
    let _ = connection.close().await;
    Ok(())
}

/// Sets the superuser's password. Only its SCRAM verifier leaves this process, and even that isn't
/// logged.
pub(in crate::platform::local) async fn set_password(
    socket_dir: &Path,
    port: u16,
    password: &SecretString,
) -> Result<(), Failure> {
    let verifier = postgres_protocol::password::scram_sha_256(password.expose_secret().as_bytes());
    let mut connection = connect(socket_dir, port).await?;
    let quiet = "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic'";
    run(&mut connection, quiet, socket_dir, port).await?;
    // A verifier consists of base64 and `$:-`: nothing to quote.
    run(&mut connection, &format!("ALTER ROLE {USER} PASSWORD '{verifier}'"), socket_dir, port).await?;
    let _ = connection.close().await;
    Ok(())
}

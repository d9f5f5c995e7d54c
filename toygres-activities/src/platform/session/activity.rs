//! What clients do in an instance at this moment, and an end to it.

use toygres_models::{ClientSession, Failure, FailureKind, SessionEnd};

use super::connection::Target;
use super::{Session, TOYGRES};

/// Sessions that are told of: those with the oldest transactions.
const MOST: usize = 200;
const STATEMENT_CHARACTERS: usize = 1000;

const SESSIONS: &str = "
    SELECT coalesce(json_agg(s), '[]')::text FROM (
        SELECT pid, usename AS role, datname AS database, coalesce(application_name, '') AS application_name,
            coalesce(host(client_addr), '') AS client_address, state,
            CASE WHEN state = 'active' THEN wait_event_type || ':' || wait_event END AS wait_event,
            extract(epoch FROM clock_timestamp() - xact_start) AS transaction_seconds,
            extract(epoch FROM clock_timestamp() - query_start) AS statement_seconds,
            CASE WHEN wait_event_type = 'Lock' THEN pg_blocking_pids(pid) ELSE '{}' END AS blocked_by,
            left(query, 1000) AS statement
        FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename IS DISTINCT FROM $1
        ORDER BY xact_start NULLS LAST, query_start LIMIT 200) s";

pub(crate) async fn sessions(target: &Target) -> Result<Vec<ClientSession>, Failure> {
    let session = Session::open(target).await?;
    let answer: String = session.value(SESSIONS, &[&TOYGRES]).await?;
    session.close().await;
    // Whoever is superuser in it can have it answer anything.
    let mut sessions: Vec<ClientSession> = serde_json::from_str(&answer).map_err(|error| {
        let message = format!("the server answers the question for its sessions with something else: {error}");
        Failure::transient(FailureKind::ConnectionFailed, message)
    })?;
    sessions.truncate(MOST);
    for session in &mut sessions {
        session.blocked_by.truncate(MOST);
        session.statement = session.statement.take().map(|text| text.chars().take(STATEMENT_CHARACTERS).collect());
    }
    Ok(sessions)
}

/// `false` if no client has such a session.
pub(crate) async fn end_session(target: &Target, pid: i32, end: SessionEnd) -> Result<bool, Failure> {
    let function = match end {
        SessionEnd::Cancel => "pg_cancel_backend",
        SessionEnd::Terminate => "pg_terminate_backend",
    };
    let statement = format!(
        "SELECT {function}(pid) FROM pg_stat_activity
         WHERE pid = $1 AND backend_type = 'client backend' AND usename IS DISTINCT FROM $2"
    );
    let session = Session::open(target).await?;
    let ended: Option<bool> = session.values(&statement, &[&pid, &TOYGRES]).await?.pop();
    session.close().await;
    Ok(ended.unwrap_or(false))
}

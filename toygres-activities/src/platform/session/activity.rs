//! What clients do in an instance at this moment, and an end to it.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use toygres_models::text::one_line;
use toygres_models::{ClientSession, Failure, FailureKind, SessionEnd};

use super::{OwnSession, TOYGRES};

/// The sessions that are told of: those with the oldest transactions.
const MOST: usize = 200;
const STATEMENT_CHARACTERS: usize = 1000;
const NAME_CHARACTERS: usize = 63;
/// Processes that one is said to wait for.
const MOST_BLOCKERS: usize = 5;
/// How long a session that is to end is waited for, in milliseconds.
const END_LIMIT: i64 = 5_000;

/// Texts are in hexadecimal digits: they have the encodings of the databases that they come from.
const SESSIONS: &str = "
    SELECT coalesce(json_agg(s), '[]')::text FROM (
        SELECT a.pid, a.backend_start AS started_at, coalesce(r.rolsuper, false) AS is_superuser,
            encode(namesend(a.usename), 'hex') AS role, encode(namesend(a.datname), 'hex') AS database,
            encode(textsend(a.application_name), 'hex') AS application_name, host(a.client_addr) AS client_address, a.state,
            CASE WHEN a.state = 'active' THEN a.wait_event_type || ':' || a.wait_event END AS wait_event,
            extract(epoch FROM clock_timestamp() - a.xact_start) AS transaction_seconds,
            extract(epoch FROM clock_timestamp() - a.query_start) AS statement_seconds,
            CASE WHEN a.wait_event_type = 'Lock' THEN pg_blocking_pids(a.pid) ELSE '{}' END AS blocked_by,
            encode(substring(textsend(a.query) FROM 1 FOR 4000), 'hex') AS statement
        FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid
        WHERE a.backend_type = 'client backend' AND a.usename IS DISTINCT FROM $1
        ORDER BY a.xact_start NULLS LAST, a.query_start LIMIT 200) s";

#[derive(Deserialize)]
struct Row {
    pid: i32,
    started_at: DateTime<Utc>,
    is_superuser: bool,
    role: Option<String>,
    database: Option<String>,
    application_name: Option<String>,
    client_address: Option<String>,
    state: Option<String>,
    wait_event: Option<String>,
    transaction_seconds: Option<f64>,
    statement_seconds: Option<f64>,
    blocked_by: Vec<i32>,
    statement: Option<String>,
}

impl From<Row> for ClientSession {
    fn from(mut row: Row) -> Self {
        let name = |text: Option<String>| text.map(|text| one_line(&decoded(&text), NAME_CHARACTERS));
        let word = |text: Option<String>| text.map(|text| one_line(&text, NAME_CHARACTERS));
        row.blocked_by.truncate(MOST_BLOCKERS);
        Self {
            pid: row.pid,
            started_at: row.started_at,
            is_superuser: row.is_superuser,
            role: name(row.role),
            database: name(row.database),
            application_name: name(row.application_name).unwrap_or_default(),
            client_address: word(row.client_address).unwrap_or_default(),
            state: word(row.state),
            wait_event: word(row.wait_event),
            transaction_seconds: row.transaction_seconds,
            statement_seconds: row.statement_seconds,
            blocked_by: row.blocked_by,
            statement: row.statement.map(|text| decoded(&text).chars().take(STATEMENT_CHARACTERS).collect()),
        }
    }
}

/// A text of which the bytes are given. What isn't UTF-8 shows as such.
fn decoded(hex: &str) -> String {
    let byte = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let bytes: Vec<u8> = hex.as_bytes().chunks(2).map_while(byte).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl OwnSession {
    /// The sessions of clients, at most 200, those with the oldest transactions first, with what they do.
    ///
    /// # Errors
    /// If the server doesn't answer, or answers something else.
    pub async fn client_sessions(self) -> Result<Vec<ClientSession>, Failure> {
        let answer: String = self.session.value(SESSIONS, &[&TOYGRES]).await?;
        self.close().await;
        // Whoever is superuser in it can have it answer anything.
        let rows: Vec<Row> = serde_json::from_str(&answer).map_err(|error| {
            let message = format!("the server answers the question for its sessions with something else: {error}");
            Failure::transient(FailureKind::ConnectionFailed, message)
        })?;
        Ok(rows.into_iter().take(MOST).map(ClientSession::from).collect())
    }

    /// Ends a client's statement, or its session. `false` if that session isn't there any more, or runs no statement.
    ///
    /// # Errors
    /// If the server doesn't answer.
    pub async fn end(self, client: &ClientSession, end: SessionEnd) -> Result<bool, Failure> {
        let (function, condition) = match end {
            SessionEnd::Cancel => ("pg_cancel_backend(pid)".to_owned(), "state <> 'idle'"),
            SessionEnd::Terminate => (format!("pg_terminate_backend(pid, {END_LIMIT})"), "true"),
        };
        let statement = format!(
            "SELECT {function} FROM pg_stat_activity
             WHERE pid = $1 AND backend_start = $2::text::timestamptz AND usename IS DISTINCT FROM $3 AND {condition}"
        );
        let started_at = client.started_at.to_rfc3339();
        let ended: Option<bool> = self.session.values(&statement, &[&client.pid, &started_at, &TOYGRES]).await?.pop();
        self.close().await;
        Ok(ended.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_encodings_and_long_answers_are_no_harm() {
        assert_eq!(decoded("53454c454354"), "SELECT");
        assert_eq!(decoded("e920"), "\u{fffd} ");
        assert_eq!(decoded("5"), "\u{5}");
        assert_eq!(decoded("zz"), "");
        let row = serde_json::json!({
            "pid": 1, "started_at": "2026-11-30T08:00:00.123456+00:00", "is_superuser": false, "role": "61".repeat(500),
            "state": "x".repeat(500), "blocked_by": vec![1; 500], "statement": "61".repeat(5000) });
        let session = ClientSession::from(serde_json::from_value::<Row>(row).unwrap());
        assert_eq!(session.role.unwrap().chars().count(), NAME_CHARACTERS + 1);
        assert_eq!(session.state.unwrap().chars().count(), NAME_CHARACTERS + 1);
        assert_eq!((session.blocked_by.len(), session.statement.unwrap().len()), (MOST_BLOCKERS, STATEMENT_CHARACTERS));
    }
}

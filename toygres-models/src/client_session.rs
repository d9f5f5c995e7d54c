//! What somebody does in an instance at this moment.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A client's session in an instance, as `pg_stat_activity` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClientSession {
    /// The process.
    pub pid: i32,
    /// When the session began; with the process, that is the session.
    pub started_at: DateTime<Utc>,
    /// Whether its role is a superuser: only admins end its sessions.
    pub is_superuser: bool,
    /// The role that logged in.
    pub role: Option<String>,
    /// The database.
    pub database: Option<String>,
    /// What the client calls itself.
    pub application_name: String,
    /// Where it comes from.
    pub client_address: String,
    /// `active`, `idle`, `idle in transaction` …
    pub state: Option<String>,
    /// What it waits for, as `Lock:transactionid`; none while it works, or is idle.
    pub wait_event: Option<String>,
    /// How long its transaction has been open.
    pub transaction_seconds: Option<f64>,
    /// How long its statement has run; of one that is idle, how long ago the last one began.
    pub statement_seconds: Option<f64>,
    /// The processes whose locks it waits for.
    pub blocked_by: Vec<i32>,
    /// The start of its statement, or of the last one; only editors see it.
    pub statement: Option<String>,
}

/// How a session is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// Its statement is cancelled; it goes on.
    Cancel,
    /// It is cut off.
    Terminate,
}

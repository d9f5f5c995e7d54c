//! What a probe asks of a server, and what the server answers.
//!
//! The server's superuser can have it answer anything: what doesn't fit is an error, and whatever is a list or a text has a limit.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Characters that are kept of a name.
const NAME_CHARACTERS: usize = 63;
/// The longest answer, in bytes: that of a server with fifty databases and as many slots has some 30,000.
const ANSWER_LENGTH: usize = 256 * 1024;
/// Elements that are kept of a list.
const LIST_LENGTH: usize = 50;

/// The statement for a server of that version, such as 170004.
pub(crate) fn statement(version_number: i32) -> String {
    let wal_source = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END";
    // Parted in two views in 17.
    let checkpoints = if version_number >= 170_000 {
        "SELECT json_build_object('timed', num_timed, 'requested', num_requested, 'write_milliseconds', write_time,
            'sync_milliseconds', sync_time, 'buffers_written', buffers_written, 'buffers_clean', buffers_clean,
            'maxwritten_clean', maxwritten_clean, 'buffers_alloc', buffers_alloc) FROM pg_stat_checkpointer, pg_stat_bgwriter"
    } else {
        "SELECT json_build_object('timed', checkpoints_timed, 'requested', checkpoints_req, 'write_milliseconds',
            checkpoint_write_time, 'sync_milliseconds', checkpoint_sync_time, 'buffers_written', buffers_checkpoint,
            'buffers_clean', buffers_clean, 'maxwritten_clean', maxwritten_clean, 'buffers_alloc', buffers_alloc)
         FROM pg_stat_bgwriter"
    };
    include_str!("statement.sql").replace("{wal_source}", wal_source).replace("{checkpoints}", checkpoints)
}

/// The same of what takes longer.
pub(crate) fn slow_statement(version_number: i32) -> String {
    let collations = if version_number >= 150_000 {
        "SELECT json_agg(datname) FROM (
            SELECT datname FROM pg_database
            WHERE datallowconn AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)
            ORDER BY 1 LIMIT 50) n"
    } else {
        // Before 15 a database doesn't know its collation's version.
        "SELECT NULL::json"
    };
    include_str!("slow_statement.sql").replace("{collations}", collations)
}

/// What a server said of itself. Counters are PostgreSQL's own, since its statistics were last reset.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Sample {
    /// Its full version, with the build's own words.
    #[serde(deserialize_with = "name")]
    pub server_version: String,
    /// Whether it recovers, or is a standby.
    pub in_recovery: bool,
    /// When it started, in seconds since 1970.
    pub started_at: f64,
    /// Whether transactions are read-only unless they say otherwise.
    pub read_only: bool,
    /// The databases and roles for which that is so.
    #[serde(default, deserialize_with = "names")]
    pub read_only_databases: Vec<String>,
    /// How many connections it takes.
    pub max_connections: i64,
    /// How many of them are kept for superusers and such.
    pub reserved_connections: i64,
    /// Its clients' sessions.
    pub activity: Activity,
    /// How long the oldest prepared transaction has been there.
    pub prepared_transaction_seconds: f64,
    /// Transactions since the oldest row that isn't frozen.
    pub transaction_age: i64,
    /// Its databases.
    #[serde(default, deserialize_with = "list")]
    pub databases: Vec<Database>,
    /// Its replication slots.
    #[serde(default, deserialize_with = "list")]
    pub slots: Vec<Slot>,
    /// Who streams its WAL.
    #[serde(default, deserialize_with = "list")]
    pub standbys: Vec<Standby>,
    /// Its setting `archive_mode`.
    #[serde(deserialize_with = "name")]
    pub archive_mode: String,
    /// Its archiver.
    pub archiver: Archiver,
    /// The WAL that it wrote.
    pub wal: Wal,
    /// Its checkpoints and background writes.
    pub checkpoints: Checkpoints,
    /// A chosen dozen of its settings.
    #[serde(deserialize_with = "map")]
    pub settings: BTreeMap<String, f64>,
    /// What the pod's own probe wrote about its volume.
    #[serde(default)]
    pub volume: Option<String>,
    /// What takes longer, as it was last found out.
    #[serde(skip)]
    pub slow: Slow,
}

/// What takes longer to find out, and is asked for every half minute.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Slow {
    /// Settings that take a restart which they didn't get.
    #[serde(default, deserialize_with = "names")]
    pub restart_pending: Vec<String>,
    /// Locks by their modes.
    #[serde(default, deserialize_with = "map")]
    pub locks: BTreeMap<String, f64>,
    /// The files of its WAL.
    #[serde(default)]
    pub wal_files: Option<WalFiles>,
    /// Databases that were made with another version of their collation.
    #[serde(default, deserialize_with = "names")]
    pub collation_mismatches: Vec<String>,
    /// Databases with their sizes.
    #[serde(default, deserialize_with = "list")]
    pub database_sizes: Vec<DatabaseSize>,
}

/// A database's size.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DatabaseSize {
    /// Its name.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Its size.
    pub bytes: f64,
}

impl Slow {
    /// What the server's answer says.
    pub(crate) fn parse(answer: &str) -> Result<Self, serde_json::Error> {
        parse(answer)
    }
}

/// Sessions of clients, but for toygres's own.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Activity {
    /// All of them.
    pub total: i64,
    /// Those that run a statement.
    pub active: i64,
    /// Those that wait for one.
    pub idle: i64,
    /// Those that wait for one in a transaction.
    pub idle_in_transaction: i64,
    /// Those that wait for a lock.
    pub waiting_for_lock: i64,
    /// How long the oldest transaction has been open.
    pub longest_transaction_seconds: f64,
    /// Whose that is.
    pub longest_transaction_pid: Option<i64>,
}

/// A database, as `pg_stat_database` has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "the names are PostgreSQL's own")]
pub struct Database {
    #[serde(deserialize_with = "name")]
    pub name: String,
    pub numbackends: i64,
    pub xact_commit: i64,
    pub xact_rollback: i64,
    pub blks_read: i64,
    pub blks_hit: i64,
    pub tup_returned: i64,
    pub tup_fetched: i64,
    pub tup_inserted: i64,
    pub tup_updated: i64,
    pub tup_deleted: i64,
    pub conflicts: i64,
    pub temp_files: i64,
    pub temp_bytes: i64,
    pub deadlocks: i64,
    pub transaction_age: i64,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Slot {
    /// Its name.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// `physical` or `logical`.
    #[serde(rename = "type", deserialize_with = "name")]
    pub kind: String,
    /// Whether somebody reads it.
    pub active: bool,
    /// What of its WAL is there still; empty where it keeps none.
    #[serde(default, deserialize_with = "some_name")]
    pub wal_status: String,
    /// How much more may be written before it is lost.
    #[serde(default)]
    pub safe_wal_size: Option<i64>,
    /// How much WAL it keeps.
    #[serde(default)]
    pub retained_bytes: Option<i64>,
}

/// Who streams WAL.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Standby {
    /// Its name.
    #[serde(deserialize_with = "name")]
    pub application_name: String,
    /// Its address.
    #[serde(deserialize_with = "name")]
    pub client_addr: String,
    /// What it is at.
    #[serde(deserialize_with = "name")]
    pub state: String,
    /// How much it hasn't applied.
    #[serde(default)]
    pub lag_bytes: Option<i64>,
    /// How far behind it is.
    #[serde(default)]
    pub lag_seconds: Option<f64>,
}

/// The archiver.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Archiver {
    /// Files that it archived.
    pub archived_count: i64,
    /// Tries that failed.
    pub failed_count: i64,
    /// When it last succeeded, in seconds since 1970.
    pub last_archived_at: Option<f64>,
    /// When it last failed.
    pub last_failed_at: Option<f64>,
}

/// The WAL that was written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Wal {
    /// Records.
    pub records: i64,
    /// Bytes.
    pub bytes: f64,
}

/// The files of the WAL.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct WalFiles {
    /// How many.
    pub count: i64,
    /// Their size.
    pub bytes: f64,
}

/// Checkpoints and background writes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "the names are PostgreSQL's own")]
pub struct Checkpoints {
    pub timed: i64,
    pub requested: i64,
    pub write_milliseconds: f64,
    pub sync_milliseconds: f64,
    pub buffers_written: i64,
    pub buffers_clean: i64,
    pub maxwritten_clean: i64,
    pub buffers_alloc: i64,
}

impl Sample {
    /// What the server's answer says.
    ///
    /// # Errors
    /// If it is another one than toygres's statement gives.
    pub(crate) fn parse(answer: &str) -> Result<Self, serde_json::Error> {
        parse(answer)
    }

    /// How many connections ordinary roles may have, beside toygres's.
    #[must_use]
    pub fn ordinary_connections(&self) -> i64 {
        (self.max_connections - self.reserved_connections - 1).max(0)
    }

    /// Whether ordinary roles can connect.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.activity.total < self.ordinary_connections()
    }
}

/// An answer of a server's that could be anybody's.
fn parse<'a, T: Deserialize<'a>>(answer: &'a str) -> Result<T, serde_json::Error> {
    if answer.len() > ANSWER_LENGTH {
        return Err(serde::de::Error::custom(format!("{} bytes are too many", answer.len())));
    }
    serde_json::from_str(answer)
}

/// Without characters that neither a label nor the metadata store takes.
fn shortened(name: &str) -> String {
    name.chars().filter(|character| !character.is_control() || *character == '\n').take(NAME_CHARACTERS).collect()
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(shortened(&String::deserialize(deserializer)?))
}

fn some_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(shortened(&Option::<String>::deserialize(deserializer)?.unwrap_or_default()))
}

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(names.iter().take(LIST_LENGTH).map(|name| shortened(name)).collect())
}

fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let list = Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(list.into_iter().take(LIST_LENGTH).collect())
}

fn map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let map = Option::<BTreeMap<String, f64>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(map.into_iter().take(LIST_LENGTH).map(|(key, value)| (shortened(&key), value)).collect())
}

//! The metadata store: what was asked for, what is being done, and what happened, in PostgreSQL.
//!
//! Everything is in the schema `toygres` of whatever database it is given. SQL itself enforces the
//! legal state transitions and that a live name is unique. Nothing in here is a secret.

mod events;
mod health;
mod instances;
mod lead;
mod listen;
mod namespaces;
mod operations;
mod ports;
mod records;
mod requested;
mod retention;
mod tokens;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction};

pub use events::{EventFilter, EventStart};
pub use health::{HealthChange, InstanceCount, OperationCount, Shard, Sweep};
pub use instances::{AdoptedInstance, Created, InstanceFilter, NewInstance, OperationSubject};
pub use lead::Leadership;
pub use listen::{Changes, Subject};
pub use namespaces::{NamespaceRecord, Quota};
pub use operations::{ChangeRequested, MetadataUpdate, OperationFilter, OperationRequested};
pub use records::{Event, Instance, Operation, Step};
pub use requested::{IdempotencyKey, Requested};
pub use tokens::{NewToken, Token, TokenCheck};

/// The schema that holds everything.
pub const SCHEMA: &str = "toygres";

static MIGRATIONS: Migrator = sqlx_macros::migrate!("./migrations");

/// Error code that the trigger on `instances` raises for an illegal transition.
const ILLEGAL_TRANSITION: &str = "TG001";

/// Error code of a prepared statement whose result has other columns now: a newer server has changed the
/// table meanwhile. Every connection has its own such statements.
const OUTDATED_STATEMENT: &str = "0A000";
/// When this process last met one, or a connection that was lost. Connections from before that are made anew.
static OUTDATED: Mutex<Option<Instant>> = Mutex::new(None);

/// Error codes of a database that lets nobody go on: it stops, crashed, or starts. PostgreSQL's manual, appendix A.
const SHUT_DOWN: [&str; 3] = ["57P01", "57P02", "57P03"];

/// A connection that answered so short a time ago is taken to be alive without a question. To ask takes a round trip:
/// of a page of 100 instances, which takes 0.6 ms, 0.05 ms.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// A server that hangs in the middle of a transaction must not hold up the others for longer than this.
const TRANSACTION_PAUSE_LIMIT: &str = "5s";

/// What the store refused or couldn't do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No live instance of that name.
    #[error("there is no instance {0}")]
    InstanceNotFound(String),
    /// No operation of that id.
    #[error("there is no operation {0}")]
    OperationNotFound(uuid::Uuid),
    /// The operation was cancelled, so that it can't end like this any more.
    #[error("{0}")]
    Cancelled(String),
    /// What was begun can't be taken back.
    #[error("{0}")]
    PointOfNoReturn(String),
    /// The change isn't legal in the instance's present state.
    #[error("{0}")]
    IllegalTransition(String),
    /// The instance's spec was changed since the caller looked at it.
    #[error("{key} was changed meanwhile: it is at generation {current}, not {expected}")]
    GenerationMismatch {
        /// The instance.
        key: String,
        /// What the caller has seen.
        expected: i64,
        /// What it is now.
        current: i64,
    },
    /// A quota was changed since the caller looked at it.
    #[error("{key} was changed meanwhile: it is at revision {current}, not {expected}")]
    RevisionMismatch {
        /// The instance.
        key: String,
        /// What the caller has seen.
        expected: i64,
        /// What it is now.
        current: i64,
    },
    /// The change can't go with what the instance is, or what is at work on it.
    #[error("{0}")]
    NotNow(String),
    /// The instance may not be deleted.
    #[error("{0} is protected from deletion")]
    Protected(String),
    /// The namespace has no room for it.
    #[error("{0}")]
    QuotaExceeded(String),
    /// Events that were asked for aren't kept any more.
    #[error("the events after {after} are not all kept any more: the oldest one that is kept is {oldest}")]
    EventsPruned {
        /// After which id.
        after: i64,
        /// The oldest id that is kept.
        oldest: i64,
    },
    /// There never was an event of that id.
    #[error("there is no event {id} yet")]
    NoSuchEvent {
        /// What was asked for. The newest one isn't said: it tells how much goes on elsewhere.
        id: i64,
    },
    /// Neither an instance nor a quota in the namespace.
    #[error("there is no namespace {0}")]
    NamespaceNotFound(String),
    /// No token of that name, or it is revoked.
    #[error("there is no token {0}")]
    TokenNotFound(String),
    /// A token of that name is there, and not revoked.
    #[error("there is a token {0} already")]
    TokenExists(String),
    /// A token was to last longer than the one that it was asked for with.
    #[error("the token would last longer than yours, which ends at {}", .0.format("%F %T UTC"))]
    OutlivesMaker(chrono::DateTime<chrono::Utc>),
    /// The database's schema is of a newer toygres.
    #[error(
        "the database's schema is newer than this toygres understands (it has migration {0}); nothing was changed; \
         run the newer toygres, or give another --database-url"
    )]
    NewerSchema(i64),
    /// The schema can't be brought up to date.
    #[error("the database's schema could not be brought up to date; it is as it was before the failed migration: {0}")]
    Migration(#[source] MigrateError),
    /// The database's answer to a commit was lost.
    #[error("the metadata store's answer was lost, and it isn't known whether anything was changed: {0}")]
    InDoubt(#[source] sqlx::Error),
    /// The database failed, or can't be reached. No transaction was committed.
    #[error("the metadata store did not answer as it should: {0}")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|database| database.code());
        match (code.as_deref(), error.as_database_error()) {
            (Some(ILLEGAL_TRANSITION), Some(database)) => Self::IllegalTransition(database.message().to_owned()),
            (code, _) => {
                let is_lost = matches!(error, sqlx::Error::Io(_)) || code.is_some_and(|code| SHUT_DOWN.contains(&code));
                if is_lost || code == Some(OUTDATED_STATEMENT) {
                    *OUTDATED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                }
                Self::Database(error)
            }
        }
    }
}

impl From<StoreError> for crate::Failure {
    fn from(error: StoreError) -> Self {
        use crate::FailureKind;
        let message = error.to_string();
        match error {
            StoreError::InstanceNotFound(_)
            | StoreError::OperationNotFound(_)
            | StoreError::NamespaceNotFound(_)
            | StoreError::TokenNotFound(_)
            | StoreError::EventsPruned { .. }
            | StoreError::NoSuchEvent { .. } => Self::permanent(FailureKind::NotFound, message),
            StoreError::Cancelled(_) => Self::permanent(FailureKind::Cancelled, message),
            StoreError::IllegalTransition(_)
            | StoreError::GenerationMismatch { .. }
            | StoreError::RevisionMismatch { .. }
            | StoreError::NotNow(_)
            | StoreError::PointOfNoReturn(_)
            | StoreError::TokenExists(_)
            | StoreError::OutlivesMaker(_)
            | StoreError::Protected(_) => Self::permanent(FailureKind::Conflict, message),
            StoreError::QuotaExceeded(_) => Self::permanent(FailureKind::Exhausted, message),
            StoreError::NewerSchema(_) | StoreError::Migration(_) => Self::permanent(FailureKind::Store, message),
            StoreError::Database(error) | StoreError::InDoubt(error) => error.into(),
        }
    }
}

/// Commits. A refusal is the database's; of whatever else goes wrong nobody knows whether it came before or after.
async fn commit(transaction: Transaction<'_, Postgres>) -> Result<(), StoreError> {
    transaction.commit().await.map_err(|error| match StoreError::from(error) {
        StoreError::Database(error) if error.as_database_error().is_none() => StoreError::InDoubt(error),
        error => error,
    })
}

/// A pool of connections to the metadata store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
}

impl Store {
    /// Connects, and brings the schema up to date.
    ///
    /// # Errors
    /// If the database can't be reached within ten seconds, or its schema is newer.
    pub async fn connect(options: PgConnectOptions, max_connections: u32) -> Result<Self, StoreError> {
        let store = Self::open(options, max_connections).await?;
        store.migrate().await?;
        Ok(store)
    }

    /// Connects, pinning each connection's `search_path`. The schema is as it is, until [`migrate`](Self::migrate).
    ///
    /// # Errors
    /// If the database can't be reached within ten seconds.
    pub async fn open(options: PgConnectOptions, max_connections: u32) -> Result<Self, StoreError> {
        let settings = [("search_path", SCHEMA), ("idle_in_transaction_session_timeout", TRANSACTION_PAUSE_LIMIT)];
        Ok(Self {
            pool: PgPoolOptions::new()
                .max_connections(max_connections)
                .acquire_timeout(Duration::from_secs(10))
                .test_before_acquire(false)
                .before_acquire(|connection, about| {
                    let outdated = *OUTDATED.lock().unwrap_or_else(PoisonError::into_inner);
                    let is_current = outdated.is_none_or(|outdated| about.age < outdated.elapsed());
                    Box::pin(async move { Ok(is_current && (about.idle_for < TRUSTED_FOR || connection.ping().await.is_ok())) })
                })
                .connect_with(options.options(settings).application_name("toygres"))
                .await?,
        })
    }

    /// Brings the schema up to date.
    ///
    /// # Errors
    /// If it is newer, or a migration fails; it is as before that one then.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        // Two servers that start at once would race for the schema itself; the migrator has a lock
        // of its own for what is in it.
        sqlx::raw_sql("BEGIN; SELECT pg_advisory_xact_lock(7846917); CREATE SCHEMA IF NOT EXISTS toygres; COMMIT")
            .execute(&self.pool)
            .await?;
        MIGRATIONS.run(&self.pool).await.map_err(|error| match error {
            MigrateError::VersionMissing(version) => StoreError::NewerSchema(version),
            other => StoreError::Migration(other),
        })
    }

    /// Whether the database takes a connection now, however busy those are that there are.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn reach(&self) -> Result<(), StoreError> {
        let connection = PgConnection::connect_with(&self.pool.connect_options()).await?;
        Ok(connection.close().await?)
    }

    /// The pool, for what isn't the store's own: health checks and tests.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

//! The metadata store: what was asked for, what is being done, and what happened, in PostgreSQL.
//!
//! Everything is in the schema `toygres` of whatever database it is given. SQL itself enforces the
//! legal state transitions and that a live name is unique. Nothing in here is a secret.

mod events;
mod instances;
mod lead;
mod listen;
mod operations;
mod ports;
mod records;

use std::time::Duration;

use sqlx::PgPool;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

pub use instances::{Created, DeleteRequested, MetadataUpdate, NewInstance};
pub use lead::Leadership;
pub use listen::OperationChanges;
pub use operations::OperationFilter;
pub use records::{Event, Instance, Operation, Step, StepFailure};

/// The schema that holds everything.
pub const SCHEMA: &str = "toygres";

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Error code that the trigger on `instances` raises for an illegal transition.
const ILLEGAL_TRANSITION: &str = "TG001";

/// What the store refused or couldn't do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No live instance of that name.
    #[error("there is no instance {0}")]
    InstanceNotFound(String),
    /// The change isn't legal in the instance's present state.
    #[error("{0}")]
    IllegalTransition(String),
    /// The database's schema is of a newer toygres.
    #[error(
        "the database's schema is newer than this toygres understands (it has migration {0}); nothing was changed; \
         run the newer toygres, or give another --database-url"
    )]
    NewerSchema(i64),
    /// The schema can't be brought up to date.
    #[error("the database's schema could not be brought up to date; it is as it was before the failed migration: {0}")]
    Migration(#[source] MigrateError),
    /// What the caller had to do before the commit failed; nothing was written.
    #[error("{0}")]
    Refused(crate::Failure),
    /// The database failed, or can't be reached.
    #[error("the metadata store did not answer as it should: {0}")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error() {
            Some(database) if database.code().as_deref() == Some(ILLEGAL_TRANSITION) => {
                Self::IllegalTransition(database.message().to_owned())
            }
            _ => Self::Database(error),
        }
    }
}

impl From<StoreError> for crate::Failure {
    fn from(error: StoreError) -> Self {
        use crate::FailureKind;
        let message = error.to_string();
        match error {
            StoreError::InstanceNotFound(_) => Self::permanent(FailureKind::NotFound, message),
            StoreError::IllegalTransition(_) => Self::permanent(FailureKind::Conflict, message),
            StoreError::NewerSchema(_) | StoreError::Migration(_) => Self::permanent(FailureKind::Store, message),
            StoreError::Refused(failure) => failure,
            StoreError::Database(error) => error.into(),
        }
    }
}

/// A pool of connections to the metadata store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
}

impl Store {
    /// Connects, pinning each connection's `search_path`, and brings the schema up to date.
    ///
    /// # Errors
    /// If the database can't be reached within ten seconds, or its schema is newer.
    pub async fn connect(options: PgConnectOptions, max_connections: u32) -> Result<Self, StoreError> {
        let store = Self {
            pool: PgPoolOptions::new()
                .max_connections(max_connections)
                .acquire_timeout(Duration::from_secs(10))
                .connect_with(options.options([("search_path", SCHEMA)]).application_name("toygres"))
                .await?,
        };
        store.migrate().await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
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

    /// The pool, for what isn't the store's own: health checks and tests.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }
}

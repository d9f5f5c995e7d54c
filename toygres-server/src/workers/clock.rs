//! The clock. Servers share work by leases and by times from which it is seen, which each writes and reads by its own
//! clock. One that was an hour ahead when it was killed leaves work that the others don't resume for that hour.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use sqlx::PgPool;

/// How far from the database's a server's clock may be. Two servers are at most twice that apart, which is less than what is
/// left of a lease when it is renewed (see `workflows::LOCK_TIMEOUT`).
const LIMIT: TimeDelta = TimeDelta::seconds(1);
/// How often they are compared.
const INTERVAL: Duration = Duration::from_secs(5);

/// Why a server can't rely on its clock.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The database can't be asked.
    #[error("the database can't be asked for its time: {0}")]
    Database(#[from] sqlx::Error),
    /// The clocks are apart.
    #[error(
        "this machine's clock is {:.2} s {direction} the database's, and has to be within {} s of it, as servers share work by \
         their clocks. Set both (by NTP)",
        .by.as_seconds_f64(),
        LIMIT.num_seconds()
    )]
    Apart {
        /// How far, at least.
        by: TimeDelta,
        /// Ahead of it, or behind it.
        direction: &'static str,
    },
}

/// This machine's clock, compared with the database's.
#[derive(Debug)]
pub struct Clock {
    database: PgPool,
    is_right: AtomicBool,
}

impl Clock {
    /// A clock that nothing is held against yet.
    #[must_use]
    pub fn new(database: PgPool) -> Self {
        Self { database, is_right: AtomicBool::new(true) }
    }

    /// Whether the clocks agreed when they were last compared.
    pub fn is_right(&self) -> bool {
        self.is_right.load(Ordering::Relaxed)
    }

    /// Compares them.
    ///
    /// # Errors
    /// If they are more than a second apart, or the database doesn't answer.
    pub async fn compare(&self) -> Result<(), ClockError> {
        // A clock that is just being set is looked at again.
        let compared = match self.measure().await {
            Err(ClockError::Apart { .. }) => self.measure().await,
            compared => compared,
        };
        let is_right = match &compared {
            Ok(()) => true,
            Err(ClockError::Apart { .. }) => false,
            Err(ClockError::Database(_)) => return compared,
        };
        if self.is_right.swap(is_right, Ordering::Relaxed) != is_right {
            match &compared {
                Ok(()) => tracing::info!("this machine's clock and the database's agree again"),
                Err(error) => tracing::error!(%error, "no work is begun until the clocks agree"),
            }
        }
        compared
    }

    /// However slow the database is, clocks that agree aren't told apart: it has looked at its own at some time between the
    /// question and the answer.
    async fn measure(&self) -> Result<(), ClockError> {
        let asked = Utc::now();
        let database: chrono::DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&self.database).await?;
        let (ahead, behind) = (asked - database, database - Utc::now());
        match () {
            () if ahead > LIMIT => Err(ClockError::Apart { by: ahead, direction: "ahead of" }),
            () if behind > LIMIT => Err(ClockError::Apart { by: behind, direction: "behind" }),
            () => Ok(()),
        }
    }

    /// Compares them for as long as the server runs.
    pub async fn keep_comparing(self: Arc<Self>) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if let Err(error @ ClockError::Database(_)) = self.compare().await {
                tracing::warn!(%error, "the clocks can't be compared; it is tried again");
            }
        }
    }
}

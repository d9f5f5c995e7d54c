//! What only one of several servers may do at a time.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use super::{Store, StoreError};

/// How long the database may take to answer a ping.
const PING_LIMIT: Duration = Duration::from_secs(10);

/// The right to do something that no other server does meanwhile. It ends when dropped, and with the
/// connection to the database.
#[derive(Debug)]
pub struct Leadership {
    connection: PgConnection,
}

impl Leadership {
    /// Whether it still holds. A database that doesn't answer for long may have given the role to another server.
    pub async fn is_valid(&mut self) -> bool {
        matches!(timeout(PING_LIMIT, self.connection.ping()).await, Ok(Ok(())))
    }
}

impl Store {
    /// Waits until no other server has `role`, and takes it.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn lead(&self, role: &str) -> Result<Leadership, StoreError> {
        // Out of the pool: a session's lock must not come back into it.
        let mut connection = self.pool.acquire().await?.detach();
        // A server whose machine is gone says nothing; the kernel's own patience is two hours.
        sqlx::query(
            "SELECT set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '5', false),
                set_config('tcp_keepalives_count', '3', false)",
        )
        .execute(&mut connection)
        .await?;
        sqlx::query("SELECT pg_advisory_lock(hashtextextended($1, 0))").bind(role).execute(&mut connection).await?;
        Ok(Leadership { connection })
    }
}

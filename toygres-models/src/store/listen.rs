//! Being woken by changes of operations (LISTEN and NOTIFY).

use sqlx::postgres::PgListener;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::{Store, StoreError};

const CHANNEL: &str = "toygres_operations";

/// Wakes whoever waits for an operation, whichever server or hand changed it.
///
/// A wake is a hint to look again: one that is lost with the connection costs the waiter its own
/// fallback interval, never a result.
#[derive(Debug)]
pub struct OperationChanges {
    changes: broadcast::Sender<Uuid>,
    task: tokio::task::JoinHandle<()>,
}

impl OperationChanges {
    /// Ids of the operations that change from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Uuid> {
        self.changes.subscribe()
    }
}

impl Drop for OperationChanges {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Store {
    /// Starts listening, on a connection of its own that is made anew when it breaks.
    ///
    /// # Errors
    /// If the first connection can't be made.
    pub async fn listen(&self) -> Result<OperationChanges, StoreError> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(CHANNEL).await?;
        let (changes, _) = broadcast::channel(1024);
        let sender = changes.clone();
        let task = tokio::spawn(async move {
            loop {
                match listener.recv().await {
                    // Nobody waiting is no error.
                    Ok(notification) => {
                        if let Ok(id) = notification.payload().parse() {
                            let _ = sender.send(id);
                        }
                    }
                    // The server is stopping.
                    Err(sqlx::Error::PoolClosed) => return,
                    Err(error) => {
                        tracing::warn!(%error, "listening for changes of operations was cut off; connecting again");
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    }
                }
            }
        });
        Ok(OperationChanges { changes, task })
    }
}

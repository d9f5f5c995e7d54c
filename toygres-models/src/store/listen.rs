//! Being told of what others write down (LISTEN and NOTIFY).

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::{Store, StoreError};

/// How many changes a receiver may be behind before it is told that it has missed some.
const KEPT: usize = 1024;
/// Between attempts to connect again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What there is to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Operations and their steps.
    Operations,
    /// Events.
    Events,
}

impl Subject {
    const ALL: [Self; 2] = [Self::Operations, Self::Events];

    /// The channel that the triggers notify.
    fn channel(self) -> &'static str {
        match self {
            Self::Operations => "toygres_operations",
            Self::Events => "toygres_events",
        }
    }
}

/// Tells of changes, whichever server or hand made them.
///
/// A change is a hint to look again, and comes as the id of what changed. `None` says that anything may
/// have: an event, whose number isn't such an id; or what happened while the connection was cut, told
/// once it stands again.
#[derive(Debug)]
pub struct Changes {
    senders: Senders,
    task: tokio::task::JoinHandle<()>,
}

type Senders = [broadcast::Sender<Option<Uuid>>; Subject::ALL.len()];

impl Changes {
    /// What changes from now on.
    #[must_use]
    pub fn subscribe(&self, subject: Subject) -> broadcast::Receiver<Option<Uuid>> {
        self.senders[subject as usize].subscribe()
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Store {
    /// Starts listening, on a connection of its own that is made anew when it breaks.
    ///
    /// # Errors
    /// If the first connection can't be made.
    pub async fn listen(&self) -> Result<Changes, StoreError> {
        let listener = connect(&self.pool).await?;
        let senders: Senders = std::array::from_fn(|_| broadcast::Sender::new(KEPT));
        let task = tokio::spawn(forward(listener, self.pool.clone(), senders.clone()));
        Ok(Changes { senders, task })
    }
}

async fn connect(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all(Subject::ALL.map(Subject::channel)).await?;
    Ok(listener)
}

/// Until the pool is closed. That nobody receives it is no error.
async fn forward(mut listener: PgListener, pool: PgPool, senders: Senders) {
    loop {
        match listener.try_recv().await {
            Ok(Some(notification)) => {
                if let Some(subject) = Subject::ALL.into_iter().find(|subject| subject.channel() == notification.channel()) {
                    let _ = senders[subject as usize].send(notification.payload().parse().ok());
                }
                continue;
            }
            // It was cut, and stands again.
            Ok(None) => {}
            Err(sqlx::Error::PoolClosed) => return,
            Err(error) => {
                tracing::warn!(%error, "listening for changes was cut off; connecting again");
                listener = loop {
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    match connect(&pool).await {
                        Ok(listener) => break listener,
                        Err(sqlx::Error::PoolClosed) => return,
                        Err(error) => tracing::debug!(%error, "the database doesn't answer yet"),
                    }
                };
            }
        }
        for sender in &senders {
            let _ = sender.send(None);
        }
    }
}

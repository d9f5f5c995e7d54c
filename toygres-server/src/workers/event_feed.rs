//! Events as they happen: read from the store once, and told to every stream.
//!
//! The store gives events ids in the order in which they become visible, so a reader that has read all after
//! one id has missed none. A notification only wakes the reader; one that is lost costs time, never an
//! event.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse;
use tokio::sync::{Semaphore, SemaphorePermit, broadcast};
use toygres_models::Store;
use toygres_models::store::{Event, EventFilter, EventStart, StoreError};

/// How many events a stream may be behind before it has to read them from the store itself.
const KEPT: usize = 1024;
/// How many are read at a time.
const BATCH: i64 = 200;
/// How many a stream reads at a time of what it has missed: as much as each of a thousand may hold in
/// memory.
const MISSED: i64 = 20;
/// The reader looks by itself this often, in case a notification was lost with its connection.
const FALLBACK_INTERVAL: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How many streams may read from the store at once. They hold no connection otherwise.
const READERS: usize = 4;

/// An event, and the message that tells of it, made once for all streams.
#[derive(Debug)]
pub struct Told {
    /// The event.
    pub event: Event,
    /// It as a server-sent event.
    pub message: sse::Event,
}

/// An event as a server-sent one, whose id is the event's.
fn message(event: &Event) -> sse::Event {
    // A record of the store's is always JSON.
    sse::Event::default().id(event.id.to_string()).json_data(event).unwrap_or_default()
}

/// What a stream has missed.
#[derive(Debug)]
pub struct Missed {
    /// The next messages and their ids, in order.
    pub messages: VecDeque<(i64, sse::Event)>,
    /// Whether that is all for now.
    pub is_all: bool,
}

/// Tells all streams of a server what happens.
#[derive(Debug)]
pub struct EventFeed {
    sender: broadcast::Sender<Arc<Told>>,
    store: Store,
    readers: Semaphore,
}

impl EventFeed {
    /// Tells of nothing yet.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { sender: broadcast::Sender::new(KEPT), store, readers: Semaphore::new(READERS) }
    }

    /// What happens from now on, without a gap unless the receiver lags.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Told>> {
        self.sender.subscribe()
    }

    /// Tells of everything that happens after this call. `changes` wakes it.
    ///
    /// # Errors
    /// If the store can't be asked what happened last.
    pub async fn tell(
        self: Arc<Self>,
        changes: broadcast::Receiver<Option<uuid::Uuid>>,
    ) -> Result<impl Future<Output = ()> + use<>, StoreError> {
        let everything = EventFilter::everything();
        let newest = self.store.event_position(&everything, EventStart::Now).await?;
        Ok(async move { self.tell_after(newest, &everything, changes).await })
    }

    async fn tell_after(&self, mut last: i64, everything: &EventFilter, mut changes: broadcast::Receiver<Option<uuid::Uuid>>) {
        loop {
            tokio::select! {
                // One that lagged has missed something: look too.
                changed = changes.recv() => match changed {
                    Err(broadcast::error::RecvError::Closed) => return,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                },
                () = tokio::time::sleep(FALLBACK_INTERVAL) => {}
            }
            // One reading is enough for all that came meanwhile.
            while changes.try_recv().is_ok() {}
            loop {
                let events = match self.store.events_matching(everything, last, BATCH).await {
                    Ok(events) => events,
                    Err(error) => {
                        tracing::warn!(%error, "events can't be read; it is tried again");
                        tokio::time::sleep(RETRY_INTERVAL).await;
                        continue;
                    }
                };
                let is_last = i64::try_from(events.len()).is_ok_and(|read| read < BATCH);
                for event in events {
                    last = event.id;
                    // Nobody listening is no error.
                    let _ = self.sender.send(Arc::new(Told { message: message(&event), event }));
                }
                if is_last {
                    break;
                }
                // The streams get a turn, so that they don't fall behind.
                tokio::task::yield_now().await;
            }
        }
    }

    /// What a stream that fell behind, or goes on after another one, has missed: the next events after
    /// `last`. `None` if some of them aren't kept any more.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn missed(&self, filter: &EventFilter, last: i64) -> Result<Option<Missed>, StoreError> {
        // It is never closed.
        let _turn: Option<SemaphorePermit<'_>> = self.readers.acquire().await.ok();
        let events = self.store.events_matching(filter, last, MISSED).await?;
        if self.store.events_pruned_through().await? > last {
            return Ok(None);
        }
        let is_all = i64::try_from(events.len()).is_ok_and(|read| read < MISSED);
        Ok(Some(Missed { messages: events.iter().map(|event| (event.id, message(event))).collect(), is_all }))
    }
}

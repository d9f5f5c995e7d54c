//! Watches that are shared: one for each place, however many wait for its news.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// How much news a waiter may be behind; then it looks at its objects anew.
const KEPT: usize = 1024;
/// How often it is looked whether anybody waits any more.
const IDLE: Duration = Duration::from_secs(60);

/// The watches at work, by their places.
pub(in crate::platform::kubernetes) struct Watches<Place, News>(Mutex<HashMap<Place, Sender<Arc<News>>>>);

impl<Place, News> Default for Watches<Place, News> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<Place: Clone + Eq + Hash, News> Watches<Place, News> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Sender<Arc<News>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place's news from now on. If nobody watches it yet, the caller has to: by [`tell`](Self::tell), with the sender.
    pub(super) fn subscribe(&self, place: &Place) -> (Receiver<Arc<News>>, Option<Sender<Arc<News>>>) {
        let mut watched = self.lock();
        if let Some(waiters) = watched.get(place) {
            return (waiters.subscribe(), None);
        }
        let (sender, receiver) = broadcast::channel(KEPT);
        watched.insert(place.clone(), sender.clone());
        (receiver, Some(sender))
    }

    /// Tells those who wait, until there are none any more or the platform ends.
    pub(super) async fn tell(
        &self,
        place: &Place,
        waiters: Sender<Arc<News>>,
        stop: &CancellationToken,
        news: impl Stream<Item = News>,
    ) {
        let mut news = pin!(news);
        let mut looks = tokio::time::interval(IDLE);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(news) = news.next() => drop(waiters.send(Arc::new(news))),
                _ = looks.tick() => {
                    let mut watched = self.lock();
                    if waiters.receiver_count() == 0 {
                        watched.remove(place);
                        return;
                    }
                }
            }
        }
        // Who waits yet is told so by the end of the channel.
        self.lock().remove(place);
    }
}

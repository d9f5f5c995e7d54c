//! One set of watches for each namespace, however many wait for instances in it.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Resource;
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::{self, Receiver};
use toygres_models::Namespace;

use super::change::Change;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity;

/// How many changes a waiter may be behind; then it looks at its objects anew.
pub(super) const KEPT: usize = 1024;
/// How often it is looked whether anybody waits in the namespace any more.
pub(super) const IDLE: Duration = Duration::from_secs(60);

type Changes = Pin<Box<dyn Stream<Item = Change> + Send>>;

impl Cluster {
    /// The changes in a namespace from now on.
    pub(super) fn subscribe(self: &Arc<Self>, namespace: &Namespace) -> Receiver<Arc<Change>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(changes) = watched.get(namespace) {
            return changes.subscribe();
        }
        let (sender, receiver) = broadcast::channel(KEPT);
        watched.insert(namespace.clone(), sender.clone());
        tokio::spawn(tell(self.clone(), namespace.clone(), sender));
        receiver
    }

    /// Pods of toygres's, warnings, and what is said of claims: that is no warning while their volumes are waited for.
    fn changes(&self, namespace: &Namespace) -> Changes {
        let pods = self.changes_of::<Pod>(namespace, watcher::Config::default().labels(identity::ALL), |pod, is_there| {
            let pod = Box::new(pod);
            Some(if is_there { Change::Pod(pod) } else { Change::Gone(pod) })
        });
        let events = ["type=Warning", "involvedObject.kind=PersistentVolumeClaim"].map(|fields| {
            let which = watcher::Config::default().fields(fields);
            // One that is forgotten has happened all the same.
            self.changes_of::<Event>(namespace, which, |event, is_there| is_there.then(|| Change::Event(Box::new(event))))
        });
        Box::pin(stream::select(pods, stream::select_all(events)))
    }

    fn changes_of<K>(&self, namespace: &Namespace, which: watcher::Config, make: fn(K, bool) -> Option<Change>) -> Changes
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        // A list and a watch.
        self.client.count();
        self.client.count();
        let changes = watcher::watcher(self.client.api::<K>(namespace.as_str()), which).default_backoff();
        Box::pin(changes.filter_map(move |change| {
            std::future::ready(match change {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => make(object, true),
                Ok(watcher::Event::Delete(object)) => make(object, false),
                Ok(watcher::Event::InitDone) => Some(Change::Again),
                Ok(watcher::Event::Init) => None,
                Err(error) => Some(Change::Failed(error)),
            })
        }))
    }
}

/// Tells those who wait, until there are none any more or the platform ends.
async fn tell(cluster: Arc<Cluster>, namespace: Namespace, waiters: broadcast::Sender<Arc<Change>>) {
    let mut changes = cluster.changes(&namespace);
    let mut looks = tokio::time::interval(IDLE);
    loop {
        tokio::select! {
            () = cluster.stop.cancelled() => break,
            Some(change) = changes.next() => drop(waiters.send(Arc::new(change))),
            _ = looks.tick() => {
                let mut watched = cluster.watched.lock().unwrap_or_else(PoisonError::into_inner);
                if waiters.receiver_count() == 0 {
                    watched.remove(&namespace);
                    return;
                }
            }
        }
    }
    // Who waits yet is told so by the end of the channel.
    cluster.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(&namespace);
}

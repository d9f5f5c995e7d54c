//! One set of watches for each namespace, however many wait for instances in it.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::{self, Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Resource;
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::Receiver;
use toygres_models::Namespace;

use super::change::Change;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity;

type Changes = Pin<Box<dyn Stream<Item = Change> + Send>>;

impl Cluster {
    /// The changes in a namespace from now on.
    pub(super) fn subscribe(self: &Arc<Self>, namespace: &Namespace) -> Receiver<Arc<Change>> {
        let (receiver, unwatched) = self.watched.subscribe(namespace);
        if let Some(waiters) = unwatched {
            let (cluster, namespace) = (self.clone(), namespace.clone());
            tokio::spawn(async move {
                let changes = cluster.changes(&namespace);
                cluster.watched.tell(&namespace, waiters, &cluster.stop, changes).await;
            });
        }
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

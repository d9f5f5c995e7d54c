//! One watch for each kind of objects in a namespace, however many wait for some of them to be gone.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, PoisonError};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::{self, Receiver};
use toygres_models::Namespace;

use super::change::Gone;
use super::shared::{IDLE, KEPT};
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity;

impl Cluster {
    /// What of toygres's objects of that kind in a namespace is gone, from now on.
    pub(in crate::platform::kubernetes) fn subscribe_gone<K>(self: &Arc<Self>, namespace: &Namespace) -> Receiver<Arc<Gone>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let place = (namespace.clone(), K::plural(&()).into_owned());
        let mut watched = self.watched_gone.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gone) = watched.get(&place) {
            return gone.subscribe();
        }
        let (sender, receiver) = broadcast::channel(KEPT);
        watched.insert(place.clone(), sender.clone());
        tokio::spawn(tell::<K>(self.clone(), place, sender));
        receiver
    }
}

/// Tells those who wait, until there are none any more or the platform ends.
async fn tell<K>(cluster: Arc<Cluster>, place: (Namespace, String), waiters: broadcast::Sender<Arc<Gone>>)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    // A list and a watch.
    cluster.client.count();
    cluster.client.count();
    let objects = cluster.client.api::<PartialObjectMeta<K>>(place.0.as_str());
    let config = watcher::Config::default().labels(identity::ALL);
    let mut changes = pin!(watcher(objects, config).default_backoff());
    let mut looks = tokio::time::interval(IDLE);
    let mut there = BTreeSet::new();
    loop {
        tokio::select! {
            () = cluster.stop.cancelled() => break,
            Some(change) = changes.next() => {
                let gone = match change {
                    Ok(watcher::Event::Delete(object)) => object.metadata.uid.map(Gone::Object),
                    Ok(watcher::Event::Init) => {
                        there.clear();
                        None
                    }
                    Ok(watcher::Event::InitApply(object)) => {
                        there.extend(object.metadata.uid);
                        None
                    }
                    Ok(watcher::Event::InitDone) => Some(Gone::AllBut(std::mem::take(&mut there))),
                    Ok(watcher::Event::Apply(_)) => None,
                    Err(error) => Some(Gone::Failed(error)),
                };
                gone.into_iter().for_each(|gone| drop(waiters.send(Arc::new(gone))));
            }
            _ = looks.tick() => {
                let mut watched = cluster.watched_gone.lock().unwrap_or_else(PoisonError::into_inner);
                if waiters.receiver_count() == 0 {
                    watched.remove(&place);
                    return;
                }
            }
        }
    }
    // Who waits yet is told so by the end of the channel.
    cluster.watched_gone.lock().unwrap_or_else(PoisonError::into_inner).remove(&place);
}

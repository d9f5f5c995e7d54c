//! One watch for each kind of objects in a namespace, however many wait for some of them to be gone.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::Receiver;
use toygres_models::Namespace;

use super::change::Gone;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity;

impl Cluster {
    /// What of toygres's objects of that kind in a namespace is gone, from now on.
    pub(in crate::platform::kubernetes) fn subscribe_gone<K>(self: &Arc<Self>, namespace: &Namespace) -> Receiver<Arc<Gone>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let place = (namespace.clone(), K::plural(&()).into_owned());
        let (receiver, unwatched) = self.watched_gone.subscribe(&place);
        if let Some(waiters) = unwatched {
            let cluster = self.clone();
            tokio::spawn(async move {
                let gone = cluster.gone::<K>(&place.0);
                cluster.watched_gone.tell(&place, waiters, &cluster.stop, gone).await;
            });
        }
        receiver
    }

    fn gone<K>(&self, namespace: &Namespace) -> impl Stream<Item = Gone> + Send + use<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        // A list and a watch.
        self.client.count();
        self.client.count();
        let objects = self.client.api::<PartialObjectMeta<K>>(namespace.as_str());
        let mut there = BTreeSet::new();
        let changes = watcher(objects, watcher::Config::default().labels(identity::ALL)).default_backoff();
        changes.filter_map(move |change| {
            std::future::ready(match change {
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
            })
        })
    }
}

//! Removing an instance: whatever is left of it, found by its labels, in the order Service,
//! StatefulSet, volume, the rest; and waiting, by watch, until each is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{DeleteParams, ListParams, Preconditions, PropagationPolicy};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::error::RecvError;
use toygres_models::{Failure, FailureKind, InstanceKey};

use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity::{self, MemberNames, is_of};
use crate::platform::kubernetes::watch::change::Gone;
use crate::platform::kubernetes::watch::readiness::Readiness;

/// How long the last clean stop of a server may take.
const STOP_SECONDS: u32 = 30;
/// How long one removal waits; the next one goes on where it ended.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(45);

/// The objects of one kind that are an instance's, and what remains to be waited for.
struct Left<K> {
    found: Vec<ObjectMeta>,
    kind: std::marker::PhantomData<K>,
}

impl Cluster {
    /// See [`Platform::remove`](crate::platform::Platform::remove). The caller holds the lock.
    pub(in crate::platform::kubernetes) async fn unmake(self: &Arc<Self>, key: &InstanceKey) -> Result<bool, Failure> {
        let (services, sets, pods, claims, budgets, policies, configs, accounts, secrets) = tokio::try_join!(
            self.left::<Service>(key),
            self.left::<StatefulSet>(key),
            self.left::<Pod>(key),
            self.left::<PersistentVolumeClaim>(key),
            self.left::<PodDisruptionBudget>(key),
            self.left::<NetworkPolicy>(key),
            self.left::<ConfigMap>(key),
            self.left::<ServiceAccount>(key),
            self.left::<Secret>(key),
        )?;
        let existed = !(services.found.is_empty()
            && sets.found.is_empty()
            && pods.found.is_empty()
            && claims.found.is_empty()
            && budgets.found.is_empty()
            && policies.found.is_empty()
            && configs.found.is_empty()
            && accounts.found.is_empty()
            && secrets.found.is_empty());
        let plain = DeleteParams::default();
        let background = DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        let stop = DeleteParams { grace_period_seconds: Some(STOP_SECONDS), ..DeleteParams::default() };
        let services = self.delete(key, services, &plain).await?;
        let sets = self.delete(key, sets, &background).await?;
        // The garbage collector would do it a moment later; a set that is gone makes no more. One that
        // it made since the list is waited for with the claim, which stays while a pod uses it.
        let pods = self.delete(key, pods, &stop).await?;
        // Stays until no pod uses it.
        let claims = self.delete(key, claims, &plain).await?;
        let (budgets, policies, configs, accounts, secrets) = tokio::try_join!(
            self.delete(key, budgets, &plain),
            self.delete(key, policies, &plain),
            self.delete(key, configs, &plain),
            self.delete(key, accounts, &plain),
            self.delete(key, secrets, &plain),
        )?;
        let waits = async {
            tokio::try_join!(
                self.wait_gone(key, services),
                self.wait_gone(key, sets),
                self.wait_gone(key, pods),
                self.wait_gone(key, claims),
                self.wait_gone(key, budgets),
                self.wait_gone(key, policies),
                self.wait_gone(key, configs),
                self.wait_gone(key, accounts),
                self.wait_gone(key, secrets),
            )
        };
        match tokio::time::timeout(REMOVE_TIMEOUT, waits).await {
            Ok(waited) => waited.map(|_| existed),
            Err(_) => Err(self.still_there(key).await),
        }
    }

    /// Removes the server of an instance, and not its data, if it can't come up as it is: its pod stays
    /// what it was, whatever has been mended since, and what its controller says of it is old. `true` if
    /// it was. The caller holds the lock.
    pub(in crate::platform::kubernetes) async fn clear_stuck_server(
        self: &Arc<Self>,
        key: &InstanceKey,
    ) -> Result<bool, Failure> {
        match self.fetch_objects(key).await?.readiness(key) {
            Readiness::Absent | Readiness::Ready | Readiness::Stopped | Readiness::Waiting(..) => return Ok(false),
            Readiness::Stalled(_) | Readiness::Delayed(..) | Readiness::Failed(_) | Readiness::Crashing(_) => {}
        }
        let (sets, pods) = tokio::try_join!(self.left::<StatefulSet>(key), self.left::<Pod>(key))?;
        let background = DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        let stop = DeleteParams { grace_period_seconds: Some(STOP_SECONDS), ..DeleteParams::default() };
        let sets = self.delete(key, sets, &background).await?;
        let pods = self.delete(key, pods, &stop).await?;
        let waits = async { tokio::try_join!(self.wait_gone(key, sets), self.wait_gone(key, pods)) };
        match tokio::time::timeout(REMOVE_TIMEOUT, waits).await {
            Ok(waited) => waited.map(|_| true),
            Err(_) => Err(self.still_there(key).await),
        }
    }

    /// Ends the server of an instance that is stopped, and returns when it is gone. The StatefulSet makes no other
    /// one. The caller holds the lock.
    pub(in crate::platform::kubernetes) async fn end_pod(self: &Arc<Self>, key: &InstanceKey) -> Result<(), Failure> {
        let pods = self.left::<Pod>(key).await?;
        let stop = DeleteParams { grace_period_seconds: Some(STOP_SECONDS), ..DeleteParams::default() };
        let pods = self.delete(key, pods, &stop).await?;
        match tokio::time::timeout(REMOVE_TIMEOUT, self.wait_gone(key, pods)).await {
            Ok(waited) => waited,
            Err(_) => Err(self.still_there(key).await),
        }
    }

    /// See [`Platform::restart`](crate::platform::Platform::restart). The caller holds the lock.
    pub(in crate::platform::kubernetes) async fn restart_pod(
        self: &Arc<Self>,
        key: &InstanceKey,
        request_id: &str,
    ) -> Result<bool, Failure> {
        let names = MemberNames::first(key);
        let set = self.client.ours::<StatefulSet>(key, &names.set).await?.ok_or_else(|| self.not_found(key))?;
        let mut pods = self.left::<Pod>(key).await?;
        let mark = set.annotations.as_ref().and_then(|annotations| annotations.get(identity::RESTART)?.split_once(' '));
        let ends = match mark {
            Some((marked, uid)) if marked == request_id => uid.to_owned(),
            _ => {
                // Before the pod is ended: a repeat knows by it which pod that was.
                let uid = pods.found.first().and_then(|pod| pod.uid.clone()).unwrap_or_default();
                let mark = BTreeMap::from([(identity::RESTART, format!("{request_id} {uid}"))]);
                self.client.annotate::<StatefulSet>(key, &set, &mark).await?;
                uid
            }
        };
        pods.found.retain(|pod| pod.uid.as_deref() == Some(&ends));
        if pods.found.is_empty() {
            return Ok(false);
        }
        let stop = DeleteParams { grace_period_seconds: Some(STOP_SECONDS), ..DeleteParams::default() };
        let pods = self.delete(key, pods, &stop).await?;
        match tokio::time::timeout(REMOVE_TIMEOUT, self.wait_gone(key, pods)).await {
            Ok(waited) => waited.map(|()| true),
            Err(_) => Err(self.still_there(key).await),
        }
    }

    async fn left<K>(&self, key: &InstanceKey) -> Result<Left<K>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let doing = format!("list the {} of {key}", K::plural(&K::DynamicType::default()));
        let params = ListParams::default().labels(&identity::selects(key));
        let api = self.client.api::<K>(key.namespace.as_str());
        let list = self.client.call(doing.as_str(), api.list_metadata(&params)).await?;
        let found = list.items.into_iter().map(|object| object.metadata).filter(|meta| is_of(meta, key)).collect();
        Ok(Left { found, kind: std::marker::PhantomData })
    }

    /// Has them deleted; what is left are those that take their time: by a finalizer, or since they
    /// end gracefully.
    async fn delete<K>(&self, key: &InstanceKey, left: Left<K>, params: &DeleteParams) -> Result<Left<K>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let api = self.client.api::<K>(key.namespace.as_str());
        let mut remaining = Vec::new();
        for meta in left.found {
            let name = meta.name.clone().unwrap_or_default();
            let doing = format!("delete the {} {}/{name}", K::kind(&K::DynamicType::default()), key.namespace);
            let preconditions = Preconditions { uid: meta.uid.clone(), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..params.clone() };
            let call = async {
                match api.delete(&name, &params).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                    Err(error) => Err(error),
                    Ok(answer) => Ok(answer.left()),
                }
            };
            let Some(deleted) = self.client.call(doing.as_str(), call).await? else { continue };
            let deleted = deleted.meta();
            let takes_time = deleted.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty())
                || deleted.deletion_grace_period_seconds.is_some_and(|seconds| seconds > 0);
            if takes_time {
                remaining.push(meta);
            }
        }
        Ok(Left { found: remaining, ..left })
    }

    /// Waits until each of them is gone.
    async fn wait_gone<K>(self: &Arc<Self>, key: &InstanceKey, left: Left<K>) -> Result<(), Failure>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        if left.found.is_empty() {
            return Ok(());
        }
        let uids_of = |left: Left<K>| left.found.into_iter().filter_map(|meta| meta.uid).collect::<BTreeSet<_>>();
        let mut uids = uids_of(left);
        let mut gone = self.subscribe_gone::<K>(&key.namespace);
        // Looked at from then on, so that nothing is missed.
        let mut is_known = false;
        loop {
            if !is_known {
                let now = uids_of(self.left::<K>(key).await?);
                uids.retain(|uid| now.contains(uid));
                is_known = true;
            }
            if uids.is_empty() {
                return Ok(());
            }
            match gone.recv().await.as_deref() {
                Ok(Gone::Object(uid)) => drop(uids.remove(uid)),
                Ok(Gone::AllBut(there)) => uids.retain(|uid| there.contains(uid)),
                Ok(Gone::Failed(error)) => {
                    let failure = self.explain(&format!("watch the {} of {key}", K::plural(&())), error);
                    if !failure.retryable {
                        return Err(failure);
                    }
                }
                // More came than it could take in.
                Err(RecvError::Lagged(_)) => is_known = false,
                Err(RecvError::Closed) => {
                    return Err(Failure::transient(FailureKind::Platform, format!("the removal of {key} was cut off")));
                }
            }
        }
    }

    /// Why a removal takes so long: what is left, and what holds it.
    async fn still_there(&self, key: &InstanceKey) -> Failure {
        fn describe<K: Resource>(left: Result<Left<K>, Failure>) -> Vec<String>
        where
            K::DynamicType: Default,
        {
            let kind = K::kind(&K::DynamicType::default()).into_owned();
            let line = |meta: ObjectMeta| {
                let held = meta.finalizers.filter(|finalizers| !finalizers.is_empty());
                let held = held.map(|finalizers| format!(", held by {}", finalizers.join(", "))).unwrap_or_default();
                format!("{kind} {}{held}", meta.name.unwrap_or_default())
            };
            left.map(|left| left.found.into_iter().map(line).collect()).unwrap_or_default()
        }
        let mut evidence = describe(self.left::<Service>(key).await);
        evidence.extend(describe(self.left::<StatefulSet>(key).await));
        evidence.extend(describe(self.left::<Pod>(key).await));
        evidence.extend(describe(self.left::<PersistentVolumeClaim>(key).await));
        let message = format!("{key} is still being removed after {} s: {}", REMOVE_TIMEOUT.as_secs(), evidence.join("; "));
        Failure::transient(FailureKind::TimedOut, message).with_evidence(evidence)
    }
}

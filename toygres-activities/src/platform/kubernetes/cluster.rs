//! What the verbs of the platform share: a client, a configuration, a CA, and a lock for each instance.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedMutexGuard, broadcast};
use tokio_util::sync::CancellationToken;
use toygres_models::{Failure, FailureKind, InstanceKey, Invalid};

use super::config::KubernetesConfig;
use super::identity;
use crate::k8s_client::K8sClient;
use crate::platform::PlatformEvent;
use crate::platform::certificates::CertificateAuthority;

const EVENTS_KEPT: usize = 1024;

pub(super) struct Cluster {
    pub(super) client: K8sClient,
    pub(super) config: KubernetesConfig,
    pub(super) ca: CertificateAuthority,
    pub(super) events: broadcast::Sender<PlatformEvent>,
    /// Cancelled when the platform ends.
    pub(super) stop: CancellationToken,
    locks: Mutex<HashMap<InstanceKey, Arc<tokio::sync::Mutex<()>>>>,
}

impl Cluster {
    pub(super) fn new(client: K8sClient, config: KubernetesConfig, ca: CertificateAuthority) -> Self {
        Self {
            client,
            config,
            ca,
            events: broadcast::Sender::new(EVENTS_KEPT),
            stop: CancellationToken::new(),
            locks: Mutex::default(),
        }
    }

    /// Only one verb at a time changes an instance. (Another toygres on the same cluster isn't kept
    /// out; with it, the API server's own preconditions decide.)
    pub(super) async fn lock(&self, key: &InstanceKey) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // What nobody holds or waits for needn't be kept.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(key.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// Whether a verb is changing the instance now.
    pub(super) fn is_locked(&self, key: &InstanceKey) -> bool {
        let locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.get(key).is_some_and(|lock| lock.try_lock().is_err())
    }

    pub(super) fn check_served(&self, key: &InstanceKey) -> Result<(), Invalid> {
        let served = &self.config.namespaces;
        if served.is_empty() || served.contains(&key.namespace) {
            return Ok(());
        }
        let list = served.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(Invalid::new("namespace", format!("{} is not served here; served are {list}", key.namespace)))
    }

    /// The metadata of an object, if it is there and ours.
    ///
    /// # Errors
    /// A conflict if it is somebody else's; busy while it is being deleted.
    pub(super) async fn ours<K>(&self, key: &InstanceKey, name: &str) -> Result<Option<ObjectMeta>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        let api = self.client.api::<K>(key.namespace.as_str());
        let doing = format!("look for the {kind} {}/{name}", key.namespace);
        let Some(found) = self.client.call(doing.as_str(), api.get_metadata_opt(name)).await? else { return Ok(None) };
        if !identity::is_of(&found.metadata, key) {
            return Err(Failure::permanent(
                FailureKind::Conflict,
                format!(
                    "the {kind} {}/{name} is there already, and toygres didn't make it for {key}; it was left as it is. \
                     Choose another name, or remove it first",
                    key.namespace
                ),
            ));
        }
        if found.metadata.deletion_timestamp.is_some() {
            return Err(Failure::transient(
                FailureKind::Platform,
                format!("the {kind} {}/{name} is still being deleted", key.namespace),
            ));
        }
        Ok(Some(found.metadata))
    }

    /// Applies an object. `true` if it was made by that. Where `found`, only to that very object.
    pub(super) async fn apply<K>(&self, mut object: K, found: Option<&ObjectMeta>) -> Result<(K, bool), Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Serialize + DeserializeOwned,
        K::DynamicType: Default,
    {
        // A precondition: another object under the name, or none any more, is a conflict.
        object.meta_mut().uid = found.and_then(|found| found.uid.clone());
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        self.client.apply(&namespace, &object, false).await
    }

    pub(super) fn not_found(&self, key: &InstanceKey) -> Failure {
        Failure::permanent(FailureKind::NotFound, format!("there is no instance {key} on this cluster"))
    }
}

//! What the verbs of the platform share: a client, a configuration, a CA, and a lock for each instance.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use k8s_openapi::NamespaceResourceScope;
use kube::Resource;
use kube::api::Api;
use tokio::sync::{OwnedMutexGuard, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use toygres_models::{Failure, FailureKind, InstanceKey, Invalid, Namespace};

use super::config::KubernetesConfig;
use super::objects::drift::Clean;
use super::watch::change::{Change, Gone};
use super::watch::watches::Watches;
use crate::k8s_client::K8sClient;
use crate::platform::PlatformEvent;
use crate::platform::certificates::CertificateAuthority;
use crate::platform::probe::Probes;
use crate::platform::session::WayIn;

/// How many instances' objects are made at once. A burst gains nothing: the API server makes them one
/// by one anyway, and a kubelet that asks for a pod's volume before the API server's node authorizer
/// has seen that pod is refused, and asks again only 15 s later.
const MADE_AT_ONCE: usize = 2;
const EVENTS_KEPT: usize = 1024;
/// Written by `probe.sh`.
const VOLUME_FILE: &str = "/tmp/volume";

pub(super) struct Cluster {
    pub(super) client: K8sClient,
    pub(super) config: KubernetesConfig,
    pub(super) ca: CertificateAuthority,
    pub(super) way_in: WayIn,
    pub(super) events: broadcast::Sender<PlatformEvent>,
    /// Of each namespace in which somebody waits, what tells them of changes.
    pub(super) watched: Watches<Namespace, Change>,
    /// Of each namespace and kind of which somebody waits for objects to be gone, what tells them.
    pub(super) watched_gone: Watches<(Namespace, String), Gone>,
    /// The server's own database, once it was started here.
    pub(super) control: OnceLock<InstanceKey>,
    /// The connections that are kept into instances.
    pub(super) probes: Probes,
    /// Cancelled when the platform ends.
    pub(super) stop: CancellationToken,
    clean: Mutex<Clean>,
    locks: Mutex<HashMap<InstanceKey, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while an instance's objects are made.
    pub(super) making: Semaphore,
}

impl Cluster {
    pub(super) fn new(
        client: K8sClient,
        config: KubernetesConfig,
        ca: CertificateAuthority,
        client_ca: CertificateAuthority,
    ) -> Self {
        Self {
            way_in: WayIn::new(&ca, client_ca),
            client,
            config,
            ca,
            events: broadcast::Sender::new(EVENTS_KEPT),
            watched: Watches::default(),
            watched_gone: Watches::default(),
            control: OnceLock::new(),
            probes: Probes::new(VOLUME_FILE),
            stop: CancellationToken::new(),
            clean: Mutex::default(),
            locks: Mutex::default(),
            making: Semaphore::new(MADE_AT_ONCE),
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

    /// The instances that were found to be as they should.
    pub(super) fn clean(&self) -> MutexGuard<'_, Clean> {
        self.clean.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Where instances may be: in the namespaces that are served, or in all at once.
    pub(super) fn places<K>(&self) -> Vec<Api<K>>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match self.config.namespaces.as_slice() {
            [] => vec![Api::all(self.client.raw())],
            served => served.iter().map(|namespace| self.client.api(namespace.as_str())).collect(),
        }
    }

    pub(super) fn not_found(&self, key: &InstanceKey) -> Failure {
        Failure::permanent(FailureKind::NotFound, format!("there is no instance {key} on this cluster"))
    }
}

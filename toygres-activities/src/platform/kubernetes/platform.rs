//! [`Platform`] by pods on a Kubernetes cluster.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Once};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource;
use kube::api::ListParams;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use tokio::sync::{OnceCell, broadcast};
use tokio_util::sync::CancellationToken;
use toygres_models::{
    Drift, Failure, FailureKind, InstanceKey, InstanceSpec, Invalid, PlatformName, PostgresVersion, StorageSize,
};

use super::cluster::Cluster;
use super::config::KubernetesConfig;
use super::identity;
use super::objects::renewal;
use super::own_secret::{OwnSecret, in_files, make_folder};
use super::passwords::KubernetesSecretStore;
use super::watch::logs::LogReader;
use super::watch::pod_events;
use crate::k8s_client::K8sClient;
use crate::platform::certificates::{CertificateAuthority, Signs};
use crate::platform::probe::Probe;
use crate::platform::{
    Deployment, Endpoint, InstanceRecord, LogRequest, LogStream, Observation, OfferedVersion, OwnSession, Platform,
    PlatformEvent, Reach, detached,
};

/// Instances as pods. Dropping it ends the watching; servers run on.
pub struct KubernetesPlatform {
    cluster: Arc<Cluster>,
    /// The token and the API's CA, of the Secret that holds them.
    own: Option<(SecretString, Arc<CertificateAuthority>)>,
    /// What goes on in the background from the first subscription on.
    watching: Once,
    cluster_id: OnceCell<Option<String>>,
}

impl KubernetesPlatform {
    /// On the cluster that `config` names. The cluster is called only for the Secret with the CA,
    /// where the configuration names one.
    ///
    /// # Errors
    /// If there is no usable configuration of a client, or the CA can't be read or made.
    pub async fn connect(config: KubernetesConfig) -> Result<Arc<Self>, Failure> {
        let client = K8sClient::connect(&config.cluster).await?;
        let (ca, client_ca, own) = match &config.own_secret {
            Some(name) => {
                let own = OwnSecret::open(&client, client.default_namespace(), name, &config.ca_dir).await?;
                (own.ca, own.client_ca, Some((own.token, Arc::new(own.api_ca))))
            }
            None => {
                let folder = config.ca_dir.clone();
                let opened = in_files(move || {
                    make_folder(&folder)?;
                    let open = |signs| CertificateAuthority::open(&folder, signs);
                    Ok((open(Signs::Instances)?, open(Signs::Clients)?))
                });
                let (ca, client_ca) = opened.await?;
                (ca, client_ca, None)
            }
        };
        let cluster = Arc::new(Cluster::new(client, config, ca, client_ca));
        Ok(Arc::new(Self { cluster, own, watching: Once::new(), cluster_id: OnceCell::new() }))
    }

    /// The place for the passwords of this cluster's instances.
    #[must_use]
    pub fn secrets(&self) -> KubernetesSecretStore {
        self.cluster.passwords()
    }

    /// The token that the Secret with the CA holds, where the configuration names one.
    #[must_use]
    pub fn token(&self) -> Option<&SecretString> {
        self.own.as_ref().map(|(token, _)| token)
    }

    /// What signs the API's certificate, where the configuration names the Secret that holds it.
    #[must_use]
    pub fn api_ca(&self) -> Option<Arc<CertificateAuthority>> {
        self.own.as_ref().map(|(_, ca)| ca.clone())
    }

    /// Its client.
    #[must_use]
    pub fn client(&self) -> &K8sClient {
        &self.cluster.client
    }

    /// The server's own database, started where it isn't: the URI of an instance in the client's own
    /// namespace, password included. Several servers that do so at once get the same one. It is no
    /// user's instance: no other verb shows it.
    ///
    /// # Errors
    /// If it can't be made, or doesn't answer within two minutes.
    pub async fn start_control(&self, storage_size: StorageSize) -> Result<SecretString, Failure> {
        let cluster = self.cluster.clone();
        detached(async move { cluster.control(storage_size).await }).await
    }

    /// Renews the certificates that are due, as is done every hour by itself once somebody listens to
    /// [`events`](Platform::events). How many that were.
    ///
    /// # Errors
    /// If they can't be listed. What fails for one instance is logged.
    pub async fn renew_certificates(&self) -> Result<usize, Failure> {
        let cluster = self.cluster.clone();
        detached(async move { cluster.renew_all().await }).await
    }

    /// The objects of one kind that are instances', by their instance and their name.
    async fn keys_of<K>(&self) -> Result<BTreeSet<InstanceKey>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let params = ListParams::default().labels(identity::ALL);
        let mut keys = BTreeSet::new();
        for place in self.cluster.places::<K>() {
            let doing = format!("list the {} of toygres", K::plural(&K::DynamicType::default()));
            let list = self.cluster.client.call(doing.as_str(), place.list_metadata(&params)).await?;
            keys.extend(list.items.iter().filter_map(|object| identity::owner(&object.metadata)));
        }
        Ok(keys)
    }
}

impl Drop for KubernetesPlatform {
    fn drop(&mut self) {
        self.cluster.stop.cancel();
    }
}

#[async_trait]
impl Platform for KubernetesPlatform {
    fn name(&self) -> PlatformName {
        PlatformName::Kubernetes
    }

    async fn cluster_id(&self) -> Result<Option<String>, Failure> {
        self.cluster_id.get_or_try_init(|| self.cluster.client.cluster_id()).await.cloned()
    }

    fn check(&self, key: &InstanceKey, _spec: &InstanceSpec) -> Result<(), Invalid> {
        self.cluster.check_served(key)
    }

    async fn versions(&self) -> Result<Vec<OfferedVersion>, Failure> {
        Ok(self.cluster.config.images.offered())
    }

    async fn resolve_version(&self, wanted: Option<PostgresVersion>) -> Result<PostgresVersion, Failure> {
        self.cluster.config.images.choose(wanted).map(|(version, _)| version)
    }

    async fn ensure(&self, deployment: &Deployment) -> Result<bool, Failure> {
        let (cluster, deployment) = (self.cluster.clone(), deployment.clone());
        cluster.check_served(&deployment.key)?;
        let given_up = CancellationToken::new();
        let _gives_up_when_dropped = given_up.clone().drop_guard();
        detached(async move {
            let nobody_waits =
                || Failure::permanent(FailureKind::Cancelled, format!("the deployment of {} was given up", deployment.key));
            let _guard = cluster.lock(&deployment.key).await;
            // Never closed, so there is always a permit to come.
            let _making = given_up.run_until_cancelled(cluster.making.acquire()).await.ok_or_else(nobody_waits)?;
            if given_up.is_cancelled() {
                return Err(nobody_waits());
            }
            cluster.create(&deployment, &given_up).await
        })
        .await
    }

    async fn restart(&self, key: &InstanceKey, request_id: &str) -> Result<bool, Failure> {
        let (cluster, key, request_id) = (self.cluster.clone(), key.clone(), request_id.to_owned());
        detached(async move {
            let _guard = cluster.lock(&key).await;
            cluster.restart_pod(&key, &request_id).await
        })
        .await
    }

    async fn set_password(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure> {
        self.cluster.set_password(key, password).await
    }

    async fn set_extensions(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<(), Failure> {
        self.cluster.set_extensions(key, spec).await
    }

    async fn open_superuser(
        &self,
        key: &InstanceKey,
        password: &SecretString,
        valid_until: DateTime<Utc>,
    ) -> Result<(), Failure> {
        self.cluster.open_superuser(key, password, valid_until).await
    }

    async fn observe(&self, key: &InstanceKey) -> Result<Option<Observation>, Failure> {
        self.cluster.observe(key).await
    }

    async fn probe(&self, key: &InstanceKey, max_age: Duration) -> Result<Probe, Failure> {
        self.cluster.probe(key, max_age).await
    }

    async fn wait_ready(&self, key: &InstanceKey, timeout: Duration) -> Result<Observation, Failure> {
        self.cluster.watch_until_ready(key, timeout).await
    }

    async fn endpoint(&self, key: &InstanceKey) -> Result<Endpoint, Failure> {
        self.cluster.locate(key).await
    }

    async fn reach(&self, host: &str, _port: u16) -> Result<Option<Reach>, Failure> {
        self.cluster.find_way(host).await
    }

    async fn remove(&self, key: &InstanceKey) -> Result<bool, Failure> {
        let (cluster, key) = (self.cluster.clone(), key.clone());
        detached(async move {
            let _guard = cluster.lock(&key).await;
            cluster.unmake(&key).await
        })
        .await
    }

    async fn list(&self) -> Result<Vec<InstanceKey>, Failure> {
        // Of each kind that `ensure` makes. A password alone is no instance.
        let (sets, claims, services, pods, configs, accounts, policies, budgets) = tokio::try_join!(
            self.keys_of::<StatefulSet>(),
            self.keys_of::<PersistentVolumeClaim>(),
            self.keys_of::<Service>(),
            self.keys_of::<Pod>(),
            self.keys_of::<ConfigMap>(),
            self.keys_of::<ServiceAccount>(),
            self.keys_of::<NetworkPolicy>(),
            self.keys_of::<PodDisruptionBudget>(),
        )?;
        let all = [sets, claims, services, pods, configs, accounts, policies, budgets];
        let keys: BTreeSet<_> = all.into_iter().flatten().collect();
        Ok(keys.into_iter().collect())
    }

    async fn suspects(&self) -> Result<Vec<InstanceKey>, Failure> {
        self.cluster.suspects().await
    }

    async fn drift(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<Vec<Drift>, Failure> {
        self.cluster.drift(key, spec).await
    }

    async fn session(&self, key: &InstanceKey) -> Result<OwnSession, Failure> {
        OwnSession::open(self.cluster.way(key).await?).await
    }

    async fn records(&self) -> Result<Vec<InstanceRecord>, Failure> {
        let params = ListParams::default().labels(identity::ALL);
        let mut records = Vec::new();
        for place in self.cluster.places::<PersistentVolumeClaim>() {
            let list = self.cluster.client.call("list the volumes of toygres", place.list_metadata(&params)).await?;
            let kept = list.items.iter().filter(|claim| claim.metadata.deletion_timestamp.is_none());
            records.extend(kept.filter_map(|claim| identity::record_of(&claim.metadata)));
        }
        records.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(records)
    }

    async fn logs(&self, key: &InstanceKey, request: LogRequest) -> Result<LogStream, Failure> {
        Ok(LogReader::open(self.cluster.clone(), key.clone(), request).await?.into_stream())
    }

    fn is_outdated(&self) -> bool {
        self.cluster.client.is_outdated()
    }

    fn shutdown(&self) {
        self.cluster.stop.cancel();
    }

    fn events(&self) -> broadcast::Receiver<PlatformEvent> {
        let receiver = self.cluster.events.subscribe();
        self.watching.call_once(|| {
            tokio::spawn(pod_events::watch(self.cluster.clone()));
            tokio::spawn(renewal::keep_renewing(self.cluster.clone()));
        });
        receiver
    }
}

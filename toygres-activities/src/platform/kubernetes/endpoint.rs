//! How an instance is reached.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Service};
use kube::api::ListParams;
use secrecy::SecretString;
use toygres_models::{Failure, FailureKind, InstanceKey, InstanceSpec, ServerAddress};

use super::cluster::Cluster;
use super::forward::Forward;
use super::identity::{MemberNames, PORT, is_of, spec_of};
use super::objects::tls::{external_address, internal_name};
use super::watch::readiness::describe;
use crate::platform::probe::{Knock, Probe, Volume};
use crate::platform::session::connection::Target;
use crate::platform::session::{Held, Way, extensions, owner};
use crate::platform::{Endpoint, Reach};
use crate::secrets::SecretStore;

impl Cluster {
    /// See [`Platform::endpoint`](crate::platform::Platform::endpoint).
    pub(super) async fn locate(&self, key: &InstanceKey) -> Result<Endpoint, Failure> {
        let services = self.client.api::<Service>(key.namespace.as_str());
        let found = self.client.call(format!("read the Service of {key}"), services.get_opt(key.name.as_str())).await?;
        let Some(service) = found.filter(|found| is_of(&found.metadata, key)) else { return Err(self.no_service(key).await?) };
        let public = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
        if !public {
            let address = self.address(internal_name(key, &self.config.cluster_domain));
            return Ok(Endpoint { address, dns_address: None, external_ip: None, dns_name: None });
        }
        let Some(address) = external_address(&service) else { return Err(self.no_address(key).await) };
        self.recertify(key, &service).await?;
        let dns_name = self.public_name(&service).await?;
        Ok(Endpoint {
            address: self.address(address.clone()),
            dns_address: dns_name.clone().map(|name| self.address(name)),
            external_ip: Some(address),
            dns_name,
        })
    }

    fn address(&self, host: String) -> ServerAddress {
        let ca_certificate_path = self.ca.certificate_path().to_str().map(str::to_owned);
        ServerAddress { host, port: PORT, ca_certificate_path }
    }

    async fn no_service(&self, key: &InstanceKey) -> Result<Failure, Failure> {
        Ok(match self.observe(key).await? {
            None => self.not_found(key),
            Some(_) => Failure::permanent(
                FailureKind::Platform,
                format!(
                    "the Service of {key} is gone: somebody deleted it; its server isn't touched. Create it again to have that mended"
                ),
            ),
        })
    }

    async fn no_address(&self, key: &InstanceKey) -> Failure {
        let params = ListParams::default().fields(&format!("involvedObject.kind=Service,involvedObject.name={}", key.name));
        let events = self.client.api::<Event>(key.namespace.as_str());
        let events = self.client.call(format!("read the events of {key}"), events.list(&params)).await;
        let evidence: Vec<_> = events.map(|events| events.items.iter().map(describe).collect()).unwrap_or_default();
        let message = format!(
            "the Service of {key} has no address yet: the cluster's load balancer has to give it one, and not every cluster has a load balancer"
        );
        Failure::transient(FailureKind::Platform, message).with_evidence(evidence)
    }

    /// See [`Platform::reach`](crate::platform::Platform::reach).
    pub(super) async fn find_way(&self, host: &str) -> Result<Option<Reach>, Failure> {
        if self.client.is_in_cluster() {
            return Ok(None);
        }
        let Some(key) = self.internal_key(host) else { return Ok(None) };
        let forward = Forward::open(&self.client, &key, 0).await?;
        let address = forward.address();
        Ok(Some(Reach { host: address.ip().to_string(), port: address.port(), held: Box::new(forward) }))
    }

    /// Makes the owner of a server that is ready, unless it is there, with the password that is kept for it.
    pub(super) async fn make_owner(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<(), Failure> {
        self.as_toygres(key, async |target| owner::make_owner(&target, spec, async { self.passwords().get(key).await }).await)
            .await
    }

    /// See [`Platform::set_password`](crate::platform::Platform::set_password).
    pub(super) async fn set_password(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure> {
        let claim = self.client.ours::<PersistentVolumeClaim>(key, &MemberNames::first(key).data).await?;
        let spec = spec_of(key, &claim.ok_or_else(|| self.not_found(key))?)?;
        self.as_toygres(key, async |target| owner::set_owner_password(&target, &spec, password).await).await
    }

    /// See [`Platform::set_extensions`](crate::platform::Platform::set_extensions).
    pub(super) async fn set_extensions(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<(), Failure> {
        self.as_toygres(key, async |target| extensions::set_extensions(&target, spec).await).await
    }

    /// See [`Platform::open_superuser`](crate::platform::Platform::open_superuser).
    pub(super) async fn open_superuser(
        &self,
        key: &InstanceKey,
        password: &SecretString,
        valid_until: DateTime<Utc>,
    ) -> Result<(), Failure> {
        self.as_toygres(key, async |target| owner::open_superuser(&target, password, valid_until).await).await
    }

    /// See [`Platform::probe`](crate::platform::Platform::probe).
    pub(super) async fn probe(self: &Arc<Self>, key: &InstanceKey, max_age: Duration) -> Result<Probe, Failure> {
        let (cluster, server) = (self.clone(), key.clone());
        let way = async move { cluster.way(&server).await };
        let knock = match self.client.is_in_cluster() {
            true => Knock::AtTheServer,
            // The kubelet knocks.
            false => {
                let (cluster, key) = (self.clone(), key.clone());
                Knock::Elsewhere(async move { cluster.fetch_objects(&key).await.is_ok_and(|objects| objects.is_ready()) }.boxed())
            }
        };
        let probed = self.probes.probe(key, max_age, way, knock).await.map_err(|failure| match failure.kind {
            // From outside, the API server and a kubelet are in between.
            FailureKind::ConnectionFailed | FailureKind::TimedOut if failure.retryable && !self.client.is_in_cluster() => {
                Failure::transient(FailureKind::Platform, failure.message)
            }
            _ => failure,
        })?;
        let volume = probed.sample.volume.as_deref().and_then(Volume::of_df);
        Ok(Probe { probed, volume, certificate_ends_at: None })
    }

    fn target(&self, key: &InstanceKey, forward: Option<&Forward>) -> Result<Target, Failure> {
        match forward.map(Forward::address) {
            Some(address) => self.way_in.target(&address.ip().to_string(), address.port()),
            None => self.way_in.target(&internal_name(key, &self.config.cluster_domain), PORT),
        }
    }

    /// Toygres's own way in, forwarded where this is outside the cluster.
    pub(super) async fn way(&self, key: &InstanceKey) -> Result<Way, Failure> {
        let forward = match self.client.is_in_cluster() {
            true => None,
            false => Some(Forward::open(&self.client, key, 0).await?),
        };
        let target = self.target(key, forward.as_ref())?;
        Ok((target, forward.map(|forward| -> Held { Box::new(forward) })))
    }

    /// Does something with a server by that way.
    async fn as_toygres<T>(&self, key: &InstanceKey, work: impl AsyncFnOnce(Target) -> Result<T, Failure>) -> Result<T, Failure> {
        let (target, _held) = self.way(key).await?;
        work(target).await
    }

    /// The instance of which `host` is the name inside the cluster.
    fn internal_key(&self, host: &str) -> Option<InstanceKey> {
        let suffix = format!(".svc.{}", self.config.cluster_domain);
        let (name, namespace) = host.strip_suffix(&suffix)?.split_once('.')?;
        InstanceKey::parse(namespace, name).ok()
    }
}

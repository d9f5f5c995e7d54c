//! Making an instance: every object is applied each time, so that a cut anywhere is mended by
//! doing it again.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, TryFutureExt, pin_mut};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::watch_object;
use tokio_util::sync::CancellationToken;
use toygres_models::{DnsLabel, Failure, FailureKind, InstanceKey, PostgresVersion, Power, StorageClass};

use super::Creation;
use super::login::Login;
use super::manifests::Manifests;
use super::tls::{external_address, internal_name};
use crate::platform::Deployment;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity::{self, FIRST, MemberNames, Names};
use crate::platform::sizing::Sizing;

/// How long a load balancer's address is waited for, so that the first certificate has it. Where it
/// takes longer, the certificate is made anew when it has come.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(2);

/// What is there of an instance already.
struct Found {
    service_account: Option<ObjectMeta>,
    connection: Option<ObjectMeta>,
    tls: Option<ObjectMeta>,
    config_map: Option<ObjectMeta>,
    claim: Option<ObjectMeta>,
    service: Option<ObjectMeta>,
    policy: Option<ObjectMeta>,
    budget: Option<ObjectMeta>,
    set: Option<ObjectMeta>,
}

/// Which objects around an instance's data are there.
pub(in crate::platform::kubernetes) struct Parts {
    pub(in crate::platform::kubernetes) set: bool,
    pub(in crate::platform::kubernetes) service: bool,
    pub(in crate::platform::kubernetes) connection: bool,
    pub(in crate::platform::kubernetes) tls: bool,
    pub(in crate::platform::kubernetes) config_map: bool,
    pub(in crate::platform::kubernetes) service_account: bool,
    pub(in crate::platform::kubernetes) policy: bool,
    pub(in crate::platform::kubernetes) budget: bool,
}

impl Parts {
    /// Those that aren't, for a person.
    pub(in crate::platform::kubernetes) fn missing(&self) -> Vec<String> {
        let all = [
            ("the StatefulSet", self.set),
            ("the Service", self.service),
            ("the Secret with the password", self.connection),
            ("the Secret with the certificate", self.tls),
            ("the ConfigMap", self.config_map),
            ("the ServiceAccount", self.service_account),
            ("the NetworkPolicy", self.policy),
            ("the PodDisruptionBudget", self.budget),
        ];
        all.into_iter().filter(|(_, is_there)| !is_there).map(|(part, _)| part.to_owned()).collect()
    }
}

impl Cluster {
    /// See [`Platform::ensure`](crate::platform::Platform::ensure). The caller holds the lock. It ends before the
    /// StatefulSet if it is `given_up` by then: another server may be removing the instance already.
    pub(in crate::platform::kubernetes) async fn create(
        self: &Arc<Self>,
        deployment: &Deployment,
        given_up: &CancellationToken,
    ) -> Result<bool, Failure> {
        let Deployment { key, spec, .. } = deployment;
        let found = self.find(key).await?;
        let version = wanted_version(deployment, found.set.as_ref())?;
        if found.claim.is_none() && (found.set.is_some() || deployment.data_exists) {
            // An empty database under an old name would pass for the lost one.
            let message = format!(
                "the PersistentVolumeClaim {} of {key} is gone, and its data with it; put both back from a backup",
                MemberNames::first(key).data
            );
            return Err(Failure::permanent(FailureKind::StartFailed, message));
        }
        // What its pod ran before, also where its StatefulSet is gone.
        let pinned = found.claim.as_ref().and_then(identity::image_of);
        let (version, image) = match &pinned {
            // Whatever images are configured by now.
            Some(image) => (version, image.as_str()),
            None => self.config.images.choose(Some(version))?,
        };

        let manifests = Manifests::new(key);
        let control = self.client.is_in_cluster().then(|| self.client.default_namespace());
        let (public, config) = (spec.use_load_balancer, &self.config);
        let resources = config.resources.clone().with(spec.cpu.as_ref(), spec.memory.as_ref());
        let storage_class = spec.storage_class.as_ref().map(StorageClass::as_str).or(config.storage_class.as_deref());
        let record = identity::record_annotations(deployment)?;
        let volume_claim = async {
            match &found.claim {
                // It may have been grown since, and can't be shrunk or moved to another class.
                Some(claim) => self.client.annotate::<PersistentVolumeClaim>(key, claim, &record).await.map(|()| false),
                None => {
                    let claim = manifests.volume_claim(FIRST, spec.storage_size_gb, storage_class, record.clone())?;
                    self.client.put_ours(key, claim, None).await.map(|(_, made)| made)
                }
            }
        };
        let login = Login {
            host: internal_name(key, &config.cluster_domain),
            owner: spec.owner.to_string(),
            database: spec.database.to_string(),
            ca_certificate: self.ca.trusted_pem().to_owned(),
        };
        let connection = async {
            match &found.connection {
                // Usually by the secret store, before, with the password alone.
                Some(found) => self.passwords().complete(key, found, &login).await.map(|()| false),
                // The server has another one. What is kept again is what was set.
                None if deployment.data_exists => Ok(false),
                None => {
                    let made = self.client.create_ours(key, manifests.connection(&deployment.password, Some(&login))?).await?;
                    Ok(matches!(made, Creation::Made(_)))
                }
            }
        };
        let client = &self.client;
        let (service, others) = tokio::join!(
            client.put_ours(
                key,
                manifests.service(public, spec.dns_label.as_ref().map(DnsLabel::as_str))?,
                found.service.as_ref()
            ),
            futures::future::join_all([
                made(client.put_ours(
                    key,
                    manifests.config_map(self.way_in.clients().trusted_pem(), &Sizing::of(resources.memory_mib()))?,
                    found.config_map.as_ref()
                )),
                made(client.put_ours(key, manifests.service_account()?, found.service_account.as_ref())),
                made(client.put_ours(key, manifests.network_policy(public, control)?, found.policy.as_ref())),
                made(client.put_ours(key, manifests.disruption_budget(spec.disruption_budget)?, found.budget.as_ref())),
                Box::pin(volume_claim),
                Box::pin(connection),
            ])
        );
        let mut created = false;
        for new in all(others)? {
            created |= new;
        }
        let (mut service, new) = service?;
        created |= new;
        if public && external_address(&service).is_none() {
            service = self.wait_address(key).await.unwrap_or(service);
        }
        created |= self.certify(key, &service, found.tls.as_ref()).await?;
        // Last, so that its pod finds everything that it mounts.
        let runs = spec.power == Power::Running;
        let set = manifests.stateful_set(FIRST, version, image, &resources, config.user_id, runs)?;
        let there = match found.set {
            Some(set) if runs && self.clear_stuck_server(key).await? => {
                tracing::info!(instance.key = %key, "its server can't come up as it is; made anew");
                drop(set);
                None
            }
            there => there,
        };
        if given_up.is_cancelled() {
            return Err(Failure::permanent(FailureKind::Cancelled, format!("the deployment of {key} was given up")));
        }
        created |= match &there {
            Some(found) => client.put_ours(key, set, Some(found)).await?.1,
            None => match client.create_ours(key, set).await? {
                Creation::Made(_) => true,
                // Somebody else's attempt was quicker. Its version stays.
                Creation::Found(found) => wanted_version(deployment, Some(&found)).map(|_| false)?,
            },
        };
        if !runs {
            self.end_pod(key).await?;
        }
        Ok(created)
    }

    /// Looks for every object that will be made, and refuses if one is somebody else's.
    async fn find(&self, key: &InstanceKey) -> Result<Found, Failure> {
        let (names, member) = (Names::of(key), MemberNames::first(key));
        let (service_account, connection, tls, config_map, claim, service, policy, budget, set) = tokio::try_join!(
            self.client.ours::<ServiceAccount>(key, &names.postgres),
            self.client.ours::<Secret>(key, &names.connection),
            self.client.ours::<Secret>(key, &names.tls),
            self.client.ours::<ConfigMap>(key, &names.config),
            self.client.ours::<PersistentVolumeClaim>(key, &member.data),
            self.client.ours::<Service>(key, &names.instance),
            self.client.ours::<NetworkPolicy>(key, &names.postgres),
            self.client.ours::<PodDisruptionBudget>(key, &names.postgres),
            self.client.ours::<StatefulSet>(key, &member.set),
        )?;
        Ok(Found { service_account, connection, tls, config_map, claim, service, policy, budget, set })
    }

    /// See [`Platform::missing_parts`](crate::platform::Platform::missing_parts).
    pub(in crate::platform::kubernetes) async fn missing_parts(&self, key: &InstanceKey) -> Result<Vec<String>, Failure> {
        let found = self.find(key).await?;
        if found.claim.is_none() {
            // Without its data there is nothing to make them for.
            return Ok(Vec::new());
        }
        let parts = Parts {
            set: found.set.is_some(),
            service: found.service.is_some(),
            connection: found.connection.is_some(),
            tls: found.tls.is_some(),
            config_map: found.config_map.is_some(),
            service_account: found.service_account.is_some(),
            policy: found.policy.is_some(),
            budget: found.budget.is_some(),
        };
        Ok(parts.missing())
    }

    async fn wait_address(&self, key: &InstanceKey) -> Option<Service> {
        let services = self.client.api::<Service>(key.namespace.as_str());
        self.client.count();
        let changes = watch_object(services, key.name.as_str());
        pin_mut!(changes);
        let wait = async {
            while let Some(change) = changes.next().await {
                if let Some(service) = change.ok().flatten().filter(|service| external_address(service).is_some()) {
                    return Some(service);
                }
            }
            None
        };
        tokio::time::timeout(ADDRESS_TIMEOUT, wait).await.ok().flatten()
    }
}

/// Whether an object was made.
fn made<'a, K>(work: impl Future<Output = Result<(K, bool), Failure>> + Send + 'a) -> BoxFuture<'a, Result<bool, Failure>> {
    Box::pin(work.map_ok(|(_, new)| new))
}

/// All results, or the failure that says most: one that trying again can't mend.
fn all<T>(results: Vec<Result<T, Failure>>) -> Result<Vec<T>, Failure> {
    let (mut values, mut failure) = (Vec::new(), None::<Failure>);
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(other) if failure.as_ref().is_none_or(|known| known.retryable && !other.retryable) => failure = Some(other),
            Err(_) => {}
        }
    }
    failure.map_or(Ok(values), Err)
}

/// The version to make: what is there, if it is what was asked for.
fn wanted_version(deployment: &Deployment, set: Option<&ObjectMeta>) -> Result<PostgresVersion, Failure> {
    let Deployment { key, spec, .. } = deployment;
    match set.and_then(identity::version_of) {
        None => Ok(spec.postgres_version),
        Some(there) if spec.postgres_version.accepts(there) => Ok(there),
        Some(there) => Err(Failure::permanent(
            FailureKind::Conflict,
            format!(
                "postgres_version: {key} is there already with PostgreSQL {there}, and {} was asked for; nothing was changed. \
                 Choose another name, or delete it first",
                spec.postgres_version
            ),
        )
        .with_field("postgres_version")),
    }
}

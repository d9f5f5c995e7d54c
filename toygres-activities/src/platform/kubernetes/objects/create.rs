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
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::watch_object;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use toygres_models::{DnsLabel, Failure, FailureKind, InstanceKey, InstanceSpec, PostgresVersion, Power, StorageClass};

use super::Creation;
use super::drift::{ROLLING_UPDATE_PATH, changed_by};
use super::login::Login;
use super::manifests::Manifests;
use super::tls::{external_address, internal_name};
use crate::k8s_client::FIELD_MANAGER;
use crate::platform::Deployment;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::config::Resources;
use crate::platform::kubernetes::identity::{self, FIRST, MemberNames, Names};
use crate::platform::sizing::Sizing;

/// How long a load balancer's address is waited for, so that the first certificate has it. Where it
/// takes longer, the certificate is made anew when it has come.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(2);

/// What is there of an instance already.
pub(super) struct Found {
    pub(super) service_account: Option<ObjectMeta>,
    pub(super) connection: Option<ObjectMeta>,
    pub(super) tls: Option<ObjectMeta>,
    pub(super) config_map: Option<ObjectMeta>,
    pub(super) claim: Option<ObjectMeta>,
    pub(super) service: Option<ObjectMeta>,
    pub(super) policy: Option<ObjectMeta>,
    pub(super) budget: Option<ObjectMeta>,
    pub(super) set: Option<ObjectMeta>,
}

impl Found {
    /// The objects around an instance's data that aren't there, for a person.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let all = [
            ("the StatefulSet", self.set.is_some()),
            ("the Service", self.service.is_some()),
            ("the Secret with the password", self.connection.is_some()),
            ("the Secret with the certificate", self.tls.is_some()),
            ("the ConfigMap", self.config_map.is_some()),
            ("the ServiceAccount", self.service_account.is_some()),
            ("the NetworkPolicy", self.policy.is_some()),
            ("the PodDisruptionBudget", self.budget.is_some()),
        ];
        all.into_iter().filter(|(_, is_there)| !is_there).map(|(part, _)| part).collect()
    }
}

/// What is made of a spec, and nothing else has a say in.
pub(super) struct Objects {
    pub(super) service_account: ServiceAccount,
    pub(super) config_map: ConfigMap,
    pub(super) service: Service,
    pub(super) policy: NetworkPolicy,
    pub(super) budget: PodDisruptionBudget,
    pub(super) set: StatefulSet,
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

        let (manifests, config) = (Manifests::new(key), &self.config);
        let objects = self.objects(key, spec, version, image)?;
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
        let login = self.login(key, spec);
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
            client.put_ours(key, objects.service, found.service.as_ref()),
            futures::future::join_all([
                made(client.put_ours(key, objects.config_map, found.config_map.as_ref())),
                made(client.put_ours(key, objects.service_account, found.service_account.as_ref())),
                made(client.put_ours(key, objects.policy, found.policy.as_ref())),
                made(client.put_ours(key, objects.budget, found.budget.as_ref())),
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
        if spec.use_load_balancer && external_address(&service).is_none() {
            service = self.wait_address(key).await.unwrap_or(service);
        }
        created |= self.certify(key, &service, found.tls.as_ref()).await?;
        // Last, so that its pod finds everything that it mounts.
        let runs = spec.power == Power::Running;
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
            Some(found) => {
                self.end_replacing_of_pods(key, found).await?;
                client.put_ours(key, objects.set, Some(found)).await?.1
            }
            None => match client.create_ours(key, objects.set).await? {
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
    pub(super) async fn find(&self, key: &InstanceKey) -> Result<Found, Failure> {
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

    /// The objects that it is to have, each noting what it was made of.
    pub(super) fn objects(
        &self,
        key: &InstanceKey,
        spec: &InstanceSpec,
        version: PostgresVersion,
        image: &str,
    ) -> Result<Objects, Failure> {
        let (manifests, config) = (Manifests::new(key), &self.config);
        let control = self.client.is_in_cluster().then(|| self.client.default_namespace());
        let public = spec.use_load_balancer;
        let resources = self.resources(spec);
        let runs = spec.power == Power::Running;
        // Its image is pinned once it runs.
        let set = |image: &str| manifests.stateful_set(FIRST, version, image, &resources, config.user_id, runs);
        Ok(Objects {
            service_account: identity::noted(manifests.service_account()?)?,
            config_map: identity::noted(
                manifests.config_map(self.way_in.clients().trusted_pem(), &Sizing::of(resources.memory_mib()))?,
            )?,
            service: identity::noted(manifests.service(public, spec.dns_label.as_ref().map(DnsLabel::as_str))?)?,
            policy: identity::noted(manifests.network_policy(public, control)?)?,
            budget: identity::noted(manifests.disruption_budget(spec.disruption_budget)?)?,
            set: identity::noted_as(set(image)?, &set("")?)?,
        })
    }

    /// Lets a StatefulSet replace no pod by itself, where somebody let it: an apply can't remove what isn't toygres's.
    async fn end_replacing_of_pods(&self, key: &InstanceKey, found: &ObjectMeta) -> Result<(), Failure> {
        if changed_by(found, &ROLLING_UPDATE_PATH).is_none() {
            return Ok(());
        }
        let strategy = json!({ "type": "OnDelete", "rollingUpdate": null });
        // The uid is a precondition.
        let patch = json!({ "metadata": { "uid": found.uid }, "spec": { "updateStrategy": strategy } });
        let sets = self.client.api::<StatefulSet>(key.namespace.as_str());
        let doing = format!("change the StatefulSet of {key}");
        let name = MemberNames::first(key).set;
        self.client.call(doing, sets.patch_metadata(&name, &PatchParams::apply(FIELD_MANAGER), &Patch::Merge(patch))).await?;
        Ok(())
    }

    fn resources(&self, spec: &InstanceSpec) -> Resources {
        self.config.resources.clone().with(spec.cpu.as_ref(), spec.memory.as_ref())
    }

    /// How applications log in to it.
    pub(super) fn login(&self, key: &InstanceKey, spec: &InstanceSpec) -> Login {
        Login {
            host: internal_name(key, &self.config.cluster_domain),
            owner: spec.owner.to_string(),
            database: spec.database.to_string(),
            ca_certificate: self.ca.trusted_pem().to_owned(),
        }
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

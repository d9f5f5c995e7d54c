//! [`Platform`] by processes on this machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use toygres_models::{
    Failure, FailureKind, InstanceKey, InstanceSpec, Invalid, PlatformName, PostgresVersion, Power, ServerAddress,
};

use super::confinement::{Confinement, confinement};
use super::files::{blocking, lock, remove_file, remove_tree};
use super::host::LocalHost;
use super::instance::{Common, Instance, STOP_TIMEOUT, data_gone};
use super::logs::reader::LogReader;
use super::owners;
use super::ports::PortRegistry;
use super::record::{Record, instance_folders};
use super::server::leftovers::end_all_of;
use super::server::tls::certificate_ends_at;
use super::server::{Server, major_of};
use crate::kill_point::kill_point;
use crate::platform::probe::{Knock, Probe, Probed, Probes, Volume};
use crate::platform::session::connection::Target;
use crate::platform::session::{extensions, owner};
use crate::platform::sizing::Sizing;
use crate::platform::{
    Deployment, Endpoint, InstanceRecord, LogRequest, LogStream, Observation, OfferedVersion, OwnSession, Phase, Platform,
    PlatformEvent, detached,
};

const POLL: Duration = Duration::from_millis(10);
/// How long a server may take to answer one that looks.
const ANSWER_LIMIT: Duration = Duration::from_secs(6);
const EVENTS_KEPT: usize = 1024;
/// Of one who looks, an answer that is so old will do.
const FRESH: Duration = Duration::from_secs(1);

/// Instances as server processes on this machine. Dropping it ends the supervision; servers run on.
pub struct LocalPlatform {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) common: Arc<Common>,
    pub(super) ports: Arc<dyn PortRegistry>,
    instances: Mutex<HashMap<InstanceKey, Arc<Instance>>>,
    probes: Probes,
}

impl LocalPlatform {
    /// On a machine that is set up, with ports from `ports`. What it makes, it keeps running.
    #[must_use]
    pub fn new(host: Arc<LocalHost>, ports: Arc<dyn PortRegistry>) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let common = Common {
            host,
            events: broadcast::Sender::new(EVENTS_KEPT),
            stop: CancellationToken::new(),
            starts: Semaphore::new(cores * 2),
        };
        Arc::new(Self {
            inner: Arc::new(Inner { common: Arc::new(common), ports, instances: Mutex::default(), probes: Probes::new("") }),
        })
    }

    /// Keeps every provisioned instance on disk running from now on: finds those that run, starts
    /// the others in the background. Half-made ones are left to those who make them.
    ///
    /// # Errors
    /// If the state directory can't be read.
    pub async fn supervise(self: &Arc<Self>) -> Result<(), Failure> {
        let folder = self.inner.common.host.state_dir.join("instances");
        for (key, home) in blocking(move || instance_folders(&folder)).await? {
            match blocking(move || Record::read(&home)).await {
                Ok(Some(record)) if record.should_run() => self.inner.instance(&key).supervise(),
                Ok(_) => tracing::info!(instance = %key, "left a stopped or half-made instance as it is"),
                Err(failure) => tracing::error!(instance = %key, error = %failure, "can't supervise an instance"),
            }
        }
        Ok(())
    }

    /// What the platform runs on.
    #[must_use]
    pub fn host(&self) -> &Arc<LocalHost> {
        &self.inner.common.host
    }
}

impl Drop for LocalPlatform {
    fn drop(&mut self) {
        self.inner.common.stop.cancel();
    }
}

fn volume_of(data: &Path) -> Option<Volume> {
    let room = rustix::fs::statvfs(data).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(room.f_frsize);
    // What is kept for root isn't the servers'.
    let used_bytes = bytes(room.f_blocks.saturating_sub(room.f_bfree));
    Some(Volume { size_bytes: used_bytes.saturating_add(bytes(room.f_bavail)), used_bytes, is_shared: true })
}

/// The data directory of an instance.
fn home_data(instances: &Path, key: &InstanceKey) -> PathBuf {
    instances.join(key.namespace.as_str()).join(key.name.as_str()).join("data")
}

pub(super) fn not_found(key: &InstanceKey) -> Failure {
    Failure::permanent(FailureKind::NotFound, format!("there is no instance {key} on this machine"))
}

impl Inner {
    pub(super) fn instance(&self, key: &InstanceKey) -> Arc<Instance> {
        let mut instances = lock(&self.instances);
        instances.entry(key.clone()).or_insert_with(|| Arc::new(Instance::new(key.clone(), self.common.clone()))).clone()
    }

    fn known(&self, key: &InstanceKey) -> Option<Arc<Instance>> {
        lock(&self.instances).get(key).cloned()
    }

    /// Forgets an instance that is gone, unless somebody else is about to do something with it.
    fn forget(&self, instance: Arc<Instance>) {
        let mut instances = lock(&self.instances);
        if Arc::strong_count(&instance) == 2 {
            instances.remove(&instance.key);
        }
    }

    async fn remove(&self, key: InstanceKey) -> Result<bool, Failure> {
        kill_point("remove-begun");
        let instance = self.instance(&key);
        let server = instance.server.clone();
        let removing = server.announce_removal();
        let guard = server.lock_to_remove().await?;
        instance.release();
        let searched = server.clone();
        let (existed, running) = blocking(move || {
            let existed = searched.home.exists();
            // From here on it is no instance, and nobody starts it again, whatever happens to us.
            Record::remove(&searched.home)?;
            kill_point("remove-record-gone");
            Ok((existed, searched.search()))
        })
        .await?;
        if let Some(running) = &running {
            running.stop(STOP_TIMEOUT).await?;
        }
        kill_point("remove-server-stopped");
        let (removed, was_running) = (server.clone(), running.is_some());
        blocking(move || {
            let home = &removed.home;
            if existed && !was_running {
                // It died, perhaps a moment ago.
                removed.end_orphans();
            }
            if let Some(uid) = owners::of_folder(home) {
                // Its superuser may have started others.
                end_all_of(uid)?;
            }
            // First, so that what is left by a removal that fails half-way is never started.
            remove_file(&removed.data().join("PG_VERSION"))?;
            remove_tree(&removed.data())?;
            kill_point("remove-data-gone");
            remove_tree(home)?;
            kill_point("remove-folder-gone");
            if let Some(namespace) = home.parent() {
                // Only if it is empty.
                let _ = std::fs::remove_dir(namespace);
            }
            Ok(())
        })
        .await?;
        self.ports.release(&key).await?;
        kill_point("remove-port-released");
        server.set_last_failure(None);
        drop((guard, removing));
        drop(server);
        self.forget(instance);
        Ok(existed || running.is_some())
    }

    async fn set_password(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure> {
        let instance = self.instance(key);
        let record = instance.read_record().await?.ok_or_else(|| not_found(key))?;
        owner::set_owner_password(&instance.server.target(record.port)?, &record.spec, password).await
    }

    async fn open_superuser(&self, key: &InstanceKey, password: &SecretString, until: DateTime<Utc>) -> Result<(), Failure> {
        if confinement() == Confinement::None {
            let message = "this machine's kernel has no Landlock, so nothing would keep a superuser in his instance; nothing was \
                           changed. `toygres doctor` says more";
            return Err(Failure::permanent(FailureKind::Platform, message));
        }
        owner::open_superuser(&self.target(key).await?, password, until).await
    }

    /// Toygres's way in.
    async fn target(&self, key: &InstanceKey) -> Result<Target, Failure> {
        let instance = self.instance(key);
        let record = instance.read_record().await?.ok_or_else(|| not_found(key))?;
        instance.server.target(record.port)
    }

    async fn probed(
        &self,
        key: &InstanceKey,
        server: &Arc<Server>,
        port: u16,
        max_age: Duration,
    ) -> Result<Arc<Probed>, Failure> {
        let server = server.clone();
        self.probes.probe(key, max_age, async move { Ok((server.target(port)?, None)) }, Knock::AtTheServer).await
    }

    async fn probe(&self, key: &InstanceKey, max_age: Duration) -> Result<Probe, Failure> {
        let instance = self.instance(key);
        let record = instance.read_record().await?.ok_or_else(|| not_found(key))?;
        let server = instance.server.clone();
        let probed = self.probed(key, &server, record.port, max_age).await?;
        let looked = blocking(move || Ok((volume_of(&server.data()), certificate_ends_at(&server.home))));
        let (volume, certificate_ends_at) = looked.await?;
        Ok(Probe { probed, volume, certificate_ends_at })
    }

    async fn observe(&self, key: &InstanceKey) -> Result<Option<Observation>, Failure> {
        let observed = |phase, ready, reason| Ok(Some(Observation::new(phase, ready, reason)));
        let home = Instance::new(key.clone(), self.common.clone()).home().to_owned();
        let read_home = home.clone();
        let (exists, record) = blocking(move || Ok((read_home.exists(), Record::read(&read_home)))).await?;
        let record = match record {
            Ok(Some(record)) => record,
            Err(failure) => return observed(Phase::Failed, false, Some(failure)),
            Ok(None) if exists => {
                let message = format!("{key} is half-made or half-removed; create or delete it again to finish that");
                return observed(Phase::Pending, false, Some(Failure::transient(FailureKind::Platform, message)));
            }
            Ok(None) => {
                // Somebody removed the folder of one that is kept running.
                let Some(lost) = self.known(key).filter(|instance| instance.is_supervised()) else { return Ok(None) };
                return match data_gone(&lost.server).await {
                    Some(failure) => observed(Phase::Failed, false, Some(failure)),
                    None => Ok(None),
                };
            }
        };
        let observed = |phase, ready, reason| {
            Ok(Some(Observation {
                postgres_version: Some(record.postgres_version),
                image: Some(record.bin_dir.display().to_string()),
                derived: Sizing::shared_machine().settings(),
                ..Observation::new(phase, ready, reason)
            }))
        };
        let instance = self.instance(key);
        let server = instance.server.clone();
        if record.provisioned
            && let Some(failure) = data_gone(&server).await
        {
            return observed(Phase::Failed, false, Some(failure));
        }
        let to_search = server.clone();
        let Some(postmaster) = blocking(move || Ok(to_search.find())).await? else {
            if record.spec.power == Power::Stopped {
                return observed(Phase::Stopped, false, None);
            }
            let reason = server.last_failure();
            if !record.provisioned && reason.is_none() {
                return observed(Phase::Pending, false, None);
            }
            let reason = reason.unwrap_or_else(|| {
                let message = format!("the server of {key} doesn't run");
                Failure::transient(FailureKind::StartFailed, message).with_evidence(server.log().last_lines())
            });
            return observed(Phase::Failed, false, Some(reason));
        };
        let no_answer = || {
            let message = format!("the server of {key} runs, and has not answered for {} s", ANSWER_LIMIT.as_secs());
            observed(Phase::Running, false, Some(Failure::transient(FailureKind::ConnectionFailed, message)))
        };
        let asked = tokio::time::timeout(ANSWER_LIMIT, server.wait_answer(&postmaster, record.port, Duration::ZERO)).await;
        let answers = asked == Ok(Ok(true));
        if !record.provisioned {
            return match server.last_failure() {
                Some(failure) => observed(Phase::Failed, false, Some(failure)),
                None => observed(Phase::Pending, false, None),
            };
        }
        // One that another toygres started may hang since.
        if asked.is_err() && postmaster.is_ready() {
            return no_answer();
        }
        // One that has answered since it started may be shutting down.
        if answers && postmaster.is_ready() {
            if postmaster.has_just_answered() {
                return observed(Phase::Running, true, None);
            }
            // It may hang, or have no connection left.
            return match self.probed(key, &server, record.port, FRESH).await.map(|probed| probed.sample.has_room()) {
                Ok(true) => observed(Phase::Running, true, None),
                Ok(false) => {
                    let message =
                        format!("all connections of {key} are taken: PostgreSQL says \"too many clients already\" to others");
                    observed(Phase::Running, true, Some(Failure::transient(FailureKind::Exhausted, message)))
                }
                Err(failure) if postmaster.has_exited() => observed(Phase::Failed, false, Some(failure)),
                Err(failure) => observed(Phase::Running, false, Some(failure)),
            };
        }
        if let Some(failure) = server.last_failure().filter(|_| postmaster.is_ready()) {
            return observed(Phase::Running, false, Some(failure));
        }
        let words = server.log().last_lines().pop().into_iter().collect();
        let message = format!("the server of {key} is starting or recovering");
        observed(Phase::Pending, false, Some(Failure::transient(FailureKind::StartFailed, message).with_evidence(words)))
    }

    async fn wait_ready(&self, key: &InstanceKey, timeout: Duration) -> Result<Observation, Failure> {
        let deadline = Instant::now() + timeout;
        loop {
            let Some(observation) = self.observe(key).await? else { return Err(not_found(key)) };
            if observation.ready {
                return Ok(observation);
            }
            if observation.phase == Phase::Stopped {
                let message = format!("{key} is stopped; `toygres start {}` starts it", key.argument());
                return Err(Failure::permanent(FailureKind::Conflict, message));
            }
            if observation.phase == Phase::Failed {
                // One that has just ended is restarted in a moment; a start that failed is an answer.
                let restarted =
                    self.known(key).filter(|instance| instance.is_supervised() && instance.server.last_failure().is_none());
                let restarts = match restarted {
                    Some(instance) => data_gone(&instance.server).await.is_none(),
                    None => false,
                };
                if !restarts {
                    return Err(observation.reason.unwrap_or_else(|| not_found(key)));
                }
            }
            match observation.reason {
                Some(failure) if observation.phase == Phase::Running && !failure.retryable => return Err(failure),
                _ if Instant::now() >= deadline => return Ok(observation),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }
}

#[async_trait]
impl Platform for LocalPlatform {
    fn name(&self) -> PlatformName {
        PlatformName::Local
    }

    async fn cluster_id(&self) -> Result<Option<String>, Failure> {
        Ok(Some(self.host().machine_id().to_owned()))
    }

    fn check(&self, _key: &InstanceKey, spec: &InstanceSpec) -> Result<(), Invalid> {
        let refuse = |field, what: &str| {
            Err(Invalid::new(field, format!("the local platform has no {what}; leave it out, or use the platform kubernetes")))
        };
        match spec {
            InstanceSpec { use_load_balancer: true, .. } => {
                refuse("use_load_balancer", "load balancer: instances are reached from this machine only")
            }
            InstanceSpec { dns_label: Some(_), .. } => refuse("dns_label", "public names"),
            InstanceSpec { cpu: Some(_), .. } => refuse("cpu", "limits on processor time"),
            InstanceSpec { memory: Some(_), .. } => refuse("memory", "limits on memory"),
            InstanceSpec { storage_class: Some(_), .. } => refuse("storage_class", "classes of storage"),
            InstanceSpec { disruption_budget: false, .. } => refuse("disruption_budget", "disruption budgets"),
            InstanceSpec { .. } => Ok(()),
        }
    }

    async fn versions(&self) -> Result<Vec<OfferedVersion>, Failure> {
        Ok(self.host().versions.offered().await)
    }

    async fn resolve_version(&self, wanted: Option<PostgresVersion>) -> Result<PostgresVersion, Failure> {
        self.host().versions.resolve(wanted).await
    }

    async fn ensure(&self, deployment: &Deployment) -> Result<bool, Failure> {
        let (inner, deployment) = (self.inner.clone(), deployment.clone());
        let given_up = CancellationToken::new();
        let _gives_up_when_dropped = given_up.clone().drop_guard();
        detached(async move { inner.ensure(deployment, &given_up).await }).await
    }

    async fn restart(&self, key: &InstanceKey, request_id: &str) -> Result<bool, Failure> {
        let (inner, key, request_id) = (self.inner.clone(), key.clone(), request_id.to_owned());
        detached(async move { inner.restart(&key, &request_id).await }).await
    }

    async fn set_password(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure> {
        self.inner.set_password(key, password).await
    }

    async fn set_extensions(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<(), Failure> {
        extensions::set_extensions(&self.inner.target(key).await?, spec).await
    }

    async fn open_superuser(
        &self,
        key: &InstanceKey,
        password: &SecretString,
        valid_until: DateTime<Utc>,
    ) -> Result<(), Failure> {
        self.inner.open_superuser(key, password, valid_until).await
    }

    async fn session(&self, key: &InstanceKey) -> Result<OwnSession, Failure> {
        OwnSession::open((self.inner.target(key).await?, None)).await
    }

    async fn observe(&self, key: &InstanceKey) -> Result<Option<Observation>, Failure> {
        self.inner.observe(key).await
    }

    async fn probe(&self, key: &InstanceKey, max_age: Duration) -> Result<Probe, Failure> {
        self.inner.probe(key, max_age).await
    }

    async fn wait_ready(&self, key: &InstanceKey, timeout: Duration) -> Result<Observation, Failure> {
        self.inner.wait_ready(key, timeout).await
    }

    async fn endpoint(&self, key: &InstanceKey) -> Result<Endpoint, Failure> {
        let home = Instance::new(key.clone(), self.inner.common.clone()).home().to_owned();
        let record = blocking(move || Record::read(&home)).await?.ok_or_else(|| not_found(key))?;
        let address = ServerAddress {
            host: "127.0.0.1".into(),
            port: record.port,
            ca_certificate_path: self.host().ca_certificate_path().to_str().map(str::to_owned),
        };
        Ok(Endpoint { address, dns_address: None, external_ip: None, dns_name: None })
    }

    async fn remove(&self, key: &InstanceKey) -> Result<bool, Failure> {
        let (inner, key) = (self.inner.clone(), key.clone());
        detached(async move { inner.remove(key).await }).await
    }

    async fn list(&self) -> Result<Vec<InstanceKey>, Failure> {
        let folder = self.host().state_dir.join("instances");
        let folders = blocking(move || instance_folders(&folder)).await?;
        let mut keys: Vec<_> = folders.into_iter().map(|(key, _)| key).collect();
        // Of one whose folder somebody removed, the server may be left.
        let instances: Vec<_> = lock(&self.inner.instances).values().cloned().collect();
        keys.extend(instances.iter().filter(|instance| instance.server.current().is_some()).map(|instance| instance.key.clone()));
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    async fn records(&self) -> Result<Vec<InstanceRecord>, Failure> {
        let (folder, surroundings) = (self.host().state_dir.join("instances"), self.host().surroundings.clone());
        blocking(move || {
            let read = |(key, home): (InstanceKey, PathBuf)| {
                let record = Record::read(&home).ok().flatten()?;
                // A copy of another instance's folder is none.
                let is_own = record.key == key && record.spec.platform == PlatformName::Local;
                is_own.then_some(record)
            };
            let found = instance_folders(&folder)?.into_iter().filter_map(read);
            // One that was created stopped has never been started.
            let is_made = |record: &Record| record.provisioned || record.spec.power == Power::Stopped;
            let has_data = |record: &Record| {
                let data = home_data(&folder, &record.key);
                major_of(&data, surroundings.account.of_folder(&data).0).is_some()
            };
            let made = found.filter(|record| is_made(record) && has_data(record));
            let records = made.map(|Record { key, instance_id, spec, .. }| InstanceRecord { key, instance_id, spec });
            Ok(records.collect())
        })
        .await
    }

    async fn logs(&self, key: &InstanceKey, request: LogRequest) -> Result<LogStream, Failure> {
        let instance = Instance::new(key.clone(), self.inner.common.clone());
        Ok(LogReader::open(instance.server.log(), request, not_found(key)).await?.into_stream())
    }

    fn shutdown(&self) {
        self.inner.common.stop.cancel();
        self.inner.common.host.pool.stop();
    }

    async fn keep_default_version(&self, version: PostgresVersion) {
        self.host().versions.keep_default(version).await;
    }

    async fn stop_servers(&self) {
        let keys = self.list().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the instances to stop could not be listed");
            Vec::new()
        });
        let stops = keys.into_iter().map(async |key| {
            let instance = self.inner.instance(&key);
            let _guard = instance.server.lock().await;
            if let Err(error) = instance.stop().await {
                tracing::warn!(instance.name = %key, %error, "its server could not be stopped");
            }
        });
        futures::future::join_all(stops).await;
    }

    fn events(&self) -> broadcast::Receiver<PlatformEvent> {
        self.inner.common.events.subscribe()
    }
}

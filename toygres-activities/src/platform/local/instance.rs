//! One instance as the platform holds it in memory: its server, and who keeps it running.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use toygres_models::{Failure, InstanceKey};

use super::files::{blocking, lock};
use super::host::LocalHost;
use super::record::Record;
use super::server::process::Postmaster;
use super::server::supervisor::{Charge, keep_running};
use super::server::{Server, StartFailure};
use crate::platform::PlatformEvent;

/// How long a clean stop may take before the next sharper one.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What the instances of one platform share.
pub(super) struct Common {
    pub(super) host: Arc<LocalHost>,
    pub(super) events: broadcast::Sender<PlatformEvent>,
    /// Cancelled when the platform ends.
    pub(super) stop: CancellationToken,
    /// How many servers are restarted at once, so that a machine that comes up isn't trampled.
    pub(super) starts: Semaphore,
}

pub(super) struct Instance {
    pub(super) key: InstanceKey,
    pub(super) server: Arc<Server>,
    common: Arc<Common>,
    supervision: Mutex<Option<CancellationToken>>,
}

impl Instance {
    pub(super) fn new(key: InstanceKey, common: Arc<Common>) -> Self {
        let home = common.host.state_dir.join("instances").join(key.namespace.as_str()).join(key.name.as_str());
        let server = Server::instance(key.to_string(), home, common.host.surroundings.clone());
        Self { key, server: Arc::new(server), common, supervision: Mutex::default() }
    }

    pub(super) fn home(&self) -> &Path {
        &self.server.home
    }

    pub(super) async fn read_record(&self) -> Result<Option<Record>, Failure> {
        let home = self.home().to_owned();
        blocking(move || Record::read(&home)).await
    }

    pub(super) async fn write_record(&self, record: &Record) -> Result<(), Failure> {
        let (home, record) = (self.home().to_owned(), record.clone());
        blocking(move || record.write(&home)).await
    }

    /// Ends its server cleanly, and no longer restarts it. The caller holds it.
    pub(super) async fn stop(&self) -> Result<(), Failure> {
        self.release();
        let server = self.server.clone();
        if let Some(running) = blocking(move || Ok(server.search())).await? {
            running.stop(STOP_TIMEOUT).await?;
        }
        self.server.set_last_failure(None);
        Ok(())
    }

    pub(super) fn is_supervised(&self) -> bool {
        lock(&self.supervision).as_ref().is_some_and(|stop| !stop.is_cancelled())
    }

    /// Keeps it running from now on.
    pub(super) fn supervise(self: &Arc<Self>) {
        let mut supervision = lock(&self.supervision);
        if supervision.as_ref().is_none_or(CancellationToken::is_cancelled) {
            let stop = self.common.stop.child_token();
            *supervision = Some(stop.clone());
            tokio::spawn(keep_running(self.clone(), stop));
        }
    }

    /// No longer restarts it.
    pub(super) fn release(&self) {
        if let Some(supervision) = lock(&self.supervision).take() {
            supervision.cancel();
        }
    }

    /// Starts the server of a provisioned instance. The caller holds it.
    pub(super) async fn start_provisioned(&self, record: &Record) -> Result<Arc<Postmaster>, StartFailure> {
        if let Some(running) = self.server.find() {
            return Ok(running);
        }
        if let Some(failure) = data_gone(&self.server).await {
            return Err(failure.into());
        }
        let _turn = self.common.starts.acquire().await;
        let programs = self.common.host.versions.obtain_for(record.postgres_version, Some(&record.bin_dir)).await?;
        self.server.start(&programs, record.port).await
    }
}

/// The failure of a provisioned instance whose data somebody removed. It is never made anew: an
/// empty database under an old name would pass for the lost one.
pub(super) async fn data_gone(server: &Arc<Server>) -> Option<Failure> {
    let checked = server.clone();
    match blocking(move || Ok(checked.major())).await {
        Ok(Some(_)) => None,
        Ok(None) => Some(server.data_is_gone()),
        Err(failure) => Some(failure),
    }
}

#[async_trait]
impl Charge for Instance {
    fn server(&self) -> &Arc<Server> {
        &self.server
    }

    async fn start(&self) -> Result<Option<Arc<Postmaster>>, StartFailure> {
        match self.read_record().await? {
            Some(record) if record.should_run() => self.start_provisioned(&record).await.map(Some),
            // It is stopped, or half-made.
            Some(_) => Ok(None),
            // Somebody removed the record by hand: a removal by toygres ends this task.
            None => match data_gone(&self.server).await {
                Some(failure) => Err(failure.into()),
                None => Ok(None),
            },
        }
    }

    fn report(&self, kind: &'static str, message: String, healthy: bool) {
        // Nobody may be listening.
        let _ = self.common.events.send(PlatformEvent { key: self.key.clone(), kind, message, healthy });
    }

    async fn tend(&self) {
        let server = self.server.clone();
        let _ = blocking(move || {
            if let Some(major) = server.major() {
                server.tend(major);
            }
            Ok(())
        })
        .await;
    }
}

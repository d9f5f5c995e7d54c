//! Making an instance: each step looks at what is there already, so that a creation cut off
//! anywhere is finished by doing it again.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use toygres_models::{Failure, FailureKind, PostgresVersion};

use super::files::{blocking, make_folder, remove_tree, sync_directory};
use super::instance::{Instance, data_gone};
use super::platform::{Inner, STOP_PATIENCE};
use super::pool::Directory;
use super::programs::Programs;
use super::record::Record;
use super::server::is_free;
use super::server::{Cause, major_of};
use crate::kill_point::kill_point;
use crate::platform::InstanceSpec;

/// How many ports a create tries that other programs turn out to have.
const PORT_ATTEMPTS: usize = 200;
/// How long a first start may take.
const FIRST_START_TIMEOUT: Duration = Duration::from_secs(60);

impl Inner {
    /// See [`Platform::ensure`](crate::platform::Platform::ensure). Nothing new is begun once the caller
    /// has given up, though the guard may come only after a removal let it go.
    pub(super) async fn ensure(&self, spec: InstanceSpec, given_up: &CancellationToken) -> Result<bool, Failure> {
        let nobody_waits = || Failure::permanent(FailureKind::Cancelled, format!("the creation of {} was given up", spec.key));
        let instance = self.instance(&spec.key);
        let record = instance.read_record().await?;
        if record.as_ref().is_some_and(|record| record.provisioned) {
            let _held = instance.server.hold().await;
            if given_up.is_cancelled() {
                return Err(nobody_waits());
            }
            // It may have been removed meanwhile; then it is made below.
            if let Some(record) = instance.read_record().await?.filter(|record| record.provisioned) {
                return Self::keep(&instance, &spec, &record).await.map(|()| false);
            }
        }
        // What takes long comes before the lock, so that a removal needn't wait for it.
        let version = wanted_version(&spec, record.as_ref())?;
        let host = &self.common.host;
        let programs = given_up.run_until_cancelled(host.versions.obtain(version)).await.ok_or_else(nobody_waits)??;
        host.surroundings.account.check_reaches(&programs.bin_dir, "the PostgreSQL programs in")?;
        let data_is_missing = major_of(&instance.server.data()).is_none();
        let directory = if data_is_missing { Some(host.pool.take(&programs).await?) } else { None };
        let _held = instance.server.hold().await;
        if given_up.is_cancelled() {
            return Err(nobody_waits());
        }
        let record = instance.read_record().await?;
        if let Some(record) = record.as_ref().filter(|record| record.provisioned) {
            return Self::keep(&instance, &spec, record).await.map(|()| false);
        }
        if wanted_version(&spec, record.as_ref())? != version {
            return Err(Failure::transient(
                FailureKind::Busy,
                format!("{} is being made by another request; try again", spec.key),
            ));
        }
        instance.server.set_last_failure(None);
        let made = self.make(&instance, &spec, record, &programs, directory).await;
        match &made {
            Ok(()) => instance.supervise(),
            Err(failure) => instance.server.set_last_failure(Some(failure.clone())),
        }
        made.map(|()| true)
    }

    /// An instance that is there: only its server may have to be started.
    async fn keep(instance: &Arc<Instance>, spec: &InstanceSpec, record: &Record) -> Result<(), Failure> {
        wanted_version(spec, Some(record))?;
        if let Some(failure) = data_gone(&instance.server) {
            return Err(failure);
        }
        instance.start_provisioned(record).await.map_err(|start| start.failure)?;
        instance.supervise();
        Ok(())
    }

    /// Makes what is missing of an instance, which is held.
    async fn make(
        &self,
        instance: &Arc<Instance>,
        spec: &InstanceSpec,
        record: Option<Record>,
        programs: &Programs,
        directory: Option<Directory>,
    ) -> Result<(), Failure> {
        let server = &instance.server;
        let mut record = record.unwrap_or_else(|| Record {
            key: spec.key.clone(),
            postgres_version: programs.postgres_version,
            bin_dir: programs.bin_dir.clone(),
            port: 0,
            provisioned: false,
            storage_size_gb: spec.storage_size,
        });
        record.storage_size_gb = spec.storage_size;
        let mut unusable = Vec::new();
        kill_point("create-begun");
        self.claim_port(instance, &mut record, &mut unusable).await?;
        kill_point("create-recorded");
        self.place_data(instance, programs, directory).await?;
        kill_point("create-data-placed");
        let postmaster = loop {
            match server.start(programs, record.port).await {
                Ok(postmaster) => break postmaster,
                Err(start) if start.cause == Cause::PortTaken && unusable.len() < PORT_ATTEMPTS => {
                    tracing::info!(instance = %spec.key, port = record.port, "another program has the port; taking another one");
                    unusable.push(record.port);
                    self.claim_port(instance, &mut record, &mut unusable).await?;
                }
                Err(start) => return Err(start.failure),
            }
        };
        kill_point("create-server-started");
        match server.wait_answer(&postmaster, record.port, FIRST_START_TIMEOUT).await {
            Ok(true) => {}
            Ok(false) => {
                let message = format!("the server of {} didn't answer within {} s", spec.key, FIRST_START_TIMEOUT.as_secs());
                return Err(Failure::transient(FailureKind::TimedOut, message));
            }
            Err(()) => {
                let evidence = server.log().last_words();
                let message = format!("the server of {} ended while it started", spec.key);
                return Err(Failure::transient(FailureKind::StartFailed, message).with_evidence(evidence));
            }
        }
        kill_point("create-server-answers");
        server.set_password(record.port, &spec.password).await?;
        kill_point("create-password-set");
        record.provisioned = true;
        let home = instance.home().to_owned();
        blocking(move || record.write(&home)).await?;
        kill_point("create-provisioned");
        Ok(())
    }

    /// Gives the record a port on which nobody else listens, and writes it down.
    async fn claim_port(&self, instance: &Instance, record: &mut Record, unusable: &mut Vec<u16>) -> Result<(), Failure> {
        // The control database's socket has this number.
        unusable.push(5432);
        loop {
            let port = self.ports.claim(&record.key, self.common.host.port_range.clone(), unusable).await?;
            let running = instance.server.find();
            if port != record.port
                && let Some(running) = &running
            {
                running.stop(STOP_PATIENCE).await?;
            }
            let is_ours = running.is_some() && port == record.port;
            if is_ours || is_free(port) || unusable.len() >= PORT_ATTEMPTS {
                record.port = port;
                break;
            }
            unusable.push(port);
        }
        let (home, record) = (instance.home().to_owned(), record.clone());
        let passable = if self.common.host.account().switches { 0o711 } else { 0o700 };
        blocking(move || {
            let is_new = !home.exists();
            if let Some(namespace) = home.parent() {
                make_folder(namespace, passable, None)?;
            }
            make_folder(&home, passable, None)?;
            kill_point("create-folder-made");
            record.write(&home)?;
            match home.parent() {
                Some(namespace) if is_new => {
                    sync_directory(namespace)?;
                    namespace.parent().map_or(Ok(()), sync_directory)
                }
                _ => Ok(()),
            }
        })
        .await
    }

    async fn place_data(&self, instance: &Instance, programs: &Programs, directory: Option<Directory>) -> Result<(), Failure> {
        let data = instance.server.data();
        if major_of(&data).is_some() {
            return Ok(());
        }
        let finished = match directory {
            Some(finished) => finished,
            None => self.common.host.pool.take(programs).await?,
        };
        blocking(move || {
            // Nothing was ever kept in what isn't a data directory of an unprovisioned instance.
            remove_tree(&data)?;
            finished.place(&data)
        })
        .await
    }
}

/// The version to make: what the record says, if it is what `spec` asks for.
fn wanted_version(spec: &InstanceSpec, record: Option<&Record>) -> Result<PostgresVersion, Failure> {
    match record {
        None => Ok(spec.postgres_version),
        Some(record) if spec.postgres_version.accepts(record.postgres_version) => Ok(record.postgres_version),
        Some(record) => Err(Failure::permanent(
            FailureKind::Conflict,
            format!(
                "postgres_version: {} is there already with PostgreSQL {}, and {} was asked for; nothing was changed. \
                 Choose another name, or delete it first",
                spec.key, record.postgres_version, spec.postgres_version
            ),
        )
        .with_field("postgres_version")),
    }
}

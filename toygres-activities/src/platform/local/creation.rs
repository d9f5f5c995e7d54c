//! Making an instance: each step looks at what is there already, so that a creation cut off
//! anywhere is finished by doing it again.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use toygres_models::{Failure, FailureKind, InstanceKey, PostgresVersion, Power};

use super::files::{blocking, failed, make_folder, remove_tree, sync_directory};
use super::instance::{Instance, STOP_TIMEOUT, data_gone};
use super::owners::{give, is_instances, is_somebodys};
use super::platform::{Inner, not_found};
use super::pool::Directory;
use super::programs::Programs;
use super::record::{Record, RestartMark};
use super::server::Cause;
use super::server::is_free;
use super::server::leftovers::end_all_of;
use crate::kill_point::kill_point;
use crate::platform::Deployment;
use crate::platform::session::owner;

/// How many ports a create tries that other programs turn out to have.
const PORT_ATTEMPTS: usize = 200;
/// How long a first start may take.
const FIRST_START_TIMEOUT: Duration = Duration::from_secs(60);

impl Inner {
    /// See [`Platform::ensure`](crate::platform::Platform::ensure). Nothing new is begun once the caller
    /// has given up, though the guard may come only after a removal let it go.
    pub(super) async fn ensure(&self, deployment: Deployment, given_up: &CancellationToken) -> Result<bool, Failure> {
        let key = &deployment.key;
        let nobody_waits = || Failure::permanent(FailureKind::Cancelled, format!("the deployment of {key} was given up"));
        let instance = self.instance(key);
        let record = instance.read_record().await?;
        if record.as_ref().is_some_and(|record| record.provisioned) {
            let _guard = instance.server.lock().await;
            if given_up.is_cancelled() {
                return Err(nobody_waits());
            }
            // It may have been removed meanwhile; then it is made below.
            if let Some(record) = instance.read_record().await?.filter(|record| record.provisioned) {
                return self.converge(&instance, &deployment, record).await.map(|()| false);
            }
        }
        if deployment.data_exists
            && !record.as_ref().is_some_and(|record| record.provisioned)
            && data_gone(&instance.server).await.is_some()
        {
            // An empty database under an old name would pass for the lost one.
            return Err(instance.server.data_is_gone());
        }
        // What takes long comes before the lock, so that a removal needn't wait for it.
        let version = wanted_version(&deployment, record.as_ref())?;
        let host = &self.common.host;
        let programs = given_up.run_until_cancelled(host.versions.obtain(version)).await.ok_or_else(nobody_waits)??;
        host.surroundings.account.check_reaches(&programs.bin_dir, "the PostgreSQL programs in")?;
        let data_is_missing = data_gone(&instance.server).await.is_some();
        let directory = if data_is_missing { Some(host.pool.take(&programs).await?) } else { None };
        let _guard = instance.server.lock().await;
        if given_up.is_cancelled() {
            return Err(nobody_waits());
        }
        let record = instance.read_record().await?;
        if let Some(record) = record.clone().filter(|record| record.provisioned) {
            return self.converge(&instance, &deployment, record).await.map(|()| false);
        }
        if wanted_version(&deployment, record.as_ref())? != version {
            return Err(Failure::transient(FailureKind::Busy, format!("{key} is being made by another request; try again")));
        }
        instance.server.set_last_failure(None);
        let made = self.create_parts(&instance, &deployment, record, &programs, directory).await;
        match &made {
            Ok(()) if deployment.spec.power == Power::Running => instance.supervise(),
            Ok(()) => {}
            Err(failure) => instance.server.set_last_failure(Some(failure.clone())),
        }
        made.map(|()| true)
    }

    /// Brings an instance that is provisioned to what its spec says. The caller holds it.
    async fn converge(&self, instance: &Arc<Instance>, deployment: &Deployment, mut record: Record) -> Result<(), Failure> {
        wanted_version(deployment, Some(&record))?;
        self.ports.keep(&deployment.key, record.port).await?;
        if deployment.spec != record.spec || deployment.instance_id != record.instance_id {
            (record.spec, record.instance_id) = (deployment.spec.clone(), deployment.instance_id);
            // Before the server is touched: if this ends here, the next look does the rest.
            instance.write_record(&record).await?;
            kill_point("update-recorded");
        }
        if record.spec.power == Power::Stopped {
            return instance.stop().await;
        }
        if let Some(failure) = data_gone(&instance.server).await {
            return Err(failure);
        }
        instance.start_provisioned(&record).await.map_err(|start| start.failure)?;
        instance.supervise();
        Ok(())
    }

    /// See [`Platform::restart`](crate::platform::Platform::restart).
    pub(super) async fn restart(&self, key: &InstanceKey, request_id: &str) -> Result<bool, Failure> {
        let instance = self.instance(key);
        let _guard = instance.server.lock().await;
        let mut record = instance.read_record().await?.filter(|record| record.should_run()).ok_or_else(|| not_found(key))?;
        let running = instance.server.find().map(|postmaster| postmaster.pid());
        let is_done = match &record.restart {
            Some(mark) if mark.request_id == request_id => running.is_none() || mark.ends_process_id != running,
            _ => {
                // Before the server is ended: a repeat knows by it which server that was.
                record.restart = Some(RestartMark { request_id: request_id.to_owned(), ends_process_id: running });
                instance.write_record(&record).await?;
                false
            }
        };
        kill_point("restart-recorded");
        if !is_done {
            instance.stop().await?;
            kill_point("restart-server-stopped");
        }
        instance.start_provisioned(&record).await.map_err(|start| start.failure)?;
        instance.supervise();
        Ok(!is_done)
    }

    /// Makes what is missing of an instance, which is held.
    async fn create_parts(
        &self,
        instance: &Arc<Instance>,
        deployment: &Deployment,
        record: Option<Record>,
        programs: &Programs,
        directory: Option<Directory>,
    ) -> Result<(), Failure> {
        let (server, key) = (&instance.server, &deployment.key);
        let mut record = record.unwrap_or_else(|| Record {
            key: key.clone(),
            postgres_version: programs.postgres_version,
            bin_dir: programs.bin_dir.clone(),
            port: 0,
            provisioned: false,
            instance_id: None,
            spec: deployment.spec.clone(),
            restart: None,
        });
        (record.spec, record.instance_id) = (deployment.spec.clone(), deployment.instance_id);
        let mut unusable = Vec::new();
        kill_point("create-begun");
        self.claim_port(instance, &mut record, &mut unusable).await?;
        kill_point("create-recorded");
        self.place_data(instance, record.port, programs, directory).await?;
        kill_point("create-data-placed");
        if deployment.spec.power == Power::Stopped {
            // Its password is set when it is first started.
            return instance.stop().await;
        }
        let postmaster = loop {
            match server.start(programs, record.port).await {
                Ok(postmaster) => break postmaster,
                Err(start) if start.cause == Cause::PortTaken && unusable.len() < PORT_ATTEMPTS => {
                    tracing::info!(instance = %key, port = record.port, "another program has the port; taking another one");
                    unusable.push(record.port);
                    self.claim_port(instance, &mut record, &mut unusable).await?;
                    self.place_data(instance, record.port, programs, None).await?;
                }
                Err(start) => return Err(start.failure),
            }
        };
        kill_point("create-server-started");
        match server.wait_answer(&postmaster, record.port, FIRST_START_TIMEOUT).await {
            Ok(true) => {}
            Ok(false) => {
                let message = format!("the server of {key} didn't answer within {} s", FIRST_START_TIMEOUT.as_secs());
                return Err(Failure::transient(FailureKind::TimedOut, message));
            }
            Err(()) => {
                let evidence = server.log().last_lines();
                let message = format!("the server of {key} ended while it started");
                return Err(Failure::transient(FailureKind::StartFailed, message).with_evidence(evidence));
            }
        }
        kill_point("create-server-answers");
        owner::set_owner_password(&server.target(record.port)?, &record.spec, &deployment.password).await?;
        kill_point("create-password-set");
        record.provisioned = true;
        instance.write_record(&record).await?;
        kill_point("create-provisioned");
        Ok(())
    }

    /// Gives the record a port on which nobody else listens, and writes it down.
    async fn claim_port(&self, instance: &Instance, record: &mut Record, unusable: &mut Vec<u16>) -> Result<(), Failure> {
        loop {
            let port = self.ports.claim(&record.key, self.common.host.port_range.clone(), unusable).await?;
            let running = instance.server.find();
            if port != record.port
                && let Some(running) = &running
            {
                running.stop(STOP_TIMEOUT).await?;
            }
            let is_ours = running.is_some() && port == record.port;
            let account = self.common.host.account();
            if account.separates && is_somebodys(account.of_port(port).0) {
                tracing::warn!(instance = %record.key, port, "the instance's user id is somebody's; taking another port");
                unusable.push(port);
                continue;
            }
            if is_ours || is_free(port) || unusable.len() >= PORT_ATTEMPTS {
                record.port = port;
                break;
            }
            unusable.push(port);
            // Another program may have many: they are looked for at once, not one by one with the store.
            let range = self.common.host.port_range.clone();
            unusable.extend(blocking(move || Ok(range.filter(|port| !is_free(*port)).collect::<Vec<_>>())).await?);
        }
        let (home, record) = (instance.home().to_owned(), record.clone());
        let account = self.common.host.account();
        let passable = if account.switches { 0o711 } else { 0o700 };
        let (mode, owner) = account.passable_by(account.of_port(record.port));
        blocking(move || {
            let is_new = !home.exists();
            if let Some(namespace) = home.parent() {
                make_folder(namespace, passable, None)?;
            }
            make_folder(&home, mode, owner)?;
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

    /// Puts a data directory in its place if there is none, and gives it to the user of the instance with that port.
    async fn place_data(
        &self,
        instance: &Instance,
        port: u16,
        programs: &Programs,
        directory: Option<Directory>,
    ) -> Result<(), Failure> {
        let server = instance.server.clone();
        let finished = match (data_gone(&server).await, directory) {
            (None, _) => None,
            (Some(_), Some(finished)) => Some(finished),
            (Some(_), None) => Some(self.common.host.pool.take(programs).await?),
        };
        let surroundings = self.common.host.surroundings.clone();
        blocking(move || {
            let (data, account) = (server.data(), &surroundings.account);
            if let Some(finished) = finished {
                // Nothing was ever kept in what isn't a data directory of an unprovisioned instance.
                remove_tree(&data)?;
                finished.place(&data)?;
            }
            let (of_before, owner) = (server.owner(), account.of_port(port));
            if of_before == owner {
                return Ok(());
            }
            kill_point("create-data-not-given");
            for (uid, _) in [of_before, owner] {
                if is_instances(uid) {
                    end_all_of(uid)?;
                }
            }
            // They are the former user's to read.
            server.remove_configuration()?;
            give(&data, (account.uid, account.gid), owner).map_err(failed("give its user", &data))
        })
        .await
    }
}

/// The version to make: what the record says, if it is what `spec` asks for.
fn wanted_version(Deployment { key, spec, .. }: &Deployment, record: Option<&Record>) -> Result<PostgresVersion, Failure> {
    match record {
        None => Ok(spec.postgres_version),
        Some(record) if spec.postgres_version.accepts(record.postgres_version) => Ok(record.postgres_version),
        Some(record) => Err(Failure::permanent(
            FailureKind::Conflict,
            format!(
                "postgres_version: {key} is there already with PostgreSQL {}, and {} was asked for; nothing was changed. \
                 Choose another name, or delete it first",
                record.postgres_version, spec.postgres_version
            ),
        )
        .with_field("postgres_version")),
    }
}

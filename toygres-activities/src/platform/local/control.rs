//! The control database: where toygres keeps its metadata and its workflows' state, unless told to
//! use another one.
//!
//! A server like any instance's, by the same code, but with no network: only its socket.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use toygres_models::connection::USER;
use toygres_models::{Failure, FailureKind};

use super::files::{blocking, lock, remove_tree, sync_directory};
use super::pool::Pool;
use super::programs::Programs;
use super::programs::versions::Versions;
use super::server::process::Postmaster;
use super::server::settings::Role;
use super::server::supervisor::{Charge, keep_running};
use super::server::{Server, StartFailure, Surroundings, major_of};

/// The number in its socket's name. It opens no TCP port.
const PORT: u16 = 5432;
/// How long recovery after a crash may take before the start of toygres gives up waiting.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a clean stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// The control database, as its clients need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlServer {
    /// The folder of its socket.
    pub socket_dir: PathBuf,
    /// The port number in the socket's name; it listens on no network.
    pub port: u16,
    /// The superuser; the socket asks for no password.
    pub user: String,
}

pub(super) struct Control {
    server: Arc<Server>,
    surroundings: Arc<Surroundings>,
    supervision: Mutex<Option<CancellationToken>>,
}

impl Control {
    pub(super) fn new(state_dir: &Path, surroundings: Arc<Surroundings>) -> Self {
        let home = state_dir.join("control");
        let server = Server::new("toygres control database".into(), home, Role::Control, surroundings.clone());
        Self { server: Arc::new(server), surroundings, supervision: Mutex::default() }
    }

    pub(super) async fn start(&self, versions: &Versions, pool: &Arc<Pool>) -> Result<ControlServer, Failure> {
        let programs = {
            let _guard = self.server.lock().await;
            let data = self.server.data();
            let programs = match major_of(&data) {
                Some(major) => {
                    let version = major.to_string().parse().map_err(|_| {
                        let message = format!(
                            "the control database in {} is PostgreSQL {major}'s, which this toygres doesn't know",
                            data.display()
                        );
                        Failure::permanent(FailureKind::Platform, message)
                    })?;
                    versions.obtain_for(version, None).await?
                }
                None => self.initialise(versions, pool).await?,
            };
            let postmaster = self.server.start(&programs, PORT).await.map_err(|start| start.failure)?;
            match self.server.wait_answer(&postmaster, PORT, START_TIMEOUT).await {
                Ok(true) => {}
                Ok(false) => {
                    let message = format!(
                        "the control database still recovers after {} s; it goes on, try again later",
                        START_TIMEOUT.as_secs()
                    );
                    return Err(Failure::transient(FailureKind::TimedOut, message));
                }
                Err(()) => {
                    let evidence = self.server.log().last_lines();
                    let message = "the control database ended while it started; its log has the reason";
                    return Err(Failure::transient(FailureKind::StartFailed, message).with_evidence(evidence));
                }
            }
            programs
        };
        let stop = CancellationToken::new();
        if let Some(earlier) = lock(&self.supervision).replace(stop.clone()) {
            earlier.cancel();
        }
        tokio::spawn(keep_running(Arc::new(Kept { server: self.server.clone(), programs }), stop));
        Ok(ControlServer { socket_dir: self.surroundings.socket_dir.clone(), port: PORT, user: USER.into() })
    }

    async fn initialise(&self, versions: &Versions, pool: &Arc<Pool>) -> Result<Programs, Failure> {
        let programs = versions.obtain(versions.resolve(None).await?).await?;
        let directory = pool.take(&programs).await?;
        let (home, data) = (self.server.home.clone(), self.server.data());
        blocking(move || {
            // It has no PG_VERSION, so it never held anything.
            remove_tree(&data)?;
            directory.place(&data)?;
            sync_directory(&home)
        })
        .await?;
        Ok(programs)
    }

    /// Leaves it running, but no longer restarts it.
    pub(super) fn release(&self) {
        if let Some(supervision) = lock(&self.supervision).take() {
            supervision.cancel();
        }
    }

    pub(super) async fn stop(&self) -> Result<(), Failure> {
        let _guard = self.server.lock().await;
        self.release();
        match self.server.search() {
            Some(postmaster) => postmaster.stop(STOP_TIMEOUT).await,
            None => Ok(()),
        }
    }
}

struct Kept {
    server: Arc<Server>,
    programs: Programs,
}

#[async_trait]
impl Charge for Kept {
    fn server(&self) -> &Arc<Server> {
        &self.server
    }

    async fn start(&self) -> Result<Option<Arc<Postmaster>>, StartFailure> {
        self.server.start(&self.programs, PORT).await.map(Some)
    }

    fn report(&self, kind: &'static str, message: String, healthy: bool) {
        // There is no store to write events to while it is down; the log is the place.
        if healthy {
            tracing::info!(event = kind, "{message}");
        } else {
            tracing::error!(event = kind, "{message}");
        }
    }

    async fn tend(&self) {
        let (server, major) = (self.server.clone(), self.programs.postgres_version.major());
        let _ = blocking(move || {
            server.tend(major);
            Ok(())
        })
        .await;
    }
}

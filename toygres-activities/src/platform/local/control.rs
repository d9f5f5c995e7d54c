//! The control database: where toygres keeps its metadata and its workflows' state, unless told to
//! use another one.
//!
//! A server like any instance's, by the same code, but with no network: only its socket, which asks for a password.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use toygres_models::{Failure, FailureKind, Password};

use super::files::{
    Durability, blocking, failed, lock, make_folder, names_in, remove_file, remove_tree, sync_directory, write_whole,
};
use super::pool::initdb;
use super::programs::Programs;
use super::programs::archives::sync_all;
use super::programs::versions::Versions;
use super::server::process::Postmaster;
use super::server::supervisor::{Charge, keep_running};
use super::server::{Server, StartFailure, Surroundings};
use crate::platform::session::TOYGRES;

/// The number in its socket's name. It opens no TCP port.
const PORT: u16 = 5432;
/// How long recovery after a crash may take before the start of toygres gives up waiting.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a clean stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// In its folder: the superuser's password, which only our own user may read.
const PASSWORD_FILE: &str = "password";

/// The control database, as its clients need it.
#[derive(Debug, Clone)]
pub struct ControlServer {
    /// The folder of its socket.
    pub socket_dir: PathBuf,
    /// The port number in the socket's name; it listens on no network.
    pub port: u16,
    /// The superuser.
    pub user: String,
    /// Its password.
    pub password: SecretString,
}

pub(super) struct Control {
    server: Arc<Server>,
    password: SecretString,
    surroundings: Arc<Surroundings>,
    supervision: Mutex<Option<CancellationToken>>,
}

impl Control {
    /// That of a state directory, whose password is made with the first one.
    pub(super) fn open(state_dir: &Path, surroundings: Arc<Surroundings>) -> Result<Self, Failure> {
        let home = state_dir.join("control");
        let password = password_of(&home)?;
        let server = Server::control(home, password.clone(), surroundings.clone());
        Ok(Self { server: Arc::new(server), password, surroundings, supervision: Mutex::default() })
    }

    pub(super) async fn start(&self, versions: &Versions) -> Result<ControlServer, Failure> {
        let programs = {
            let _guard = self.server.lock().await;
            let data = self.server.data();
            let found = self.server.clone();
            let programs = match blocking(move || Ok(found.major())).await? {
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
                None => self.initialise(versions).await?,
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
        Ok(ControlServer {
            socket_dir: self.surroundings.socket_dir.clone(),
            port: PORT,
            user: TOYGRES.into(),
            password: self.password.clone(),
        })
    }

    async fn initialise(&self, versions: &Versions) -> Result<Programs, Failure> {
        let programs = versions.obtain(versions.newest().await?).await?;
        let account = self.surroundings.account.clone();
        let (home, data) = (self.server.home.clone(), self.server.data());
        let (building, verifier_file) = (home.join("building"), home.join("verifier"));
        // The password itself is nothing for the servers' account. PostgreSQL takes the verifier in its place.
        let verifier = postgres_protocol::password::scram_sha_256(self.password.expose_secret().as_bytes());
        let (made, written, owner) = (building.clone(), verifier_file.clone(), account.clone());
        let found = data.clone();
        blocking(move || {
            // It comes into its place whole. What is there, and can't be read as a database, is somebody's nevertheless.
            if !names_in(&found)?.is_empty() {
                return Err(unreadable(&found));
            }
            remove_tree(&made)?;
            make_folder(&made, 0o700, owner.owner())?;
            let (mode, owner) = owner.readable_by((owner.uid, owner.gid));
            write_whole(&written, verifier.as_bytes(), mode, owner, Durability::Repairable)
        })
        .await?;
        initdb(&account, &programs, &building, Some(&verifier_file)).await?;
        blocking(move || {
            remove_file(&verifier_file)?;
            sync_all(&building)?;
            std::fs::rename(&building, &data).map_err(failed("rename", &building))?;
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

/// The failure of a control database that is there, though not as one. It is never made anew.
fn unreadable(data: &Path) -> Failure {
    let message = format!(
        "the data directory {} of the control database has no PG_VERSION that the servers' user owns; nothing was changed. Put that \
         file, or its owner, back; or move the folder elsewhere to begin with an empty one, and have the instances registered again \
         by `toygres adopt`",
        data.display()
    );
    Failure::permanent(FailureKind::StartFailed, message)
}

/// Reads the password in the control database's folder, or makes one.
fn password_of(home: &Path) -> Result<SecretString, Failure> {
    let path = home.join(PASSWORD_FILE);
    match std::fs::read_to_string(&path) {
        Ok(password) if !password.trim().is_empty() => return Ok(password.trim().into()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", &path)(error)),
    }
    if home.join("data").exists() {
        let message = format!(
            "the password of the control database is gone: {} is missing, and its data is intact; nothing was changed. Put the \
             file back from a copy",
            path.display()
        );
        return Err(Failure::permanent(FailureKind::NotFound, message));
    }
    let password = Password::generate();
    write_whole(&path, password.expose_secret().as_bytes(), 0o600, None, Durability::Synced)?;
    Ok(password)
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

//! One data directory and the server on it: configured, started, found again, watched, stopped.
//!
//! Instances and the control database use the same code. A task that starts, stops or removes one holds it
//! ([`Server::lock`]) against other tasks; looking needs no lock. No other process works on the state
//! directory.

mod launch;
pub(in crate::platform::local) mod leftovers;
pub(in crate::platform::local) mod process;
pub(in crate::platform::local) mod settings;
pub(in crate::platform::local) mod supervisor;
pub(in crate::platform::local) mod tls;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use toygres_models::{Failure, FailureKind};

use crate::platform::certificates::CertificateAuthority;
use crate::platform::local::account::Account;
use crate::platform::local::files::{Owner, blocking, converge, lock, names_in, remove_file};
use crate::platform::local::logs::files::{Position, ServerLog};
use crate::platform::local::programs::Programs;
use crate::platform::local::tenant_file;
use crate::platform::session::connection::{Address, Target};
use crate::platform::session::{self, WayIn};
use process::Postmaster;
use settings::Role;

/// How long a start waits for the server before it goes on in the background. Recovery after a
/// crash can take longer.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last server's processes may take to let go of the data directory.
const INTERLOCK_TIMEOUT: Duration = Duration::from_secs(8);
/// How often a starting server is looked at.
const POLL: Duration = Duration::from_millis(3);

/// What every server of a state directory shares.
pub(in crate::platform::local) struct Surroundings {
    pub(in crate::platform::local) account: Arc<Account>,
    /// The folder of the control database's socket.
    pub(in crate::platform::local) socket_dir: PathBuf,
    /// What signs the instances' certificates.
    pub(in crate::platform::local) ca: CertificateAuthority,
    pub(in crate::platform::local) way_in: WayIn,
}

pub(in crate::platform::local) struct Server {
    /// What a person calls it.
    pub(in crate::platform::local) label: String,
    pub(in crate::platform::local) home: PathBuf,
    role: Role,
    /// The control database's.
    password: Option<SecretString>,
    surroundings: Arc<Surroundings>,
    /// Held by the task that starts, stops or removes it.
    turn: tokio::sync::Mutex<()>,
    current: Mutex<Option<Arc<Postmaster>>>,
    last_failure: Mutex<Option<Failure>>,
    removing: AtomicUsize,
}

/// Why a server did not start, as far as its starter can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::platform::local) enum Cause {
    /// Another program has its port.
    PortTaken,
    /// The last server on the directory hasn't let go yet.
    Interlock,
    Other,
}

#[derive(Debug, Clone)]
pub(in crate::platform::local) struct StartFailure {
    pub(in crate::platform::local) cause: Cause,
    pub(in crate::platform::local) failure: Failure,
}

impl From<Failure> for StartFailure {
    fn from(failure: Failure) -> Self {
        Self { cause: Cause::Other, failure }
    }
}

/// The right to start, stop or remove a server, until it is dropped.
pub(in crate::platform::local) type Guard<'a> = tokio::sync::MutexGuard<'a, ()>;

/// Counts a removal as long as it is at work.
pub(in crate::platform::local) struct Removing<'a>(&'a Server);

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        self.0.removing.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Server {
    /// An instance's, whose data directory is in `home`.
    pub(in crate::platform::local) fn instance(label: String, home: PathBuf, surroundings: Arc<Surroundings>) -> Self {
        Self::new(label, home, Role::Instance, None, surroundings)
    }

    /// The control database's, with the superuser's password.
    pub(in crate::platform::local) fn control(home: PathBuf, password: SecretString, surroundings: Arc<Surroundings>) -> Self {
        Self::new("toygres control database".into(), home, Role::Control, Some(password), surroundings)
    }

    fn new(label: String, home: PathBuf, role: Role, password: Option<SecretString>, surroundings: Arc<Surroundings>) -> Self {
        Self {
            label,
            home,
            role,
            password,
            surroundings,
            turn: tokio::sync::Mutex::default(),
            current: Mutex::default(),
            last_failure: Mutex::default(),
            removing: AtomicUsize::new(0),
        }
    }

    pub(in crate::platform::local) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    pub(in crate::platform::local) fn log(&self) -> ServerLog {
        ServerLog::new(&self.home, self.surroundings.account.clone())
    }

    /// Whom it runs as: the user and group that its data belongs to.
    pub(in crate::platform::local) fn owner(&self) -> Owner {
        self.surroundings.account.of_folder(&self.data())
    }

    fn uid(&self) -> u32 {
        self.owner().0
    }

    /// Ends what a server that is dead left running.
    pub(in crate::platform::local) fn end_orphans(&self) {
        process::end_orphans(&self.data(), self.uid());
    }

    /// The major version of its data; `None` if there is none.
    pub(in crate::platform::local) fn major(&self) -> Option<u16> {
        major_of(&self.data(), self.uid())
    }

    pub(in crate::platform::local) fn data_is_gone(&self) -> Failure {
        let data = self.data();
        // What can't be looked at may be there as well.
        let is_empty = names_in(&data).is_ok_and(|names| names.is_empty());
        let message = match is_empty {
            true => {
                format!("the data directory {} of {} is gone or broken; put it back from a backup", data.display(), self.label)
            }
            false => format!(
                "the data directory {} of {} has no PG_VERSION that its server could read; its other files are there, and nothing was \
                 changed. Put that file back, or the owner and mode of what bars the way to it",
                data.display(),
                self.label
            ),
        };
        Failure::permanent(FailureKind::StartFailed, message)
    }

    /// How toygres logs in.
    pub(in crate::platform::local) fn target(&self, port: u16) -> Result<Target, Failure> {
        let Some(password) = &self.password else { return self.surroundings.way_in.target("127.0.0.1", port) };
        let mut config = session::config();
        config.password(password.expose_secret());
        let address = Address::Socket(self.surroundings.socket_dir.join(format!(".s.PGSQL.{port}")));
        Ok(Target { address, config, tls: None })
    }

    /// Why it isn't up, if the last start failed.
    pub(in crate::platform::local) fn last_failure(&self) -> Option<Failure> {
        lock(&self.last_failure).clone()
    }

    pub(in crate::platform::local) fn set_last_failure(&self, failure: Option<Failure>) {
        *lock(&self.last_failure) = failure;
    }

    /// Announces a removal, so that a start at work ends soon.
    pub(in crate::platform::local) fn announce_removal(&self) -> Removing<'_> {
        self.removing.fetch_add(1, Ordering::SeqCst);
        Removing(self)
    }

    pub(in crate::platform::local) fn is_being_removed(&self) -> bool {
        self.removing.load(Ordering::SeqCst) > 0
    }

    /// Waits until nobody else starts, stops or removes it.
    pub(in crate::platform::local) async fn lock(&self) -> Guard<'_> {
        self.turn.lock().await
    }

    /// The same for a removal: a start at work is ended, not waited for.
    pub(in crate::platform::local) async fn lock_to_remove(&self) -> Result<Guard<'_>, Failure> {
        if let Ok(guard) = self.turn.try_lock() {
            return Ok(guard);
        }
        if let Some(starting) = self.current() {
            starting.signal(rustix::process::Signal::INT)?;
        }
        Ok(self.turn.lock().await)
    }

    /// The server that is known to run.
    pub(in crate::platform::local) fn current(&self) -> Option<Arc<Postmaster>> {
        lock(&self.current).clone().filter(|postmaster| !postmaster.has_exited())
    }

    /// The server that runs: the known one, or one that an earlier toygres started.
    pub(in crate::platform::local) fn find(&self) -> Option<Arc<Postmaster>> {
        self.current().or_else(|| self.adopt(Postmaster::find(&self.data(), self.uid())?))
    }

    /// Like [`find`](Self::find), also where somebody removed the data directory under a server.
    pub(in crate::platform::local) fn search(&self) -> Option<Arc<Postmaster>> {
        let found = self.find();
        if found.is_some() || self.data().join("postmaster.pid").exists() {
            return found;
        }
        self.adopt(Postmaster::search(&self.data(), self.uid())?)
    }

    fn adopt(&self, postmaster: Postmaster) -> Option<Arc<Postmaster>> {
        let mut current = lock(&self.current);
        // Another look may have been faster.
        if let Some(known) = current.as_ref().filter(|known| !known.has_exited()) {
            return Some(known.clone());
        }
        tracing::info!(server = %self.label, process.id = postmaster.pid(), "found a running server");
        *current = Some(Arc::new(postmaster));
        current.clone()
    }

    /// Writes the configuration files and the certificate where they aren't as they should be.
    /// `true` if any of them is a new one.
    pub(in crate::platform::local) fn configure(&self, major: u16) -> Result<bool, Failure> {
        let (mode, owner) = self.surroundings.account.readable_by(self.owner());
        let conf = settings::conf(self.role, major, &self.label, &self.home, self.log().current()?);
        let mut is_new = false;
        for (name, text) in [(settings::CONF_FILE, conf), (settings::HBA_FILE, settings::hba(self.role))] {
            is_new |= converge(&self.home.join(name), text.as_bytes(), mode, owner)?;
        }
        if self.role == Role::Instance {
            is_new |= self.surroundings.ca.certify(&self.home, mode, owner)?;
        }
        Ok(is_new)
    }

    /// Names the libraries that an instance's server loads when it starts, as far as its build has them.
    fn preload(&self, bin_dir: &Path) -> Result<(), Failure> {
        if self.role == Role::Control {
            return Ok(());
        }
        let (mode, owner) = self.surroundings.account.readable_by(self.owner());
        converge(&self.home.join(settings::PRELOAD_FILE), settings::preload(bin_dir).as_bytes(), mode, owner).map(drop)
    }

    /// Removes what [`configure`](Self::configure) and [`preload`](Self::preload) wrote.
    pub(in crate::platform::local) fn remove_configuration(&self) -> Result<(), Failure> {
        for name in [settings::CONF_FILE, settings::PRELOAD_FILE, settings::HBA_FILE, tls::CERTIFICATE_FILE, tls::KEY_FILE] {
            remove_file(&self.home.join(name))?;
        }
        Ok(())
    }

    /// Starts it unless it runs, and waits a little until it answers. The caller holds it.
    pub(in crate::platform::local) async fn start(
        self: &Arc<Self>,
        programs: &Programs,
        port: u16,
    ) -> Result<Arc<Postmaster>, StartFailure> {
        if let Some(running) = self.find() {
            self.settle(programs, &running, port, Position::default()).await?;
            return Ok(running);
        }
        self.surroundings.account.check_reaches(&programs.bin_dir, "the PostgreSQL programs in")?;
        let (server, major, bin_dir) = (self.clone(), programs.postgres_version.major(), programs.bin_dir.clone());
        blocking(move || {
            server.check_data(major)?;
            // First, so that the configuration names the file that there is.
            server.log().open_to_append()?;
            server.configure(major)?;
            server.preload(&bin_dir)?;
            server.clear_stale_locks(port)
        })
        .await?;
        let begun = Instant::now();
        loop {
            if self.is_being_removed() {
                let message = format!("the start of {} was given up, as it is being deleted", self.label);
                return Err(Failure::permanent(FailureKind::Superseded, message).into());
            }
            let log_end = self.log().end();
            let postmaster = Arc::new(self.spawn(programs, port)?);
            *lock(&self.current) = Some(postmaster.clone());
            match self.settle(programs, &postmaster, port, log_end).await {
                Ok(()) => return Ok(postmaster),
                Err(StartFailure { cause: Cause::Interlock, .. }) if begun.elapsed() < INTERLOCK_TIMEOUT => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    if let Some(running) = Postmaster::find(&self.data(), self.uid()).and_then(|found| self.adopt(found)) {
                        self.settle(programs, &running, port, log_end).await?;
                        return Ok(running);
                    }
                    let server = self.clone();
                    blocking(move || {
                        server.end_orphans();
                        Ok(())
                    })
                    .await?;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    fn check_data(&self, major: u16) -> Result<(), Failure> {
        match self.major() {
            Some(found) if found == major => Ok(()),
            Some(found) => Err(Failure::permanent(
                FailureKind::Platform,
                format!(
                    "the data of {} is PostgreSQL {found}'s, and the programs are PostgreSQL {major}'s; nothing was changed",
                    self.label
                ),
            )),
            None => Err(self.data_is_gone()),
        }
    }

    /// Removes lock files that name processes which aren't servers: PostgreSQL itself only asks
    /// whether a process of that id exists, and ids are reused. The caller knows that no server
    /// runs on this data directory; PostgreSQL's interlock by shared memory stays in force.
    fn clear_stale_locks(&self, port: u16) -> Result<(), Failure> {
        let data = self.data();
        if remove_file(&data.join("postmaster.pid"))? {
            tracing::info!(server = %self.label, "removed a postmaster.pid that no running server owns");
        }
        if self.role == Role::Control {
            for name in [format!(".s.PGSQL.{port}"), format!(".s.PGSQL.{port}.lock")] {
                remove_file(&self.surroundings.socket_dir.join(name))?;
            }
        }
        Ok(())
    }

    /// Waits until a server answers, ends, or has been waited for long enough. The log's part from
    /// `log_begin` on is its own.
    async fn settle(
        &self,
        programs: &Programs,
        postmaster: &Postmaster,
        port: u16,
        log_begin: Position,
    ) -> Result<(), StartFailure> {
        match self.wait_answer(postmaster, port, START_TIMEOUT).await {
            Ok(_) => Ok(()),
            Err(()) => Err(self.explain_start(programs, postmaster, port, log_begin).await),
        }
    }

    /// `Ok(true)` when it answers, `Ok(false)` when it doesn't yet after `patience`, `Err` when it ended.
    pub(in crate::platform::local) async fn wait_answer(
        &self,
        postmaster: &Postmaster,
        port: u16,
        patience: Duration,
    ) -> Result<bool, ()> {
        let deadline = Instant::now() + patience;
        loop {
            if postmaster.has_exited() {
                return Err(());
            }
            if postmaster.has_answered() {
                return Ok(true);
            }
            if postmaster.is_ready() {
                match session::answers(&self.target(port).map_err(drop)?).await {
                    Ok(()) => {
                        postmaster.set_answered();
                        return Ok(true);
                    }
                    Err(failure) if !failure.retryable => {
                        self.set_last_failure(Some(failure));
                        return Ok(false);
                    }
                    Err(_) => {}
                }
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::select! {
                () = postmaster.exited() => return Err(()),
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Bounds the log, and renews the certificate where it is time.
    pub(in crate::platform::local) fn tend(&self, major: u16) {
        // Not while it starts: a signal to read its files anew would kill it.
        let Some(postmaster) = self.current().filter(|postmaster| postmaster.is_ready()) else { return };
        let tended = self.configure(major).and_then(|is_new| {
            if is_new {
                tracing::info!(server = %self.label, "gave the server another log file, certificate or configuration");
                postmaster.signal(rustix::process::Signal::HUP)?;
            }
            self.log().remove_old()
        });
        if let Err(failure) = tended {
            tracing::warn!(server = %self.label, error = %failure, "could not bound the log or renew the certificate");
        }
    }
}

/// Whether a server could listen on the port now.
pub(in crate::platform::local) fn is_free(port: u16) -> bool {
    why_not_free(port).is_none()
}

/// Why no server could listen on the port now.
pub(in crate::platform::local) fn why_not_free(port: u16) -> Option<std::io::Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).err()
}

/// The major version of a data directory; `None` if it isn't a whole one.
pub(in crate::platform::local) fn major_of(data: &Path, uid: u32) -> Option<u16> {
    tenant_file::read(data, "PG_VERSION", uid).ok()??.trim().parse().ok()
}

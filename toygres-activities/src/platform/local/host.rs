//! What the local platform needs before there is any metadata store: folders, the run-as user, the
//! CA, programs, the pool of data directories, and the control database.

use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toygres_models::{Failure, FailureKind};

use super::LocalConfig;
use super::account::{Account, Missing};
use super::control::{Control, ControlServer};
use super::files::{Durability, blocking, failed, make_folder, write_whole};
use super::pool::Pool;
use super::programs::archives::FetchProgress;
use super::programs::versions::Versions;
use super::server::Surroundings;
use crate::platform::certificates::{CertificateAuthority, Signs};
use crate::platform::session::WayIn;

/// Longest path of a Unix socket: what `sun_path` holds, less the NUL.
const MAX_SOCKET_PATH_BYTES: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The machine's side of the local platform.
pub struct LocalHost {
    pub(super) state_dir: PathBuf,
    machine_id: String,
    cache_dir: PathBuf,
    pub(super) port_range: RangeInclusive<u16>,
    pub(super) surroundings: Arc<Surroundings>,
    pub(super) versions: Versions,
    pub(super) pool: Arc<Pool>,
    pub(super) control: Control,
}

impl LocalHost {
    /// Makes the folders, the CA and, as root, the run-as user, or checks those that are there.
    ///
    /// # Errors
    /// Says which folder can't be used and why: read-only, full, somebody else's, out of the run-as
    /// user's reach, or too long for a socket.
    pub async fn open(config: LocalConfig) -> Result<Arc<Self>, Failure> {
        check_port_range(&config.port_range)?;
        let state_dir = std::path::absolute(&config.state_dir).map_err(failed("find", &config.state_dir))?;
        let cache_dir = std::path::absolute(&config.cache_dir).map_err(failed("find", &config.cache_dir))?;
        check_owner(&state_dir)?;
        let account = Arc::new(Account::choose(config.run_as_user.as_deref(), &state_dir, Missing::Create).await?);
        let made_account = account.clone();
        let (state_dir, cache_dir, machine_id, surroundings, control) = blocking(move || {
            let (state_dir, cache_dir) = make_folders(&state_dir, &cache_dir, &made_account)?;
            let ca = CertificateAuthority::open(&state_dir, Signs::Instances)?;
            let way_in = WayIn::new(&ca, CertificateAuthority::open(&state_dir, Signs::Clients)?);
            let machine_id = machine_id(&state_dir)?;
            let surroundings = Arc::new(Surroundings { account: made_account, socket_dir: state_dir.join("run"), ca, way_in });
            let control = Control::open(&state_dir, surroundings.clone())?;
            Ok((state_dir, cache_dir, machine_id, surroundings, control))
        })
        .await?;
        let pool = Pool::new(state_dir.join("pool"), account, config.pool_size);
        let versions = Versions::new(&cache_dir, &state_dir, config.default_version);
        let (leftover_pool, leftover_archives) = (pool.clone(), versions.archives.clone());
        tokio::task::spawn_blocking(move || {
            leftover_pool.remove_leftovers();
            leftover_archives.remove_leftovers();
        });
        Ok(Arc::new(Self {
            control,
            state_dir,
            machine_id,
            cache_dir,
            port_range: config.port_range,
            surroundings,
            versions,
            pool,
        }))
    }

    /// The certificate of the CA that signed every instance's, readable by all.
    #[must_use]
    pub fn ca_certificate_path(&self) -> &Path {
        self.surroundings.ca.certificate_path()
    }

    /// Whom the servers run as.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.surroundings.account
    }

    /// What tells this machine (strictly: this state directory) from others that share a metadata
    /// store: its host's name when it was first used, and something random.
    #[must_use]
    pub fn machine_id(&self) -> &str {
        &self.machine_id
    }

    /// The folder with the instances and everything else that has to last.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The folder with fetched programs.
    #[must_use]
    pub fn cache_dir(&self) -> &Path {
        &self.cache_dir
    }

    /// Begins to keep data directories ready for the version that a create takes by default. Does nothing
    /// where no PostgreSQL is at hand.
    pub fn warm_pool(self: &Arc<Self>) {
        let host = self.clone();
        tokio::spawn(async move {
            let at_hand = host.versions.at_hand().await;
            if let Some(programs) = host.versions.default_of(&at_hand).await {
                host.pool.warm(programs);
            }
            let pool = host.pool.clone();
            tokio::task::spawn_blocking(move || pool.take_over(&at_hand));
        });
    }

    /// How many data directories are ready for instances to come.
    #[must_use]
    pub fn pooled_directories(&self) -> usize {
        self.pool.ready()
    }

    /// The fetches of PostgreSQL builds at work.
    #[must_use]
    pub fn fetches(&self) -> Vec<FetchProgress> {
        self.versions.archives.fetches()
    }

    /// Starts the control database, or finds it running, and keeps it running until
    /// [`stop_control`](Self::stop_control).
    ///
    /// # Errors
    /// With the server's own words if it doesn't start.
    pub async fn start_control(&self) -> Result<ControlServer, Failure> {
        self.control.start(&self.versions).await
    }

    /// Stops the control database cleanly. No error if it doesn't run.
    ///
    /// # Errors
    /// If its process can't be ended.
    pub async fn stop_control(&self) -> Result<(), Failure> {
        self.control.stop().await
    }

    /// Stops the background work; servers run on.
    pub fn shutdown(&self) {
        self.pool.stop();
        self.control.release();
    }
}

impl Drop for LocalHost {
    fn drop(&mut self) {
        self.shutdown();
    }
}

pub(super) fn check_port_range(range: &RangeInclusive<u16>) -> Result<(), Failure> {
    if range.is_empty() || *range.start() < 1024 {
        return Err(Failure::permanent(
            FailureKind::InvalidInput,
            format!(
                "port_range: {}-{} can't be used; give a lowest and a highest port from 1024 to 65535, such as 20000-29999",
                range.start(),
                range.end()
            ),
        ));
    }
    Ok(())
}

pub(super) fn check_socket_path(state_dir: &Path) -> Result<(), Failure> {
    let socket = state_dir.join("run/.s.PGSQL.29999.lock");
    let Some(text) = socket.to_str().filter(|text| !text.chars().any(char::is_control)) else {
        return Err(Failure::permanent(
            FailureKind::InvalidInput,
            format!("state_dir: {} has characters that PostgreSQL can't have in a path; choose another one", state_dir.display()),
        ));
    };
    let length = text.len() - ".lock".len();
    if length > MAX_SOCKET_PATH_BYTES {
        return Err(Failure::permanent(
            FailureKind::InvalidInput,
            format!(
                "state_dir: {} is too long: the path of a socket in it has {length} bytes, and the system takes at most {MAX_SOCKET_PATH_BYTES}; \
                 choose one that is {} bytes shorter",
                state_dir.display(),
                length - MAX_SOCKET_PATH_BYTES
            ),
        ));
    }
    Ok(())
}

/// Refuses a state directory of another user: its servers are that user's, and so are its secrets.
pub(super) fn check_owner(state_dir: &Path) -> Result<(), Failure> {
    let own = rustix::process::geteuid().as_raw();
    match std::fs::metadata(state_dir) {
        Ok(found) if found.uid() != own => Err(Failure::permanent(
            FailureKind::Platform,
            format!(
                "the state directory {} belongs to the user with id {}, and toygres runs as the one with id {own}; nothing was changed. \
                 Run toygres as that user, or choose another state directory",
                state_dir.display(),
                found.uid()
            ),
        )),
        Ok(found) if !found.is_dir() => Err(Failure::permanent(
            FailureKind::Platform,
            format!("the state directory {} is not a folder; choose another one", state_dir.display()),
        )),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("read", state_dir)(error)),
    }
}

/// Reads the state directory's id, which is made once.
fn machine_id(state_dir: &Path) -> Result<String, Failure> {
    let path = state_dir.join("id");
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", &path)(error)),
    }
    let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host_name: String = host_name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).take(64).collect();
    let id = format!("{host_name}/{}", uuid::Uuid::new_v4());
    write_whole(&path, format!("{id}\n").as_bytes(), 0o644, None, Durability::Synced)?;
    Ok(id)
}

/// Makes the folders of a state directory; their real paths, without links.
fn make_folders(state_dir: &Path, cache_dir: &Path, account: &Account) -> Result<(PathBuf, PathBuf), Failure> {
    // Passable by the run-as user, but not readable.
    let passable = if account.switches { 0o711 } else { 0o700 };
    check_socket_path(state_dir)?;
    if state_dir.exists() {
        make_folder(state_dir, passable, None)?;
    } else {
        // Parents that toygres makes are ordinary folders, the last one is its own.
        std::fs::create_dir_all(state_dir).map_err(failed("create the folder", state_dir))?;
        make_folder(state_dir, passable, None)?;
    }
    let state_dir = state_dir.canonicalize().map_err(failed("find", state_dir))?;
    check_socket_path(&state_dir)?;
    account.check_reaches(&state_dir, "the state directory")?;
    make_folder(&state_dir.join("instances"), passable, None)?;
    let (mode, owner) = account.passable_by((account.uid, account.gid));
    for folder in ["pool", "control"] {
        make_folder(&state_dir.join(folder), mode, owner)?;
    }
    let run = state_dir.join("run");
    if let Ok(found) = std::fs::metadata(&run)
        && account.switches
        && found.uid() != account.uid
    {
        return Err(Failure::permanent(
            FailureKind::InvalidInput,
            format!(
                "run_as_user: the servers of {} run as the user with id {}, not as {:?}; nothing was changed. Name that user, \
                 or choose another state directory",
                state_dir.display(),
                found.uid(),
                account.name
            ),
        ));
    }
    make_folder(&run, 0o700, account.owner())?;
    if !cache_dir.exists() {
        make_folder(cache_dir, 0o755, None)?;
    }
    let cache_dir = cache_dir.canonicalize().map_err(failed("find", cache_dir))?;
    Ok((state_dir, cache_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_path_that_no_socket_fits_in() {
        assert!(check_socket_path(Path::new("/var/lib/toygres")).is_ok());
        let failure = check_socket_path(&Path::new("/").join("x".repeat(90))).unwrap_err();
        assert!(failure.message.contains("bytes shorter"), "{failure}");
        assert!(check_socket_path(Path::new("/a\nb")).is_err());
    }

    #[test]
    fn refuses_ports_that_are_not_there() {
        assert!(check_port_range(&(20_000..=29_999)).is_ok());
        assert!(check_port_range(&(80..=90)).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
        let reversed = 30_000..=20_000;
        assert!(check_port_range(&reversed).is_err());
    }
}

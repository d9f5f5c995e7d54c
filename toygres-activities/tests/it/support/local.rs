//! The local platform as a subject: a state directory of its own, gone with its servers afterwards.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
use toygres_activities::platform::Platform;
use toygres_activities::platform::local::programs::Programs;
use toygres_activities::platform::local::{DirectoryPorts, LocalConfig, LocalHost, LocalPlatform};
use toygres_models::PostgresVersion;

use super::Subject;

pub struct Local {
    pub config: LocalConfig,
    pub host: Arc<LocalHost>,
    pub platform: Arc<LocalPlatform>,
    version: PostgresVersion,
    _folder: Folder,
}

/// One postmaster: its process id and the directory it runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub cwd: PathBuf,
}

/// The processes in a folder below `root`.
pub fn processes(root: &Path, which: impl Fn(&sysinfo::Process) -> bool) -> Vec<Process> {
    let mut system = System::new();
    let what = ProcessRefreshKind::nothing()
        .with_exe(UpdateKind::Always)
        .with_cwd(UpdateKind::Always)
        .with_cmd(UpdateKind::Always)
        .without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let found =
        system.processes().values().filter(|process| process.cwd().is_some_and(|cwd| cwd.starts_with(root)) && which(process));
    found.map(|process| Process { pid: process.pid().as_u32() as i32, cwd: process.cwd().unwrap().to_owned() }).collect()
}

/// The postmasters that run in a folder below `root`.
pub fn postmasters(root: &Path) -> Vec<Process> {
    processes(root, |process| {
        let first = process.cmd().first().map(|first| first.to_string_lossy().into_owned()).unwrap_or_default();
        process.exe().and_then(Path::file_name).is_some_and(|name| name == "postgres")
            && !first.starts_with("postgres: ")
            && !process.cmd().iter().any(|argument| argument == "--boot" || argument == "--single" || argument == "--check")
    })
}

pub fn kill(pid: i32) {
    let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL);
}

/// A folder that the run-as user can reach, removed in the end with every process in it.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // An initdb whose parent was killed goes on by itself, and its children after it.
        for _ in 0..3 {
            for process in processes(self.path(), |_| true) {
                kill(process.pid);
            }
        }
    }
}

pub fn reachable_folder() -> Folder {
    let folder = tempfile::Builder::new().prefix("tg").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    Folder(folder)
}

/// Fetched programs are kept from run to run.
pub fn cache_dir() -> PathBuf {
    let own = format!("toygres-test-cache-{}", rustix::process::geteuid().as_raw());
    std::env::var_os("TOYGRES_TEST_CACHE_DIR").map_or_else(|| std::env::temp_dir().join(own), PathBuf::from)
}

pub fn config(folder: &Path) -> LocalConfig {
    // A few ports in a random place, below the system's own range.
    let first = 10_000 + u16::try_from(uuid::Uuid::new_v4().as_u128() % 190).unwrap() * 50;
    LocalConfig {
        state_dir: folder.join("state"),
        cache_dir: cache_dir(),
        port_range: first..=first + 49,
        pool_size: 0,
        run_as_user: None,
        default_version: None,
    }
}

impl Local {
    pub async fn new(version: PostgresVersion) -> Self {
        let folder = reachable_folder();
        let config = config(folder.path());
        Self::open(config, version, folder).await
    }

    async fn open(config: LocalConfig, version: PostgresVersion, folder: Folder) -> Self {
        let host = LocalHost::open(config.clone()).await.unwrap();
        let ports = Arc::new(DirectoryPorts::new(&host));
        let platform = LocalPlatform::new(host.clone(), ports);
        Self { config, host, platform, version, _folder: folder }
    }

    /// Another platform on the same state directory, as after a restart of toygres.
    pub async fn restarted(&self) -> Arc<LocalPlatform> {
        let host = LocalHost::open(self.config.clone()).await.unwrap();
        let ports = Arc::new(DirectoryPorts::new(&host));
        LocalPlatform::new(host, ports)
    }

    pub fn home(&self, name: &str) -> PathBuf {
        self.host.state_dir().join("instances/conformance").join(name)
    }

    pub fn postmaster(&self, name: &str) -> i32 {
        let found = postmasters(&self.home(name));
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].pid
    }

    fn describe(&self) {
        let state = self.host.state_dir();
        eprintln!("--- state directory {}", state.display());
        eprintln!("postmasters: {:#?}", postmasters(state));
        let mut folders = vec![state.join("control")];
        for namespace in entries(&state.join("instances")) {
            folders.extend(entries(&namespace));
        }
        for folder in folders {
            eprintln!("--- {}: {:?}", folder.display(), entries(&folder));
            let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_else(|error| error.to_string());
            for (file, text) in [
                ("instance.json", read("instance.json")),
                ("postmaster.pid", read("data/postmaster.pid")),
                ("log", log_of(&folder)),
            ] {
                let lines: Vec<_> = text.lines().collect();
                eprintln!("{file}:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
    }
}

/// The log of the server in a folder.
pub fn log_of(home: &Path) -> String {
    entries(&home.join("log")).iter().map(|file| std::fs::read_to_string(file).unwrap_or_default()).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        std::fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default();
    found.sort();
    found
}

impl Drop for Local {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.describe();
        }
        self.host.shutdown();
    }
}

#[async_trait::async_trait]
impl Subject for Local {
    fn platform(&self) -> Arc<dyn Platform> {
        self.platform.clone()
    }

    fn version(&self) -> PostgresVersion {
        self.version
    }

    fn fell(&self, name: &str) {
        kill(self.postmaster(name));
    }

    fn break_start(&self, name: &str) {
        let file = self.home(name).join("data/postgresql.auto.conf");
        let text = std::fs::read_to_string(&file).unwrap();
        // Written in place, so that the file stays its owner's.
        std::fs::write(&file, format!("{text}no_such_setting = 1\n")).unwrap();
    }

    fn lose(&self, name: &str) {
        std::fs::remove_dir_all(self.home(name)).unwrap();
    }

    async fn again(&self) -> Arc<dyn Platform> {
        let platform = self.restarted().await;
        platform.supervise().await.unwrap();
        platform
    }

    fn servers(&self) -> usize {
        postmasters(self.host.state_dir()).len()
    }

    fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for namespace in entries(&self.host.state_dir().join("instances")) {
            found.push(namespace.display().to_string());
            found.extend(entries(&namespace).iter().map(|path| path.display().to_string()));
        }
        found.extend(entries(&self.host.state_dir().join("run")).iter().map(|path| path.display().to_string()));
        found
    }
}

/// The newest installed version, so that nothing is fetched.
async fn installed() -> Option<PostgresVersion> {
    let nowhere = Path::new("/nonexistent");
    Some(Programs::discover(nowhere).await.first()?.postgres_version)
}

/// The newest version that is installed, or else fetched.
pub async fn local() -> Local {
    match installed().await {
        Some(version) => Local::new(version).await,
        // Everything is fetched on a machine without PostgreSQL.
        None => fetched().await.expect("there is no PostgreSQL on this machine, and none can be fetched"),
    }
}

/// The newest version of all; `None` where it would have to be fetched and can't be.
pub async fn fetched() -> Option<Local> {
    let local = Local::new("18".parse().unwrap()).await;
    match local.platform.resolve_version(Some("18".parse().unwrap())).await {
        Ok(_) => Some(local),
        Err(failure) if std::env::var_os("CI").is_some() => panic!("{failure:?}"),
        Err(failure) => {
            eprintln!("skipped: {failure}");
            None
        }
    }
}

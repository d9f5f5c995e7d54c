//! The PostgreSQL programs on this machine.

pub(in crate::platform::local) mod archives;
mod pinned;
mod trust;
mod unpack;
pub(in crate::platform::local) mod versions;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use tokio::process::Command;
use toygres_models::{Failure, FailureKind, PostgresVersion};

use crate::platform::local::confinement::{self, Limits};
use crate::platform::local::files::{failed, lock, names_in};
use crate::platform::local::owners;

/// One installation of PostgreSQL: a folder with at least `initdb` and `postgres`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The folder.
    pub bin_dir: PathBuf,
    /// The full version, as `postgres --version` says.
    pub postgres_version: PostgresVersion,
    /// The folder, or `cache` for one that toygres fetched.
    pub source: String,
}

/// A program, its modification time, and what it was asked: `--version` or `--bindir`.
type Question = (PathBuf, SystemTime, &'static str);

/// What programs printed; they don't change while they stay the same file.
static PRINTED: LazyLock<Mutex<HashMap<Question, Option<String>>>> = LazyLock::new(Mutex::default);

async fn printed(program: PathBuf, argument: &'static str) -> Option<String> {
    let modified = std::fs::metadata(&program).and_then(|found| found.modified()).ok()?;
    let key = (program, modified, argument);
    if let Some(known) = lock(&PRINTED).get(&key) {
        return known.clone();
    }
    let text = ask(&key.0, argument).await;
    lock(&PRINTED).insert(key, text.clone());
    text
}

async fn ask(program: &Path, argument: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.arg(argument).env_clear().env("LC_ALL", "C").current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    if rustix::process::geteuid().is_root() {
        // What is found on a machine isn't run as root only to learn what it is.
        let (uid, gid) = owners::nobody();
        command.uid(uid).gid(gid);
    }
    let child = confinement::spawn(Limits::of_question(program), command).ok()?;
    let output = tokio::time::timeout(Duration::from_secs(10), child.wait_with_output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(target_os = "linux")]
fn is_noexec(program: &Path) -> bool {
    use rustix::fs::{StatVfsMountFlags, statvfs};
    statvfs(program).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

#[cfg(not(target_os = "linux"))]
fn is_noexec(_program: &Path) -> bool {
    false
}

/// The failure of a program of PostgreSQL's that the system doesn't begin.
pub(in crate::platform::local) fn cannot_run(program: &Path, error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::PermissionDenied && is_noexec(program) {
        let message = format!(
            "{} can't be run, as its file system is mounted noexec; mount it without that, or choose another --cache-dir",
            program.display()
        );
        return Failure::permanent(FailureKind::ProgramsUnavailable, message);
    }
    failed("run", program)(error)
}

/// The full version in what `postgres --version` prints: `postgres (PostgreSQL) 15.18 (Debian …)`.
/// None for one that isn't supported, a development build or a release candidate.
fn parse_version(printed: &str) -> Option<PostgresVersion> {
    let number = printed.strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
    number.parse::<PostgresVersion>().ok().filter(|version| version.minor().is_some())
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn path_folders() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// `root/*/bin` for the folders of `root` whose names begin with `prefix`.
fn bin_folders(root: &str, prefix: &str) -> Vec<PathBuf> {
    let names = names_in(Path::new(root)).unwrap_or_default();
    names.into_iter().filter(|name| name.starts_with(prefix)).map(|name| Path::new(root).join(name).join("bin")).collect()
}

/// Every folder on this machine that may hold PostgreSQL's programs, without toygres's cache.
async fn candidates() -> Vec<PathBuf> {
    let mut folders = bin_folders("/usr/lib/postgresql", "");
    folders.extend(bin_folders("/usr/pgsql", ""));
    folders.extend(bin_folders("/usr", "pgsql-"));
    for homebrew in ["/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"] {
        folders.extend(bin_folders(homebrew, "postgresql"));
    }
    folders.extend(bin_folders("/Library/PostgreSQL", ""));
    folders.push("/usr/local/pgsql/bin".into());
    for folder in path_folders() {
        let configured = folder.join("pg_config");
        if is_program(&configured)
            && let Some(bin_dir) = printed(configured, "--bindir").await
        {
            folders.push(bin_dir.into());
        }
        // A link in PATH leads to the folder that has the others beside it.
        if let Ok(real) = folder.join("postgres").canonicalize() {
            folders.extend(real.parent().map(Path::to_owned));
        }
        folders.push(folder);
    }
    folders
}

impl Programs {
    /// Every supported installation, newest first: those of the machine, and those in toygres's
    /// cache. Of equal versions the machine's own comes first.
    pub async fn discover(cache_dir: &Path) -> Vec<Self> {
        let mut wanted: Vec<_> = candidates().await.into_iter().map(|folder| (folder, None)).collect();
        for name in names_in(cache_dir).unwrap_or_default() {
            // What toygres fetched is known by its folder's name, and needn't be asked.
            let version = name.strip_prefix("postgresql-").and_then(|version| version.parse::<PostgresVersion>().ok());
            if let Some(version) = version.filter(|version| version.minor().is_some()) {
                wanted.extend(find_bin_dir(&cache_dir.join(name)).map(|folder| (folder, Some(version))));
            }
        }
        let mut seen = BTreeSet::new();
        let asked = wanted.into_iter().filter_map(|(folder, fetched)| {
            let bin_dir = folder.canonicalize().ok()?;
            let complete = is_program(&bin_dir.join("postgres")) && is_program(&bin_dir.join("initdb"));
            (complete && seen.insert(bin_dir.clone()) && trust::is_trusted(&bin_dir)).then_some(async move {
                let postgres_version = match fetched {
                    Some(version) => version,
                    None => parse_version(&printed(bin_dir.join("postgres"), "--version").await?)?,
                };
                let source = if fetched.is_some() { "cache".into() } else { bin_dir.display().to_string() };
                Some(Self { bin_dir, postgres_version, source })
            })
        });
        let mut found: Vec<_> = join_all(asked.collect::<Vec<_>>()).await.into_iter().flatten().collect();
        // Stable: the machine's own were asked before the cache's.
        found.sort_by_key(|programs: &Self| Reverse(programs.postgres_version));
        found
    }

    /// Whether the server's program runs at all and is of its version.
    pub(in crate::platform::local) async fn answer(&self) -> bool {
        let printed = ask(&self.program("postgres"), "--version").await;
        printed.and_then(|printed| parse_version(&printed)).is_some_and(|version| version == self.postgres_version)
    }

    /// What to do about programs that are damaged.
    pub(in crate::platform::local) fn remedy(&self) -> String {
        match self.source.as_str() {
            "cache" => format!("remove {}, and they are fetched again", self.bin_dir.display()),
            _ => format!("install PostgreSQL {} again", self.postgres_version.major()),
        }
    }

    /// The path of one of the programs, whether it is there or not.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// The folder with `initdb` in what was unpacked, however deep its archive had it.
pub(in crate::platform::local) fn find_bin_dir(unpacked: &Path) -> Option<PathBuf> {
    let mut level = vec![unpacked.to_owned()];
    for _ in 0..3 {
        if let Some(bin) = level.iter().map(|folder| folder.join("bin")).find(|bin| bin.join("initdb").is_file()) {
            return Some(bin);
        }
        level = level
            .iter()
            .flat_map(|folder| names_in(folder).unwrap_or_default().into_iter().map(|name| folder.join(name)))
            .filter(|path| path.is_dir())
            .collect();
    }
    None
}

/// The newest PostgreSQL client program of that name, such as `psql`, that is of that major version or later: on this machine,
/// or fetched with a server.
pub async fn find_program(name: &str, least_major: u16, cache_dir: &Path) -> Option<PathBuf> {
    let mut folders = candidates().await;
    folders.extend(names_in(cache_dir).unwrap_or_default().iter().filter_map(|name| find_bin_dir(&cache_dir.join(name))));
    let mut seen = BTreeSet::new();
    let programs = folders.into_iter().map(|folder| folder.join(name));
    let programs = programs.filter(|path| is_program(path) && path.parent().is_some_and(trust::is_trusted));
    let asked = programs.filter(|path| seen.insert(path.clone())).map(|path| async move {
        let major = client_major(&printed(path.clone(), "--version").await?)?;
        (major >= least_major).then_some((major, path))
    });
    let mut found: Vec<_> = join_all(asked.collect::<Vec<_>>()).await.into_iter().flatten().collect();
    // Stable: of equal versions the machine's own comes first.
    found.sort_by_key(|(major, _)| Reverse(*major));
    found.into_iter().next().map(|(_, path)| path)
}

/// The major version in what a client program prints: `pg_dump (PostgreSQL) 15.18 (Debian …)`, `psql (PostgreSQL) 19beta1`.
fn client_major(printed: &str) -> Option<u16> {
    let (_, version) = printed.split_once(" (PostgreSQL) ")?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_postgres_prints() {
        for (printed, version) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some("15.18")),
            ("postgres (PostgreSQL) 18.6", Some("18.6")),
            ("postgres (PostgreSQL) 14.0", Some("14.0")),
            ("postgres (PostgreSQL) 13.4", None),
            ("postgres (PostgreSQL) 9.6.24", None),
            ("postgres (PostgreSQL) 18beta1", None),
            ("postgres (PostgreSQL) 19devel", None),
            ("", None),
        ] {
            assert_eq!(parse_version(printed), version.map(|version| version.parse().unwrap()), "{printed:?}");
        }
    }

    #[test]
    fn reads_what_client_programs_print() {
        assert_eq!(client_major("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(client_major("psql (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(client_major("psql: error"), None);
    }

    #[test]
    fn finds_the_programs_however_an_archive_nests_them() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find_bin_dir(folder.path()), None);
        let bin = folder.path().join("postgresql-18.6.0-x86_64/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join("initdb"), "").unwrap();
        assert_eq!(find_bin_dir(folder.path()), Some(bin.clone()));
        assert_eq!(find_bin_dir(bin.parent().unwrap()), Some(bin));
    }

    #[tokio::test]
    async fn a_folder_without_initdb_is_no_installation() {
        let cache = tempfile::tempdir().unwrap();
        let bin = cache.path().join("postgresql-15.1/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join("postgres"), "").unwrap();
        assert!(Programs::discover(cache.path()).await.iter().all(|programs| programs.source != "cache"));
    }
}

//! Server processes: telling ours from others, signalling exactly the one meant, and seeing its end.
//!
//! A process id alone names nothing: it is reused. So a process is accepted as the server of a data
//! directory only if it runs `postgres` *in* that directory, and it is then held by a pidfd, which
//! can't come to mean another process. Start times aren't compared: they jump with the clock.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
use tokio::process::Child;
use toygres_models::{Failure, FailureKind};

use crate::platform::local::tenant_file;

/// The words of `postmaster.pid` that matter
/// (<https://www.postgresql.org/docs/current/storage-file-layout.html>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::platform::local) struct PidFile {
    pub(in crate::platform::local) pid: i32,
    /// Line 8: `starting`, `stopping`, `ready` or `standby`.
    pub(in crate::platform::local) status: Option<String>,
}

impl PidFile {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        // A single-user or bootstrap process writes its id with a minus.
        let pid = lines.next()?.trim().parse::<i32>().ok().filter(|pid| *pid > 0)?;
        let status = lines.nth(6).map(|line| line.trim().to_owned()).filter(|line| !line.is_empty());
        Some(Self { pid, status })
    }

    pub(in crate::platform::local) fn read(data: &Path, uid: u32) -> Option<Self> {
        Self::parse(&tenant_file::read(data, "postmaster.pid", uid).ok()??)
    }

    pub(in crate::platform::local) fn is_ready(&self) -> bool {
        matches!(self.status.as_deref(), Some("ready" | "standby"))
    }
}

/// A running server, held so that it can't be mistaken.
#[derive(Debug)]
pub(in crate::platform::local) struct Postmaster {
    pid: Pid,
    data: PathBuf,
    /// Whom it runs as.
    uid: u32,
    #[cfg(target_os = "linux")]
    pidfd: tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>,
    /// How it ended, where it was our child.
    status: std::sync::Arc<OnceLock<std::process::ExitStatus>>,
    /// When it first answered SQL.
    answered: OnceLock<Instant>,
}

fn is_postgres(executable: &Path) -> bool {
    // The programs may have been upgraded under a running server.
    executable.file_name().and_then(OsStr::to_str).is_some_and(|name| name.trim_end_matches(" (deleted)") == "postgres")
}

fn is_in(cwd: &Path, data: &Path) -> bool {
    cwd == data || cwd.to_str().and_then(|cwd| cwd.strip_suffix(" (deleted)")).is_some_and(|cwd| Path::new(cwd) == data)
}

/// What a process is to a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The server itself.
    Postmaster,
    /// One of the processes that it starts, which give themselves a title.
    Child,
}

fn part_of(process: &sysinfo::Process, data: &Path) -> Option<Part> {
    let is_its = process.exe().is_some_and(is_postgres) && process.cwd().is_some_and(|cwd| is_in(cwd, data));
    let first = process.cmd().first().and_then(|first| first.to_str())?;
    is_its.then(|| if first.starts_with("postgres: ") { Part::Child } else { Part::Postmaster })
}

fn what_to_read() -> ProcessRefreshKind {
    ProcessRefreshKind::nothing()
        .with_exe(UpdateKind::Always)
        .with_cwd(UpdateKind::Always)
        .with_cmd(UpdateKind::Always)
        .without_tasks()
}

fn is_part(pid: Pid, data: &Path, part: Part) -> bool {
    let Ok(raw) = u32::try_from(pid.as_raw_nonzero().get()) else { return false };
    let pid = sysinfo::Pid::from_u32(raw);
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what_to_read());
    system.process(pid).and_then(|process| part_of(process, data)) == Some(part)
}

/// Every process that has this part, by looking at all there are.
fn all_parts(data: &Path, part: Part) -> Vec<Pid> {
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what_to_read());
    let found = system.processes().values().filter(|process| part_of(process, data) == Some(part));
    found.filter_map(|process| Pid::from_raw(i32::try_from(process.pid().as_u32()).ok()?)).collect()
}

/// Ends the children of a server that is dead: a busy one doesn't notice its death, and holds the
/// data directory. The caller knows that no server runs on the directory.
pub(in crate::platform::local) fn end_orphans(data: &Path, uid: u32) {
    for pid in all_parts(data, Part::Child) {
        if let Some(orphan) = Postmaster::accept(pid, data, uid, Part::Child) {
            tracing::warn!(process.id = pid.as_raw_nonzero().get(), path = %data.display(), "ending a process whose server is dead");
            let _ = orphan.signal(Signal::KILL);
        }
    }
}

/// Waits until a server that ended has no process left, or for so long. The last one writes its log.
pub(in crate::platform::local) async fn last_child_ended(data: &Path, limit: Duration) {
    wait_until_gone(limit, || all_parts(data, Part::Child).is_empty()).await;
}

async fn wait_until_gone(limit: Duration, is_gone: impl Fn() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < limit && !is_gone() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Postmaster {
    fn from_pid(pid: Pid, data: &Path, uid: u32) -> std::io::Result<Self> {
        #[cfg(target_os = "linux")]
        let pidfd = {
            let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK)?;
            #[expect(deprecated, reason = "its successor is unsafe; it is sound here, as the pidfd is owned and never replaced")]
            let held = tokio::io::unix::AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)?;
            held
        };
        Ok(Self {
            pid,
            data: data.to_owned(),
            uid,
            #[cfg(target_os = "linux")]
            pidfd,
            status: std::sync::Arc::default(),
            answered: OnceLock::new(),
        })
    }

    /// The server that runs on a data directory, by its `postmaster.pid`.
    pub(in crate::platform::local) fn find(data: &Path, uid: u32) -> Option<Self> {
        let pid = Pid::from_raw(PidFile::read(data, uid)?.pid)?;
        Self::accept(pid, data, uid, Part::Postmaster)
    }

    /// The server whose data directory, and `postmaster.pid` with it, somebody removed: looks at
    /// every process.
    pub(in crate::platform::local) fn search(data: &Path, uid: u32) -> Option<Self> {
        all_parts(data, Part::Postmaster).into_iter().find_map(|pid| Self::accept(pid, data, uid, Part::Postmaster))
    }

    fn accept(pid: Pid, data: &Path, uid: u32, part: Part) -> Option<Self> {
        let held = Self::from_pid(pid, data, uid).ok()?;
        // Checked after it is held: what is held now is what was checked.
        is_part(pid, data, part).then_some(held)
    }

    /// Takes charge of a server just spawned, and reaps it when it ends.
    pub(in crate::platform::local) fn spawned(mut child: Child, data: &Path, uid: u32) -> Result<Self, Failure> {
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let held =
            pid.ok_or_else(|| std::io::Error::other("it has no process id")).and_then(|pid| Self::from_pid(pid, data, uid));
        let held = held.map_err(|error| {
            Failure::transient(FailureKind::Platform, format!("could not watch the server process just started: {error}"))
        })?;
        let status = held.status.clone();
        tokio::spawn(async move {
            if let Ok(ended) = child.wait().await {
                let _ = status.set(ended);
            }
        });
        Ok(held)
    }

    pub(in crate::platform::local) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(in crate::platform::local) fn has_answered(&self) -> bool {
        self.answered.get().is_some()
    }

    /// Whether it began to answer a moment ago.
    pub(in crate::platform::local) fn has_just_answered(&self) -> bool {
        self.answered.get().is_some_and(|at| at.elapsed() < Duration::from_secs(1))
    }

    pub(in crate::platform::local) fn set_answered(&self) {
        self.answered.get_or_init(Instant::now);
    }

    /// Whether `postmaster.pid` is this server's and says ready.
    pub(in crate::platform::local) fn is_ready(&self) -> bool {
        PidFile::read(&self.data, self.uid).is_some_and(|file| file.pid == self.pid() && file.is_ready())
    }

    #[cfg(target_os = "linux")]
    pub(in crate::platform::local) fn has_exited(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    #[cfg(not(target_os = "linux"))]
    pub(in crate::platform::local) fn has_exited(&self) -> bool {
        !is_part(self.pid, &self.data, Part::Postmaster)
    }

    /// Returns when the process has ended.
    pub(in crate::platform::local) async fn exited(&self) {
        #[cfg(target_os = "linux")]
        if self.pidfd.readable().await.is_ok() {
            return;
        }
        while !self.has_exited() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How it ended, for a sentence, as far as it is known.
    pub(in crate::platform::local) async fn ending(&self) -> String {
        use std::os::unix::process::ExitStatusExt;
        // The reaping task may be a moment behind the pidfd.
        for _ in 0..20 {
            if let Some(status) = self.status.get() {
                return match (status.signal(), status.code()) {
                    (Some(signal), _) => format!("was killed by signal {signal}"),
                    (None, Some(0)) => "was shut down".into(),
                    (None, code) => format!("ended with exit code {}", code.unwrap_or(-1)),
                };
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        "ended".into()
    }

    /// Sends a signal to exactly this process. No error if it has ended.
    pub(in crate::platform::local) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        #[cfg(target_os = "linux")]
        let sent = rustix::process::pidfd_send_signal(&self.pidfd, signal);
        #[cfg(not(target_os = "linux"))]
        let sent = if is_part(self.pid, &self.data, Part::Postmaster) {
            rustix::process::kill_process(self.pid, signal)
        } else {
            Ok(())
        };
        match sent {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Failure::transient(
                FailureKind::Platform,
                format!("could not signal the server process {}: {error}", self.pid()),
            )),
        }
    }

    /// The processes that it started, where the system lists them.
    fn children(&self) -> Vec<Pid> {
        let list = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid())).unwrap_or_default();
        list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }

    /// Stops it: a clean fast shutdown; where `patience` isn't enough, an immediate one; at last by force.
    pub(in crate::platform::local) async fn stop(&self, patience: Duration) -> Result<(), Failure> {
        let children = self.children();
        for (signal, wait) in
            [(Signal::INT, patience), (Signal::QUIT, Duration::from_secs(5)), (Signal::KILL, Duration::from_secs(10))]
        {
            self.signal(signal)?;
            if tokio::time::timeout(wait, self.exited()).await.is_ok() {
                // The one that writes its log is the last; to look at these is cheaper than at all there are.
                let is_gone = || !children.iter().any(|child| is_part(*child, &self.data, Part::Child));
                wait_until_gone(Duration::from_secs(1), is_gone).await;
                return Ok(());
            }
            tracing::warn!(process.id = self.pid(), ?signal, "the server did not stop on a signal");
        }
        Err(Failure::transient(
            FailureKind::Platform,
            format!("the server process {} does not end, not even by force; its disk may hang", self.pid()),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_pid_file_at_every_stage() {
        let whole = "4711\n/d/data\n1700000000\n20001\n/run\n127.0.0.1\n  1234  5\nready   \n";
        assert_eq!(PidFile::parse(whole), Some(PidFile { pid: 4711, status: Some("ready".into()) }));
        assert!(PidFile::parse(whole).unwrap().is_ready());
        let starting = "4711\n/d/data\n1700000000\n20001\n/run\n\n  1234  5\nstarting\n";
        assert!(!PidFile::parse(starting).unwrap().is_ready());
        assert_eq!(PidFile::parse("4711\n/d/data\n"), Some(PidFile { pid: 4711, status: None }));
        for broken in ["", "\n", "x\n", "-4711\n/d\n", "0\n"] {
            assert_eq!(PidFile::parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn knows_a_server_whose_files_are_gone() {
        assert!(is_postgres(Path::new("/usr/lib/postgresql/15/bin/postgres")));
        assert!(is_postgres(Path::new("/usr/lib/postgresql/15/bin/postgres (deleted)")));
        assert!(!is_postgres(Path::new("/usr/bin/psql")));
        assert!(is_in(Path::new("/d/data (deleted)"), Path::new("/d/data")));
        assert!(!is_in(Path::new("/d/data2"), Path::new("/d/data")));
    }

    #[tokio::test]
    async fn another_process_is_never_taken_for_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().canonicalize().unwrap();
        std::fs::write(data.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        assert!(Postmaster::find(&data, rustix::process::geteuid().as_raw()).is_none());
        assert!(Postmaster::search(&data, 0).is_none());
    }
}

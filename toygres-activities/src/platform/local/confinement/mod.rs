//! What a server can reach, whatever it is made to do.
//!
//! A superuser of an instance reads files, writes files and runs programs as its server does (`COPY … FROM PROGRAM`). So
//! every server, and `initdb`, is started with limits that the kernel keeps for it and for all that it starts: Landlock
//! names the files it can open, the port it can listen on and the processes it can signal, and of instances a filter of system
//! calls (`system_calls`) refuses the rest that reaches others. They need no root, and can't be taken off again. Where the kernel knows only some of them, those hold ([`confinement`]).
//!
//! On systems other than Linux there are none.

#[cfg(target_os = "linux")]
mod landlock;
mod paths;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod system_calls;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tokio::process::{Child, Command};
use tokio::runtime::Handle;

/// How much of a server's limits this machine's kernel keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confinement {
    /// None: a superuser of an instance reaches all that its system user does.
    None,
    /// Files, but not all of ports and signals: the kernel is older than Linux 6.12.
    Partial,
    /// Files, the port to listen on, and signals.
    Full,
}

/// From this version on Landlock limits Unix sockets by path.
#[cfg(target_os = "linux")]
const LIMITS_UNIX_SOCKETS: u32 = 9;

/// The kernel's version of Landlock; 0 where it has none.
fn landlock_version() -> u32 {
    static VERSION: OnceLock<u32> = OnceLock::new();
    #[cfg(target_os = "linux")]
    let look = landlock::version;
    #[cfg(not(target_os = "linux"))]
    let look = || 0;
    *VERSION.get_or_init(look)
}

/// How much of a server's limits this machine's kernel keeps.
#[must_use]
pub fn confinement() -> Confinement {
    match landlock_version() {
        0 => Confinement::None,
        1..=5 => Confinement::Partial,
        _ => Confinement::Full,
    }
}

/// The same in words: whether all is well, and what holds.
pub(super) fn description() -> (bool, String) {
    let version = landlock_version();
    match confinement() {
        Confinement::None => {
            (false, "this kernel has no Landlock: a superuser of an instance can read what its system user can".to_owned())
        }
        Confinement::Partial => (
            true,
            format!("servers are confined to their own files (Landlock {version}); ports and signals take Linux 6.12 or newer"),
        ),
        Confinement::Full => (true, format!("servers are confined to their own files, port and processes (Landlock {version})")),
    }
}

/// What one server, or one `initdb`, can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limits {
    /// The folder with its programs.
    pub(super) bin_dir: PathBuf,
    /// Files and folders to read, besides those of the system.
    pub(super) reads: Vec<PathBuf>,
    /// Folders to do everything in.
    pub(super) writes: Vec<PathBuf>,
    /// The TCP port to listen on: of an instance, whose superuser has it run what he likes.
    pub(super) port: Option<u16>,
}

impl Limits {
    /// Of a program that is only asked something.
    pub(super) fn of_question(program: &Path) -> Self {
        let bin_dir = program.parent().unwrap_or(Path::new("/")).to_owned();
        Self { bin_dir, reads: Vec::new(), writes: Vec::new(), port: None }
    }

    /// Of an `initdb` that fills `data`. No tenant has a hand in it yet.
    pub(super) fn of_initdb(bin_dir: &Path, data: &Path, password_file: Option<&Path>) -> Self {
        // The folder around, as a limit holds on to a folder that a failed initdb removed, and its file system couldn't be made
        // read-only then. And shared memory, or it takes the kind of which each crash leaves a megabyte.
        let writes = vec![data.parent().unwrap_or(data).to_owned(), "/dev/shm".into()];
        let reads = password_file.into_iter().map(Path::to_owned).collect();
        Self { bin_dir: bin_dir.to_owned(), reads, writes, port: None }
    }
}

/// Starts a program with these limits. To be called where tokio's runtime is.
pub(super) fn spawn(limits: Limits, mut command: Command) -> io::Result<Child> {
    let runtime = Handle::try_current().map_err(io::Error::other)?;
    within(limits, move || {
        let _entered = runtime.enter();
        command.spawn()
    })
}

/// Does some work with these limits. A process gets them from the thread that starts it, and a thread never loses them: so
/// each work has a thread of its own, which ends with it.
pub(super) fn within<T: Send + 'static>(limits: Limits, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let limited = move || {
        #[cfg(target_os = "linux")]
        {
            landlock::restrict_thread(&limits)?;
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
            if limits.port.is_some() {
                system_calls::refuse(landlock_version() >= LIMITS_UNIX_SOCKETS)?;
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = limits;
        work()
    };
    let thread = std::thread::Builder::new().name("confined".into()).spawn(limited)?;
    thread.join().map_err(|_| io::Error::other("the thread with its limits ended abnormally"))?
}

#[cfg(test)]
mod tests;

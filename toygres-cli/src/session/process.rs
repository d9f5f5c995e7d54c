//! Ending the server's process, and making sure first that it is the server's.

#[cfg(target_os = "linux")]
use std::os::unix::ffi::OsStrExt;
#[cfg(target_os = "linux")]
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal};

/// A process that was looked at and found to be a toygres server.
pub struct ServerProcess {
    pid: Pid,
    /// Holds on to the process itself, so that another one that gets its number can't be hit.
    #[cfg(target_os = "linux")]
    handle: rustix::fd::OwnedFd,
}

impl ServerProcess {
    /// The process of this number, if it is there and is a toygres server. `answers` tells
    /// whether a server that calls this its number was just spoken to.
    #[cfg(target_os = "linux")]
    pub fn find(pid: u32, answers: bool) -> Option<Self> {
        let pid = to_pid(pid)?;
        // First the handle, then the look: what was looked at is what is held.
        let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        (answers || looks_like_a_server(pid)).then_some(Self { pid, handle })
    }

    /// The process of this number, if it is there and a server that calls this its number was
    /// just spoken to (`answers`): elsewhere than on Linux there is no other sign.
    #[cfg(not(target_os = "linux"))]
    pub fn find(pid: u32, answers: bool) -> Option<Self> {
        let pid = to_pid(pid)?;
        (answers && rustix::process::test_kill_process(pid).is_ok()).then_some(Self { pid })
    }

    /// Asks it to shut down cleanly.
    pub fn terminate(&self) -> std::io::Result<()> {
        #[cfg(target_os = "linux")]
        let sent = rustix::process::pidfd_send_signal(&self.handle, Signal::TERM);
        #[cfg(not(target_os = "linux"))]
        let sent = rustix::process::kill_process(self.pid, Signal::TERM);
        match sent {
            // It ended by itself.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Waits until it is gone; `false` if it isn't after `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        #[cfg(target_os = "linux")]
        {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let limit = Timespec::try_from(limit).ok();
            // A process handle becomes readable when the process ends.
            poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], limit.as_ref()).is_ok_and(|ready| ready > 0)
        }
        #[cfg(not(target_os = "linux"))]
        {
            let deadline = std::time::Instant::now() + limit;
            while std::time::Instant::now() < deadline {
                if rustix::process::test_kill_process(self.pid).is_err() {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            false
        }
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }
}

fn to_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Whether a process of this number is there and was started as a toygres server. A number that a
/// server wrote down before the machine was restarted may be anybody's by now.
pub fn is_server(pid: u32) -> bool {
    to_pid(pid).is_some_and(looks_like_a_server)
}

#[cfg(target_os = "linux")]
fn looks_like_a_server(pid: Pid) -> bool {
    let Ok(arguments) = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else {
        return false;
    };
    let arguments: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
    let mine = std::env::current_exe().ok();
    let mine = mine.as_deref().and_then(Path::file_name).map_or(b"toygres".as_slice(), OsStrExt::as_bytes);
    let is_toygres = arguments.first().is_some_and(|program| program.ends_with(b"toygres") || program.ends_with(mine));
    is_toygres && arguments.contains(&b"server".as_slice()) && arguments.contains(&b"run".as_slice())
}

/// Elsewhere a process's arguments aren't for everybody to read.
#[cfg(not(target_os = "linux"))]
fn looks_like_a_server(pid: Pid) -> bool {
    // Being refused to send it a signal means that it is there.
    matches!(rustix::process::test_kill_process(pid), Ok(()) | Err(rustix::io::Errno::PERM))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_another_program_got_is_left_alone() {
        assert!(!is_server(std::process::id()));
        assert!(ServerProcess::find(std::process::id(), false).is_none());
        assert!(ServerProcess::find(0, true).is_none());
        assert!(ServerProcess::find(u32::MAX, true).is_none());
    }

    #[test]
    fn a_process_is_asked_to_end_and_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ServerProcess::find(child.id(), true).unwrap();
        assert!(!process.wait(Duration::from_millis(1)));
        process.terminate().unwrap();
        assert!(process.wait(Duration::from_secs(10)));
        process.terminate().unwrap();
        child.wait().unwrap();
    }
}

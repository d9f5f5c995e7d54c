//! Ending the server's process, which the operating system has named.

use std::time::Duration;

use rustix::process::{Pid, Signal};
use toygres_client::local_socket::LocalConnection;

/// The process of a toygres server.
pub struct ServerProcess {
    pid: Pid,
    /// Holds on to the process itself, so that another one that gets its number can't be hit.
    #[cfg(target_os = "linux")]
    handle: rustix::fd::OwnedFd,
}

impl ServerProcess {
    /// The process at the other end of the connection, if it is still there.
    pub fn of(connection: &LocalConnection) -> Option<Self> {
        let process = Self::hold(connection.pid?)?;
        // A process that has ended has closed its end. This one hasn't, so its number was its own when it was held.
        connection.is_open().then_some(process)
    }

    #[cfg(target_os = "linux")]
    fn hold(pid: u32) -> Option<Self> {
        let pid = to_pid(pid)?;
        let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        Some(Self { pid, handle })
    }

    #[cfg(not(target_os = "linux"))]
    fn hold(pid: u32) -> Option<Self> {
        to_pid(pid).map(|pid| Self { pid })
    }

    /// Asks it to shut down cleanly, and to stop the instances on this machine or not.
    pub fn terminate(&self, with_instances: bool) -> std::io::Result<()> {
        let signal = if with_instances { Signal::USR1 } else { Signal::TERM };
        #[cfg(target_os = "linux")]
        let sent = rustix::process::pidfd_send_signal(&self.handle, signal);
        #[cfg(not(target_os = "linux"))]
        let sent = rustix::process::kill_process(self.pid, signal);
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_process_of_a_connection_that_has_ended_is_none() {
        let place = tempfile::tempdir().unwrap();
        std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let listener = tokio::net::UnixListener::bind(place.path().join("socket")).unwrap();
        let connection = LocalConnection::open(place.path()).await.unwrap();
        let process = ServerProcess::of(&connection).unwrap();
        assert_eq!(u32::try_from(process.pid()).unwrap(), std::process::id());
        // As if the process had ended, and another one had its number.
        drop(listener);
        assert!(ServerProcess::of(&connection).is_none());
        assert!(ServerProcess::hold(0).is_none() && ServerProcess::hold(u32::MAX).is_none());
    }

    #[test]
    fn a_process_is_asked_to_end_and_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ServerProcess::hold(child.id()).unwrap();
        assert!(!process.wait(Duration::from_millis(1)));
        process.terminate(false).unwrap();
        assert!(process.wait(Duration::from_secs(10)));
        process.terminate(false).unwrap();
        child.wait().unwrap();
    }
}

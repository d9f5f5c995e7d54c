//! The Unix socket by which programs on a server's own machine reach it, and the proof of whose it is.
//!
//! Any user can listen on a free TCP port. The socket is in a folder that only the server's user can enter, and the kernel tells
//! which user listens on it. Both are checked before anything is sent.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

/// The socket's name in its folder.
const NAME: &str = "socket";
/// How long a server that has more connections waiting than its queue holds is tried again.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// No server listens there.
    #[error("no server listens on {}", .0.display())]
    NoServer(PathBuf),
    /// The folder, the socket or the process that listens on it is somebody else's.
    #[error("{} belongs to another user (uid {uid}; you are {me})", .path.display())]
    Owner {
        /// What was looked at.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Who looked.
        me: u32,
    },
    /// Others than its owner can put another socket into the folder.
    #[error("{} can be written to by others (mode {}); `chmod 700` it", .0.display(), .1)]
    Mode(PathBuf, String),
    /// The operating system refused.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, #[source] io::Error),
}

/// The folder with the socket, opened: what was looked at is what is used.
#[derive(Debug)]
pub struct SocketFolder {
    folder: OwnedFd,
    path: PathBuf,
}

impl SocketFolder {
    /// Opens the folder, which is no symbolic link.
    ///
    /// # Errors
    /// If it isn't there, or no folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        let how = if cfg!(target_os = "linux") { path_only() } else { OFlags::RDONLY };
        let flags = how | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { folder, path: path.to_owned() })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    /// Where the socket is, for people.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join(NAME)
    }

    /// The address to bind and connect with, valid as long as the folder is open. On Linux it is short however long the
    /// folder's path is: an address holds 107 bytes.
    #[must_use]
    pub fn address(&self) -> PathBuf {
        match cfg!(target_os = "linux") {
            true => PathBuf::from(format!("/proc/self/fd/{}/{NAME}", self.folder.as_raw_fd())),
            false => self.socket(),
        }
    }

    /// The owner of the socket, if folder and socket are this user's or root's, and nobody else's.
    fn proven_owner(&self) -> Result<u32, LocalError> {
        let me = rustix::process::geteuid().as_raw();
        let failed = |error: Errno| match error {
            Errno::NOENT => LocalError::NoServer(self.socket()),
            error => LocalError::Io(self.socket(), error.into()),
        };
        let expect_own = |path: PathBuf, uid: u32| match uid == me || uid == 0 {
            true => Ok(()),
            false => Err(LocalError::Owner { path, uid, me }),
        };
        let folder = rustix::fs::fstat(&self.folder).map_err(failed)?;
        expect_own(self.path.clone(), folder.st_uid)?;
        let mode = Mode::from_raw_mode(folder.st_mode);
        if mode.intersects(Mode::WGRP | Mode::WOTH) {
            return Err(LocalError::Mode(self.path.clone(), format!("{:04o}", mode.bits())));
        }
        let socket = rustix::fs::statat(&self.folder, NAME, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        expect_own(self.socket(), socket.st_uid)?;
        match FileType::from_raw_mode(socket.st_mode) {
            FileType::Socket => Ok(socket.st_uid),
            // The next server removes it.
            _ => Err(LocalError::NoServer(self.socket())),
        }
    }
}

#[cfg(target_os = "linux")]
fn path_only() -> OFlags {
    OFlags::PATH
}

#[cfg(not(target_os = "linux"))]
fn path_only() -> OFlags {
    OFlags::RDONLY
}

/// A connection to the server, whose process was proved to be the socket owner's.
#[derive(Debug)]
pub struct LocalConnection {
    /// The connection.
    pub stream: UnixStream,
    /// The process that listens, where the operating system tells.
    pub pid: Option<u32>,
}

impl LocalConnection {
    /// Connects to the server whose socket is in that folder.
    ///
    /// # Errors
    /// If there is none, or what is there isn't this user's or root's.
    pub async fn open(folder: &Path) -> Result<Self, LocalError> {
        let opened = SocketFolder::open(folder).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => LocalError::NoServer(folder.join(NAME)),
            _ => LocalError::Io(folder.to_owned(), error),
        })?;
        let owner = opened.proven_owner()?;
        let stream = connect(&opened).await.map_err(|error| match error.kind() {
            // Of a server that was killed, the socket stays.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => LocalError::NoServer(opened.socket()),
            _ => LocalError::Io(opened.socket(), error),
        })?;
        let peer = stream.peer_cred().map_err(|error| LocalError::Io(opened.socket(), error))?;
        if peer.uid() != owner {
            let me = rustix::process::geteuid().as_raw();
            return Err(LocalError::Owner { path: opened.socket(), uid: peer.uid(), me });
        }
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        Ok(Self { stream, pid })
    }

    /// Whether the server still has its end. A process that has ended has none.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let mut polled = [PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::IN)];
        match poll(&mut polled, Some(&Timespec::default())) {
            Ok(_) => !polled.iter().any(|polled| polled.revents().intersects(PollFlags::HUP | PollFlags::ERR)),
            Err(_) => false,
        }
    }
}

/// Connects. While the server's queue is full, a Unix socket refuses at once.
async fn connect(folder: &SocketFolder) -> io::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    loop {
        match UnixStream::connect(folder.address()).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => sleep(RETRY_INTERVAL).await,
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use tokio::net::UnixListener;

    use super::*;

    fn private_folder(below: &Path) -> PathBuf {
        let folder = below.join("api");
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
        folder
    }

    #[tokio::test]
    async fn the_kernel_tells_who_listens_and_when_that_ends() {
        let place = tempfile::tempdir().unwrap();
        let folder = private_folder(place.path());
        assert!(matches!(LocalConnection::open(&folder).await, Err(LocalError::NoServer(_))));
        let opened = SocketFolder::open(&folder).unwrap();
        let listener = UnixListener::bind(opened.address()).unwrap();
        let connection = LocalConnection::open(&folder).await.unwrap();
        assert_eq!(connection.pid, Some(std::process::id()));
        assert!(connection.is_open());
        drop(listener);
        assert!(!connection.is_open());
        // The file is still there.
        assert!(folder.join(NAME).exists());
        assert!(matches!(LocalConnection::open(&folder).await, Err(LocalError::NoServer(_))));
    }

    #[tokio::test]
    async fn what_is_somebody_elses_or_could_be_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let folder = private_folder(place.path());
        let opened = SocketFolder::open(&folder).unwrap();
        let _listener = UnixListener::bind(opened.address()).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(LocalConnection::open(&folder).await, Err(LocalError::Mode(..))));
        std::fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
        let link = place.path().join("link");
        symlink(&folder, &link).unwrap();
        assert!(LocalConnection::open(&link).await.is_err());
        if rustix::process::geteuid().is_root() {
            // The process behind it isn't the owner's.
            chown(folder.join(NAME), Some(1), None).unwrap();
            assert!(matches!(LocalConnection::open(&folder).await, Err(LocalError::Owner { uid: 1, .. })));
            chown(folder.join(NAME), Some(0), None).unwrap();
            chown(&folder, Some(1), None).unwrap();
            assert!(matches!(LocalConnection::open(&folder).await, Err(LocalError::Owner { uid: 1, .. })));
            chown(&folder, Some(0), None).unwrap();
        }
        std::fs::remove_file(folder.join(NAME)).unwrap();
        std::fs::write(folder.join(NAME), "").unwrap();
        assert!(matches!(LocalConnection::open(&folder).await, Err(LocalError::NoServer(_))));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_path_may_be_longer_than_an_address() {
        let place = tempfile::tempdir().unwrap();
        let long = place.path().join("a".repeat(200));
        std::fs::create_dir(&long).unwrap();
        let folder = private_folder(&long);
        let opened = SocketFolder::open(&folder).unwrap();
        let _listener = UnixListener::bind(opened.address()).unwrap();
        LocalConnection::open(&folder).await.unwrap();
    }
}

//! Lock files: what one server of a state directory is at work on, no other one touches.
//!
//! The operating system's lock ends with the process, however it ends. The file itself says something
//! too: it is there from when an instance is first worked on until it was removed as it should be.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use toygres_models::Failure;

use super::files::{failed, make_folder};

/// How often a lock that another process holds is tried again: a system call that waits would hold a
/// thread, and can't be given up.
const POLL: Duration = Duration::from_millis(20);

/// Held against every other holder, in this process and others, until it is dropped.
pub(super) struct LockFile {
    file: File,
    path: PathBuf,
    is_new: bool,
}

impl LockFile {
    /// Waits until nobody else holds it; `None` if `patience` is over first.
    pub(super) async fn acquire(path: &Path, patience: Duration) -> Result<Option<Self>, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let (file, is_new) = open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let mut held = Self { file, path: path.to_owned(), is_new };
                    if held.is_in_place() {
                        held.sign();
                        return Ok(Some(held));
                    }
                    // Its last holder removed it; whoever comes next makes a new one.
                }
                Err(Errno::WOULDBLOCK) if Instant::now() >= deadline => return Ok(None),
                Err(Errno::WOULDBLOCK) => tokio::time::sleep(POLL).await,
                Err(error) => return Err(failed("lock", path)(error.into())),
            }
        }
    }

    /// The process that holds it, or held it last, as far as it is known.
    pub(super) fn holder(path: &Path) -> Option<u32> {
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// Whether the file wasn't there before.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Removes the file with the lock.
    pub(super) fn remove(self) -> Result<(), Failure> {
        std::fs::remove_file(&self.path).map_err(failed("remove", &self.path))?;
        if let Some(folder) = self.path.parent() {
            // Only if it is empty.
            let _ = std::fs::remove_dir(folder);
        }
        Ok(())
    }

    fn is_in_place(&self) -> bool {
        let here = self.file.metadata().map(|found| (found.dev(), found.ino()));
        let there = std::fs::metadata(&self.path).map(|found| (found.dev(), found.ino()));
        matches!((here, there), (Ok(here), Ok(there)) if here == there)
    }

    /// Notes whose it is, for those who wait in vain. The lock holds without it.
    fn sign(&mut self) {
        let _ = self.file.set_len(0).and_then(|()| self.file.write_all(std::process::id().to_string().as_bytes()));
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Closing it would do, unless a child just forked has it open for another moment.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Opens the file, and says whether it had to be made.
fn open(path: &Path) -> Result<(File, bool), Failure> {
    loop {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match made {
            Ok(file) => return Ok((file, true)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                match OpenOptions::new().write(true).open(path) {
                    Ok(file) => return Ok((file, false)),
                    // Its holder has just removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed("open", path)(error)),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    make_folder(folder, 0o700, None)?;
                }
            }
            Err(error) => return Err(failed("make", path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_held_by_one_at_a_time_and_says_by_whom() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default/demo");
        let held = LockFile::acquire(&path, Duration::ZERO).await.unwrap().unwrap();
        assert!(held.is_new());
        assert!(LockFile::acquire(&path, Duration::from_millis(50)).await.unwrap().is_none());
        assert_eq!(LockFile::holder(&path), Some(std::process::id()));
        drop(held);
        assert!(!LockFile::acquire(&path, Duration::ZERO).await.unwrap().unwrap().is_new());
    }

    #[tokio::test]
    async fn who_waited_for_one_that_was_removed_holds_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default/demo");
        let held = LockFile::acquire(&path, Duration::ZERO).await.unwrap().unwrap();
        let waited_for = path.clone();
        let waiting = tokio::spawn(async move { LockFile::acquire(&waited_for, Duration::from_secs(10)).await });
        tokio::task::yield_now().await;
        held.remove().unwrap();
        let next = waiting.await.unwrap().unwrap().unwrap();
        assert!(next.is_new() && path.exists());
        assert!(LockFile::acquire(&path, Duration::ZERO).await.unwrap().is_none());
        next.remove().unwrap();
        assert!(!folder.path().join("default").exists());
    }
}

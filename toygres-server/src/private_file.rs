//! Files that only their owner may read: tokens, and where servers answer.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use toygres_models::whole_file::{Durability, write_whole};

/// Writes a file of mode 0600, so that readers see all of it or none.
///
/// # Errors
/// If the folder can't be written to; what was there is as it was.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    write_whole(path, content, 0o600, None, Durability::Synced)
}

/// Why a private file isn't read.
#[derive(Debug, thiserror::Error)]
pub enum Unsafe {
    /// It may lead anywhere.
    #[error("it is a symbolic link")]
    Link,
    /// A folder, a pipe, a device.
    #[error("it is not a file")]
    NoFile,
    /// Somebody else wrote it.
    #[error("it belongs to another user (uid {0})")]
    Owner(u32),
    /// Its secrets may be known.
    #[error("others can read or write it (mode {:04o})", .0 & 0o7777)]
    Mode(u32),
    /// The operating system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads a file that is this user's and nobody else's; `None` if it isn't there.
///
/// # Errors
/// If it is there and can't be read, or can't be trusted.
pub fn read(path: &Path) -> Result<Option<String>, Unsafe> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened: OwnedFd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(opened) => opened,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::LOOP) => return Err(Unsafe::Link),
        Err(error) => return Err(Unsafe::Io(error.into())),
    };
    let mut file = File::from(opened);
    // Of what was opened: the name may stand for something else by now.
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(Unsafe::NoFile);
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(Unsafe::Owner(found.uid()));
    }
    if found.mode() & 0o077 != 0 {
        return Err(Unsafe::Mode(found.mode()));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_written_is_private_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(read(&path).unwrap().is_none());
        for content in ["one", "two"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(read(&path).unwrap().unwrap(), content);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something else was left");
    }

    #[test]
    fn what_others_can_read_or_made_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"secret").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read(&path), Err(Unsafe::Mode(_))), "{mode:o}");
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(read(&link), Err(Unsafe::Link)));
        assert!(matches!(read(folder.path()), Err(Unsafe::NoFile)));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            assert!(matches!(read(&path), Err(Unsafe::Owner(1))));
        }
    }
}

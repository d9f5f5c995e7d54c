//! Files that are replaced whole: readers see the old content or the new one, never a part.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::Path;

/// Whether a file has to outlive a power cut, or is made anew from what does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is on the disk when the write returns, and its name is.
    Synced,
    /// It may be lost in a power cut.
    Repairable,
}

/// Writes a file of that mode, and of that user and group where they aren't our own.
///
/// # Errors
/// If the folder can't be written to; what was there is as it was.
pub fn write_whole(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>, durability: Durability) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Private from its first moment; its mode is set apart from the creation, which the umask cuts down.
    let private = Permissions::from_mode(0o600);
    let mut file = tempfile::Builder::new().prefix(".writing-").permissions(private).tempfile_in(folder)?;
    file.write_all(content)?;
    if let Some((user, group)) = owner {
        fchown(file.as_file(), Some(user), Some(group))?;
    }
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    if durability == Durability::Synced {
        file.as_file().sync_all()?;
    }
    file.persist(path)?;
    if durability == Durability::Synced { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_is_left_of_the_attempt() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for (content, mode, durability) in [("one", 0o666, Durability::Synced), ("two", 0o640, Durability::Repairable)] {
            write_whole(&path, content.as_bytes(), mode, None, durability).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        write_whole(&path.join("below-a-file"), b"", 0o600, None, Durability::Synced).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

//! Files and folders: whole or not at all, owned by whom they should be, and errors that say which
//! path and what to do.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) use toygres_models::whole_file::Durability;
use toygres_models::{Failure, FailureKind, whole_file};

/// Locks; a panic elsewhere while it was held leaves nothing half-changed in our maps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::permanent(FailureKind::Internal, format!("file work ended abnormally: {error}"))),
    }
}

/// What an [`io::Error`] on `path` means to a person; `action` reads like "write".
pub(super) fn failed<'a>(action: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Failure + 'a {
    move |error| {
        let message = format!("could not {action} {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Failure::permanent(FailureKind::Exhausted, format!("{message}; free some room there and try again"))
            }
            io::ErrorKind::ReadOnlyFilesystem => Failure::permanent(
                FailureKind::Platform,
                format!("{message}; make the file system writable, or choose another state directory"),
            ),
            io::ErrorKind::PermissionDenied => Failure::permanent(
                FailureKind::Platform,
                format!("{message}; run toygres as the user who owns it, or choose another directory"),
            ),
            _ => Failure::transient(FailureKind::Platform, message),
        }
    }
}

/// Makes what was done in a folder (names made, renamed, removed) outlive a power cut.
pub(super) fn sync_directory(path: &Path) -> Result<(), Failure> {
    std::fs::File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync", path))
}

/// Who is to own a file or folder: user id and group id.
pub(super) type Owner = (u32, u32);

/// [`whole_file::write_whole`], with an error for a person.
pub(super) fn write_whole(
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<Owner>,
    durability: Durability,
) -> Result<(), Failure> {
    whole_file::write_whole(path, content, mode, owner, durability).map_err(failed("write", path))
}

/// [`write_whole`], unless the file has that content already. `true` if it was written.
pub(super) fn converge(path: &Path, content: &[u8], mode: u32, owner: Option<Owner>) -> Result<bool, Failure> {
    if std::fs::read(path).is_ok_and(|found| found == content) {
        return Ok(false);
    }
    write_whole(path, content, mode, owner, Durability::Repairable).map(|()| true)
}

/// Makes a folder, its parents too, and gives it that mode and owner.
pub(super) fn make_folder(path: &Path, mode: u32, owner: Option<Owner>) -> Result<(), Failure> {
    // A remove of a neighbour may take an empty parent away in between.
    let mut result = std::fs::create_dir_all(path);
    for _ in 0..3 {
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
        result = std::fs::create_dir_all(path);
    }
    result.map_err(failed("create the folder", path))?;
    let found = std::fs::metadata(path).map_err(failed("read", path))?;
    if let Some((uid, gid)) = owner
        && (found.uid(), found.gid()) != (uid, gid)
    {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(failed("change the owner of", path))?;
    }
    if found.mode() & 0o7777 != mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .map_err(failed("change the permissions of", path))?;
    }
    Ok(())
}

/// Removes a folder and all in it. `false` if it wasn't there.
pub(super) fn remove_tree(path: &Path) -> Result<bool, Failure> {
    // Something in it may still be written by a process on its way out.
    for attempt in 0.. {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(attempt > 0),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && attempt < 20 => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Err(error) => return Err(failed("remove", path)(error)),
        }
    }
    Ok(true)
}

/// Removes a file durably. `false` if it wasn't there.
pub(super) fn remove_file(path: &Path) -> Result<bool, Failure> {
    match std::fs::remove_file(path) {
        Ok(()) => {
            if let Some(folder) = path.parent() {
                sync_directory(folder)?;
            }
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// The names in a folder; none if it isn't there.
pub(super) fn names_in(path: &Path) -> Result<Vec<String>, Failure> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed("list", path)(error)),
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// The first of `path` and its parents that a user can't pass through, by the permission bits.
pub(super) fn first_unreachable(path: &Path, (uid, gid): Owner) -> Option<PathBuf> {
    if uid == 0 {
        return None;
    }
    let mut ancestors: Vec<_> = path.ancestors().collect();
    ancestors.reverse();
    let passes = |folder: &Path| {
        std::fs::metadata(folder).is_ok_and(|found| {
            let shift = if found.uid() == uid {
                6
            } else if found.gid() == gid {
                3
            } else {
                0
            };
            found.mode() >> shift & 0o1 == 0o1
        })
    };
    ancestors.into_iter().filter(|folder| !folder.as_os_str().is_empty()).find(|folder| !passes(folder)).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_with_its_mode_and_only_when_it_differs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert!(converge(&path, b"one", 0o640, None).unwrap());
        assert!(!converge(&path, b"one", 0o640, None).unwrap());
        assert!(converge(&path, b"two", 0o640, None).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(names_in(folder.path()).unwrap(), ["a"]);
    }

    #[test]
    fn removing_what_is_not_there_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!remove_tree(&folder.path().join("x")).unwrap());
        assert!(!remove_file(&folder.path().join("x")).unwrap());
        assert!(names_in(&folder.path().join("x")).unwrap().is_empty());
    }

    #[test]
    fn says_which_folder_bars_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        make_folder(&inner, 0o755, None).unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(first_unreachable(&inner, (12_345, 12_345)).as_deref(), Some(folder.path()));
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(first_unreachable(&inner, (12_345, 12_345)), None);
    }

    #[test]
    fn a_full_disk_is_named_as_such() {
        let failure = failed("write", Path::new("/x"))(io::Error::from_raw_os_error(28));
        assert_eq!(failure.kind, FailureKind::Exhausted);
        assert!(failure.message.contains("/x"));
    }
}

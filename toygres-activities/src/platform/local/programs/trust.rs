//! Whose programs root runs: those that nobody but root can replace.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::platform::local::files::lock;

/// What PostgreSQL's folder has that toygres runs.
const PROGRAMS: [&str; 5] = ["postgres", "initdb", "psql", "pg_config", "pg_dump"];
/// Groups below are the system's own, such as Debian's staff, which /usr/local belongs to.
const FIRST_GROUP_OF_PEOPLE: u32 = 100;

/// Whether others than root can replace what it is, or what is in it.
fn is_others(found: &Metadata) -> bool {
    let (is_sticky, for_all, for_group) = (found.mode() & 0o1000 != 0, found.mode() & 0o002 != 0, found.mode() & 0o020 != 0);
    found.uid() != 0 || ((for_all || (for_group && found.gid() >= FIRST_GROUP_OF_PEOPLE)) && !is_sticky)
}

/// What others than root can replace on the way to the programs in a folder, or among them.
fn found_others(bin_dir: &Path) -> Option<PathBuf> {
    let real = bin_dir.canonicalize().ok()?;
    // A program may be a link to another folder.
    let programs = PROGRAMS.iter().filter_map(|program| real.join(program).canonicalize().ok());
    let paths: Vec<PathBuf> = programs.chain([real.clone()]).collect();
    let mut all = paths.iter().flat_map(|path| path.ancestors());
    all.find(|path| std::fs::metadata(path).is_ok_and(|found| is_others(&found))).map(Path::to_owned)
}

/// Whether the programs of a folder may be run. As another user than root all may: he runs what is his to run.
pub(super) fn is_trusted(bin_dir: &Path) -> bool {
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    let Some(others) = found_others(bin_dir) else { return true };
    if is_first(bin_dir) {
        tracing::warn!(
            path = %bin_dir.display(),
            "left out PostgreSQL programs, as others than root can write to {}; `chown root` and `chmod go-w` it to use them",
            others.display()
        );
    }
    false
}

/// Whether it is the first time that this folder is told of.
fn is_first(bin_dir: &Path) -> bool {
    static TOLD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    lock(&TOLD).insert(bin_dir.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn root_runs_only_what_root_alone_can_replace() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let bin = root.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::fs::write(bin.join("postgres"), "").unwrap();
        assert!(is_trusted(&bin), "{:?}", found_others(&bin));
        for (path, mode, owner) in [
            (root.path().to_owned(), 0o755, 12_345),
            (root.path().to_owned(), 0o757, 0),
            (bin.clone(), 0o755, 12_345),
            (bin.clone(), 0o777, 0),
            (bin.join("postgres"), 0o755, 12_345),
            (bin.join("postgres"), 0o757, 0),
        ] {
            chown(&path, Some(owner), None).unwrap();
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(found_others(&bin), Some(path.clone()));
            chown(&path, Some(0), None).unwrap();
            set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        chown(&bin, None, Some(50)).unwrap();
        set_permissions(&bin, Permissions::from_mode(0o775)).unwrap();
        assert!(is_trusted(&bin), "a group of the system's");
        chown(&bin, None, Some(1000)).unwrap();
        assert!(!is_trusted(&bin), "a group of people");
    }
}

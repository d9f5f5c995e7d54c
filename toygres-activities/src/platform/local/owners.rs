//! The user ids of instances: where toygres runs as root, each instance's server has one of its own, and so do its files.
//!
//! An instance's id is a number of its state directory's and its port, which no other instance of that directory has. Such a
//! user needs no entry in /etc/passwd: `initdb` alone asks for one, and runs as the account that all have in common.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::User;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::process::{Gid, Uid};

use super::files::Owner;

/// Above what systemd gives to containers (to 1879048191) and directory services to people (to 2000200000), and below 2^31.
const FIRST: u32 = 2_100_000_000;
/// How many state directories have ids of their own. Two that share some still have instances on different ports.
const DIRECTORIES: u32 = 700;
const EACH: u32 = u16::MAX as u32 + 1;
const LAST: u32 = FIRST + DIRECTORIES * EACH - 1;

/// The first of a state directory's ids. A directory that is moved goes on with the ids that its instances have.
pub(super) fn first_of(state_dir: &Path) -> u32 {
    let mut hasher = DefaultHasher::new();
    state_dir.hash(&mut hasher);
    let number = u32::try_from(hasher.finish() % u64::from(DIRECTORIES)).unwrap_or_default();
    FIRST + number * EACH
}

/// The user and group of the instance with that port.
pub(super) fn of_port(first: u32, port: u16) -> Owner {
    let id = first + u32::from(port);
    (id, id)
}

/// A user and group that have nothing: no instance has the port 0.
pub(super) fn nobody() -> Owner {
    const NOBODY: u32 = 65_534;
    if can_be_used() { of_port(FIRST, 0) } else { (NOBODY, NOBODY) }
}

/// Whether it is an instance's.
pub(super) fn is_instances(id: u32) -> bool {
    (FIRST..=LAST).contains(&id)
}

/// Whether somebody else on this machine has that id by name.
pub(super) fn is_somebodys(id: u32) -> bool {
    User::from_uid(id.into()).ok().flatten().is_some()
}

/// Whether this process may give files and processes to these ids: a container often has the first 65536 only.
pub(super) fn can_be_used() -> bool {
    let has_all = |file: &str| std::fs::read_to_string(file).map_or(true, |map| maps_all(&map));
    has_all("/proc/self/uid_map") && has_all("/proc/self/gid_map")
}

/// Whether the ids are in a map of a user namespace: lines of a first id, what it is outside, and how many follow.
fn maps_all(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
        let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) else { return false };
        first <= u64::from(FIRST) && u64::from(LAST) < first + count
    })
}

fn refuse(what: &str) -> io::Error {
    io::Error::other(format!("it has {what} that no server of toygres made"))
}

/// Gives a data directory to another instance's user, itself last: so its owner tells that all was given. No link is
/// followed, and what belongs to neither `from` nor an instance is nobody's to give. No process of its owner may run.
pub(super) fn give(data: &Path, from: Owner, to: Owner) -> io::Result<()> {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(data, directory, Mode::empty())?;
    let (uid, gid) = (Uid::from_raw(to.0), Gid::from_raw(to.1));
    let is_known = |found: &Stat| found.st_uid == from.0 || is_instances(found.st_uid);
    if !is_known(&rustix::fs::fstat(&opened)?) {
        return Err(refuse("an owner"));
    }
    let mut folders = vec![opened.try_clone()?];
    while let Some(folder) = folders.pop() {
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let found = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_folder = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
            if !is_known(&found) || (!is_folder && found.st_nlink != 1) {
                return Err(refuse("files"));
            }
            if is_folder {
                folders.push(rustix::fs::openat(&folder, name, directory, Mode::empty())?);
            }
            rustix::fs::chownat(&folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    rustix::fs::fchown(&opened, Some(uid), Some(gid))?;
    Ok(())
}

/// The user of an instance whose folder this is; `None` where it has none of its own.
pub(super) fn of_folder(home: &Path) -> Option<u32> {
    let found = std::fs::symlink_metadata(home).ok()?;
    is_instances(found.gid()).then(|| found.gid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn ids_are_in_a_map_or_not() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(maps_all("0 1000 1\n1 100000 4000000000\n"));
        for map in ["", "0 100000 65536\n", "0 0 2100000001\n", "x\n"] {
            assert!(!maps_all(map), "{map:?}");
        }
        assert!((0..5_000).map(|n| first_of(Path::new(&format!("/{n}")))).all(|first| of_port(first, u16::MAX).0 <= LAST));
        assert!(LAST < i32::MAX.unsigned_abs() && first_of(Path::new("/a")) != first_of(Path::new("/b")));
    }

    #[test]
    fn a_directory_is_given_without_what_its_links_lead_to() {
        if !rustix::process::geteuid().is_root() || !can_be_used() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let (data, secret) = (root.path().join("data"), root.path().join("secret"));
        std::fs::create_dir_all(data.join("base/1")).unwrap();
        std::fs::write(data.join("base/1/112"), "").unwrap();
        std::fs::write(&secret, "").unwrap();
        symlink(&secret, data.join("link")).unwrap();
        symlink("/etc", data.join("base/folder")).unwrap();
        let (us, to) = ((0, 0), of_port(FIRST, 20_000));
        give(&data, us, to).unwrap();
        let owner = |path: &Path| std::fs::symlink_metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
        for name in ["", "base", "base/1", "base/1/112", "link", "base/folder"] {
            assert_eq!(owner(&data.join(name)), to, "{name}");
        }
        assert_eq!((owner(&secret), owner(Path::new("/etc"))), (us, us));
        // A second name of somebody's file, which its owner would lose.
        std::fs::hard_link(&secret, data.join("base/1/113")).unwrap();
        give(&data, us, of_port(FIRST, 20_001)).unwrap_err();
        assert_eq!(owner(&secret), us);
        assert_eq!(owner(&data), to, "it isn't said to be given");
    }
}

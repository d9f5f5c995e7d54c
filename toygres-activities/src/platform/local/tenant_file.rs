//! The only code that opens files which an instance's own server can write: those in its data directory, its log, and the
//! folder of sockets.
//!
//! A superuser of an instance does with them what he likes, also while they are opened: a link to a file of ours, a pipe
//! that nobody writes to, two gigabytes that take no room. So nothing is followed, nothing is waited for, only a regular
//! file of the servers' user is read, and no more of it than such a file has.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The longest `PG_VERSION`, `postmaster.pid` or lock file of a socket: they have a few lines.
pub(super) const MAX_BYTES: u64 = 4096;

/// Opens a file to read it; `None` if there is none that a server of the user `uid` could have written.
pub(super) fn open(folder: &Path, name: &str, uid: u32) -> io::Result<Option<File>> {
    let directory = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let opened = rustix::fs::open(folder, directory, Mode::empty()).and_then(|folder| {
        let file = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::RDONLY;
        rustix::fs::openat(folder, name, file, Mode::empty())
    });
    let file = match opened {
        Ok(file) => File::from(file),
        // No such file or folder, a link in its place, or a socket.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = file.metadata()?;
    let is_servers = found.is_file() && found.uid() == uid;
    Ok(is_servers.then_some(file))
}

/// Reads a small file; `None` if there is none that a server of the user `uid` could have written, or if it is longer than
/// [`MAX_BYTES`].
pub(super) fn read(folder: &Path, name: &str, uid: u32) -> io::Result<Option<String>> {
    let Some(file) = open(folder, name, uid)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    let is_short = bytes.len() as u64 <= MAX_BYTES;
    Ok(String::from_utf8(bytes).ok().filter(|_| is_short))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_small_regular_file_of_the_servers_user_is_read() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("data");
        std::fs::create_dir(&folder).unwrap();
        let secret = root.path().join("secret");
        std::fs::write(&secret, "a secret").unwrap();
        std::fs::write(folder.join("good"), "17\n").unwrap();
        symlink(&secret, folder.join("link")).unwrap();
        symlink("good", folder.join("link to a good one")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, folder.join("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        std::fs::create_dir(folder.join("folder")).unwrap();
        File::create(folder.join("huge")).unwrap().set_len(2 << 30).unwrap();
        std::fs::write(folder.join("no text"), [0xff, 0xfe]).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(read(&folder, "good", uid).unwrap().as_deref(), Some("17\n"));
        for name in ["link", "link to a good one", "pipe", "socket", "folder", "huge", "no text", "missing"] {
            assert_eq!(read(&folder, name, uid).unwrap(), None, "{name}");
        }
        assert_eq!(read(&folder, "good", uid + 1).unwrap(), None, "a stranger's");
        let other = root.path().join("other");
        symlink(&folder, &other).unwrap();
        assert_eq!(read(&other, "good", uid).unwrap(), None, "a folder that is a link");
    }

    /// Whoever opens a file elsewhere says here why no tenant can have written it.
    #[test]
    fn nothing_else_opens_what_a_tenant_can_write() {
        const ELSEWHERE: [(&str, &str); 12] = [
            ("tenant_file.rs", "this is the place"),
            ("files.rs", "what toygres writes itself, beside a data directory"),
            ("record.rs", "instance.json, beside the data directory"),
            ("host.rs", "the state directory's own"),
            ("control.rs", "the control database's password, beside its data directory"),
            ("server/tls.rs", "the certificate, beside the data directory"),
            ("server/process.rs", "/proc"),
            ("server/leftovers.rs", "/proc"),
            ("owners.rs", "/proc"),
            ("logs/files.rs", "opens the log to write it, with the same flags"),
            ("programs/versions.rs", "the default version, in the state directory"),
            ("programs/archives.rs", "the folder of fetched programs"),
        ];
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/platform/local");
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap();
                let opens = ["fs::read(", "fs::read_to_string(", "File::open(", "OpenOptions::", "File::options("];
                let is_test = name.ends_with("tests.rs");
                if !is_test && opens.iter().any(|way| code.contains(way)) {
                    assert!(
                        ELSEWHERE.iter().any(|(known, _)| *known == name),
                        "{name} opens files: by tenant_file, or say why not"
                    );
                }
            }
        }
    }
}

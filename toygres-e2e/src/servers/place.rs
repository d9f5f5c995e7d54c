//! Where tests keep their files, and what is done when the machine lacks something.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// A machine's memory disk is taken if it has this much room: no test waits for a real disk then.
const ROOM_BYTES: u64 = 6 << 30;

/// For a test that can't run here: says why, or fails where `CI` is set and everything has to run.
///
/// # Errors
/// If `CI` is set.
pub fn required_or_skip(reason: &str) -> Result<()> {
    if std::env::var_os("CI").is_some() {
        bail!("this test is required where CI is set, and can't run: {reason}");
    }
    eprintln!("skipped: {reason}");
    Ok(())
}

/// Whether the tests run as root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A user's id and group.
#[must_use]
pub fn user(name: &str) -> Option<(u32, u32)> {
    let user = nix::unistd::User::from_name(name).ok()??;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// A folder of a test's own that other users can pass through; removed when dropped.
///
/// # Errors
/// If it can't be made.
pub fn temporary_folder() -> Result<TempDir> {
    folder_in(&root())
}

/// The same on a real disk.
///
/// # Errors
/// If it can't be made.
pub fn temporary_folder_on_disk() -> Result<TempDir> {
    folder_in(&chosen_root().unwrap_or_else(std::env::temp_dir))
}

fn folder_in(root: &Path) -> Result<TempDir> {
    let keep = std::env::var_os("TOYGRES_TEST_KEEP").is_some();
    let folder = tempfile::Builder::new()
        .prefix("tge2e-")
        .permissions(Permissions::from_mode(0o711))
        .disable_cleanup(keep)
        .tempdir_in(root)
        .with_context(|| format!("no folder can be made in {}", root.display()))?;
    if keep {
        eprintln!("kept: {}", folder.path().display());
    }
    Ok(folder)
}

fn chosen_root() -> Option<PathBuf> {
    std::env::var_os("TOYGRES_TEST_DIR").map(PathBuf::from)
}

fn root() -> PathBuf {
    let memory = Path::new("/dev/shm");
    chosen_root().or_else(|| (free_bytes(memory)? >= ROOM_BYTES).then(|| memory.to_owned())).unwrap_or_else(std::env::temp_dir)
}

fn free_bytes(folder: &Path) -> Option<u64> {
    let output = Command::new("df").args(["-P", "-k"]).arg(folder).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let kilobytes: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// The folder with fetched PostgreSQL builds that the tests of all runs share.
#[must_use]
pub fn shared_cache() -> PathBuf {
    // Not in the temporary folder of somebody else: what is in it is run.
    let user = if is_root() { "root".into() } else { std::env::var("USER").unwrap_or_else(|_| "me".into()) };
    std::env::var_os("TOYGRES_TEST_CACHE_DIR")
        .map_or_else(|| std::env::temp_dir().join(format!("toygres-test-cache-{user}")), PathBuf::from)
}

/// The repository's folder.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

//! The server's own files in the state directory: its lock and its token.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use secrecy::{ExposeSecret, SecretString};
use toygres_models::Password;

use crate::private_file;
use crate::settings::StateDir;

/// How long a look at the lock takes at most.
const LOOK: Duration = Duration::from_millis(20);

/// Makes the state directory where it is missing.
///
/// # Errors
/// If it can't be made, or can't be written to.
pub fn create_state_dir(state_dir: &Path) -> anyhow::Result<()> {
    // Its commands, its database and its instances would each take it for another one.
    ensure!(state_dir.is_absolute(), "the state directory {} is no absolute path", state_dir.display());
    // 0711: PostgreSQL's own user passes through; what is in it has modes of its own.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(state_dir)
        .with_context(|| format!("the state directory {} can't be made; give another one with --state-dir", state_dir.display()))
}

/// Locks the state directory for this process, until the file is dropped or the process ends, however it ends.
///
/// # Errors
/// [`Taken`] if another server has it; otherwise if the lock file can't be used.
pub fn lock(state_dir: StateDir<'_>) -> anyhow::Result<File> {
    let path = state_dir.lock_path();
    // Whoever may open it may lock it, and the folder may be passed by all.
    let open = File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
    let mut file = open
        .with_context(|| format!("{} can't be opened for writing; is the state directory yours and writable?", path.display()))?;
    let mut locked = file.try_lock();
    if matches!(locked, Err(TryLockError::WouldBlock)) {
        // It may be somebody who only looks, as `StateDir::is_locked` does.
        std::thread::sleep(LOOK);
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = std::fs::read_to_string(&path).ok().and_then(|pid| pid.trim().parse().ok());
            return Err(Taken { state_dir: state_dir.path().to_owned(), pid }.into());
        }
        Err(TryLockError::Error(error)) => return Err(anyhow!(error).context(format!("{} can't be locked", path.display()))),
    }
    // For the message of those who come later.
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Another server works on the state directory.
#[derive(Debug, thiserror::Error)]
#[error(
    "another toygres server{} works on the state directory {}, and one at a time does; nothing was changed. Commands use that \
     one by themselves (`toygres server status`). For a second server give another directory with --state-dir",
    .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), .state_dir.display()
)]
pub struct Taken {
    state_dir: PathBuf,
    /// Its process; unknown while it is just starting.
    pid: Option<u32>,
}

/// The API's token; made on first use.
///
/// # Errors
/// If its file can't be read or made, or is empty.
pub fn token(state_dir: StateDir<'_>) -> anyhow::Result<SecretString> {
    let path = state_dir.token_path();
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => {
            bail!("the token's file {} is empty; remove it, and the server makes a new token", path.display())
        }
        Ok(text) => Ok(text.trim().to_owned().into()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let token = Password::generate();
            write_private(&path, format!("{}\n", token.expose_secret()).as_bytes())?;
            Ok(token)
        }
        Err(error) => Err(error).with_context(|| format!("the token's file {} can't be read", path.display())),
    }
}

fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    private_file::write(path, content).with_context(|| format!("{} can't be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_a_state_directory_and_the_next_is_told_which() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = StateDir::new(folder.path());
        assert!(!state_dir.is_locked().unwrap());
        let first = lock(state_dir).unwrap();
        assert!(state_dir.is_locked().unwrap());
        let refused = lock(state_dir).unwrap_err();
        assert!(refused.is::<Taken>(), "{refused}");
        let process = format!("(process {})", std::process::id());
        assert!(refused.to_string().contains(&process) && refused.to_string().contains("--state-dir"), "{refused}");
        drop(first);
        assert!(!state_dir.is_locked().unwrap());
        lock(state_dir).unwrap();
    }
}

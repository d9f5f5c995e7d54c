//! The server's own files in the state directory: its lock, its token, where it listens.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use toygres_models::Password;

use crate::settings::{ServerRecord, StateDir};

/// Makes the state directory where it is missing.
///
/// # Errors
/// If it can't be made, or can't be written to.
pub fn create_state_dir(state_dir: &Path) -> anyhow::Result<()> {
    // 0711: PostgreSQL's own user passes through; what is in it has modes of its own.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(state_dir)
        .with_context(|| format!("the state directory {} can't be made; give another one with --state-dir", state_dir.display()))
}

/// Holds the state directory for this process, until dropped or until the process ends.
#[derive(Debug)]
pub struct ServerLock {
    _file: File,
}

/// Whether another server holds the state directory.
#[derive(Debug)]
pub enum Locking {
    /// It is ours.
    Ours(ServerLock),
    /// Another one has it.
    Taken,
}

/// Takes the state directory for this process, unless another server has it.
///
/// # Errors
/// If the lock file can't be opened.
pub fn lock(state_dir: &Path) -> anyhow::Result<Locking> {
    let path = state_dir.join("server.lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).with_context(|| {
            format!("{} can't be opened for writing; is the state directory yours and writable?", path.display())
        })?;
    match file.try_lock() {
        Ok(()) => Ok(Locking::Ours(ServerLock { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(Locking::Taken),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{} can't be locked", path.display())),
    }
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

/// Says where the server answers.
///
/// # Errors
/// If the file can't be written.
pub fn write_record(state_dir: StateDir<'_>, record: &ServerRecord) -> anyhow::Result<()> {
    write_private(&state_dir.server_record_path(), &serde_json::to_vec(record)?)
}

/// Writes a file of mode 0600 under another name first, so that readers see all of it or none.
fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let parent = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut file = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o600)).tempfile_in(parent)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().with_context(|| format!("{} can't be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let Locking::Ours(first) = lock(folder.path()).unwrap() else { panic!("not ours") };
        assert!(matches!(lock(folder.path()).unwrap(), Locking::Taken));
        drop(first);
        assert!(matches!(lock(folder.path()).unwrap(), Locking::Ours(_)));
    }
}

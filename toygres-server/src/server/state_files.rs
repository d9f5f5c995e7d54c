//! The servers' own files in the state directory: their locks, their token, where each listens.
//!
//! Every server on a state directory has `server.lock` shared, and one of them, which leads, `lead.lock`
//! exclusively. Both end with the process, however it ends.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use secrecy::{ExposeSecret, SecretString};
use toygres_models::Password;

use crate::private_file;
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

/// A server's hold on its state directory, until dropped or until the process ends.
#[derive(Debug)]
pub struct ServerLock {
    server: LockFile,
    lead: LockFile,
    leads: bool,
    alone: bool,
}

/// What became of taking the state directory.
#[derive(Debug)]
pub enum Locking {
    /// It is ours, and this server leads.
    Ours(ServerLock),
    /// Another one leads.
    Taken(Follower),
}

/// A server beside which another one leads.
#[derive(Debug)]
pub struct Follower(ServerLock);

/// Takes the state directory for this process, unless another server leads there. While it starts, no
/// other one does.
///
/// # Errors
/// If a lock file can't be opened.
pub fn lock(state_dir: &Path) -> anyhow::Result<Locking> {
    let (server, lead) = (LockFile::open(state_dir, "server.lock")?, LockFile::open(state_dir, "lead.lock")?);
    if !lead.take(FlockOperation::NonBlockingLockExclusive)? {
        return Ok(Locking::Taken(Follower(ServerLock { server, lead, leads: false, alone: false })));
    }
    let alone = server.take(FlockOperation::NonBlockingLockExclusive)? || !server.take(FlockOperation::NonBlockingLockShared)?;
    Ok(Locking::Ours(ServerLock { server, lead, leads: true, alone }))
}

impl Follower {
    /// Waits until the server that leads has started, or ended; then this one may have to lead.
    ///
    /// # Errors
    /// If a lock can't be taken.
    pub async fn join(self) -> anyhow::Result<ServerLock> {
        let Self(mut lock) = self;
        lock.server.wait(FlockOperation::LockShared).await?;
        lock.leads = lock.lead.take(FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock)
    }
}

impl ServerLock {
    /// Whether this server leads.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// Whether no other server was there when this one started.
    pub fn alone(&self) -> bool {
        self.alone
    }

    /// Lets others start beside this one.
    ///
    /// # Errors
    /// If the lock can't be changed.
    pub async fn share(&self) -> anyhow::Result<()> {
        self.server.wait(FlockOperation::LockShared).await
    }

    /// Waits until this server is to lead, which it then does to its end: the one that did has ended.
    ///
    /// # Errors
    /// If the lock can't be taken.
    pub async fn lead(&self) -> anyhow::Result<()> {
        self.lead.wait(FlockOperation::LockExclusive).await
    }

    /// Whether no other server is left, and none begins until this one has ended.
    pub fn is_last(&self) -> bool {
        self.server.take(FlockOperation::NonBlockingLockExclusive).unwrap_or(false)
    }
}

/// An open lock file.
#[derive(Debug)]
struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    fn open(state_dir: &Path, name: &str) -> anyhow::Result<Self> {
        let path = state_dir.join(name);
        let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(|| {
            format!("{} can't be opened for writing; is the state directory yours and writable?", path.display())
        })?;
        Ok(Self { file, path })
    }

    /// `false` if somebody else has it.
    fn take(&self, operation: FlockOperation) -> anyhow::Result<bool> {
        match flock(&self.file, operation) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("{} can't be locked", self.path.display())),
        }
    }

    /// Waits for it, in a thread that doesn't keep the process from ending.
    async fn wait(&self, operation: FlockOperation) -> anyhow::Result<()> {
        let (sender, taken) = tokio::sync::oneshot::channel();
        // What the other thread locks, this file has: it is the same open one.
        let file = self.file.try_clone()?;
        std::thread::Builder::new().name("lock".into()).spawn(move || {
            // Nobody may be waiting any more.
            let _ = sender.send(retry_on_intr(|| flock(&file, operation)));
        })?;
        let taken = taken.await.context("the wait for a lock was cut off")?;
        taken.with_context(|| format!("{} can't be locked", self.path.display()))
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

/// Says where the server answers, and forgets those that ended without saying so, if it is alone.
///
/// # Errors
/// If a file can't be written or removed.
pub fn write_record(state_dir: StateDir<'_>, record: &ServerRecord, alone: bool) -> anyhow::Result<PathBuf> {
    if alone {
        for left in state_dir.server_record_paths()? {
            std::fs::remove_file(&left).with_context(|| format!("{} can't be removed", left.display()))?;
        }
    }
    let path = if alone { state_dir.server_record_path() } else { state_dir.server_record_path_beside(record.pid) };
    write_private(&path, &serde_json::to_vec(record)?)?;
    Ok(path)
}

fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    private_file::write(path, content).with_context(|| format!("{} can't be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_leads_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let Locking::Ours(first) = lock(folder.path()).unwrap() else { panic!("not ours") };
        assert!(first.leads() && first.alone());
        assert!(matches!(lock(folder.path()).unwrap(), Locking::Taken(_)));
        drop(first);
        assert!(matches!(lock(folder.path()).unwrap(), Locking::Ours(_)));
    }

    #[tokio::test]
    async fn the_next_one_starts_after_the_first_and_leads_when_that_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let Locking::Ours(first) = lock(folder.path()).unwrap() else { panic!("not ours") };
        let Locking::Taken(second) = lock(folder.path()).unwrap() else { panic!("ours") };
        let mut joining = tokio::spawn(second.join());
        let at_once = tokio::time::timeout(std::time::Duration::from_millis(50), &mut joining).await;
        assert!(at_once.is_err(), "it started beside one that was starting");
        first.share().await.unwrap();
        let second = joining.await.unwrap().unwrap();
        assert!(!second.leads() && !second.alone() && !first.is_last());
        // Having asked, it has let go; the second is left.
        drop(first);
        second.lead().await.unwrap();
        assert!(second.is_last());
    }
}

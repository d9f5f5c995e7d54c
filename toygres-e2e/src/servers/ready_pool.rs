//! Data directories for the pools of the tests' toygres: `initdb` takes most of a test's processor time.
//!
//! One toygres makes some, once for each build of the program; the others get copies, which share a
//! system identifier and are equal to those that `initdb` makes in all else.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::{Toygres, place};

/// The control database's, and two instances'.
const SIZE: usize = 3;

/// Puts directories into the pool of a state directory that isn't there yet.
///
/// # Errors
/// If they can't be made or copied.
pub async fn fill(program: &Path, state_dir: &Path) -> Result<()> {
    copy(&template(program).await?, state_dir).await
}

/// A state directory with nothing but a pool, made by the program as it is now.
async fn template(program: &Path) -> Result<PathBuf> {
    let built = program.metadata()?.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
    let mut hasher = DefaultHasher::new();
    program.hash(&mut hasher);
    let folder = place::shared_cache().join(format!("pool-{:x}", hasher.finish()));
    let template = folder.join(built.to_string());
    if template.is_dir() {
        return Ok(template);
    }
    std::fs::create_dir_all(&folder)?;
    let file = std::fs::File::create(folder.join("lock"))?;
    // Another test may make it at this moment, here or in another process.
    let _held = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await??;
    if template.is_dir() {
        return Ok(template);
    }
    for entry in std::fs::read_dir(&folder)?.flatten().filter(|entry| entry.path().is_dir()) {
        std::fs::remove_dir_all(entry.path())?;
    }
    let maker = Toygres::new()?.with("TOYGRES_POOL_SIZE", SIZE.to_string());
    maker.ok(&["server", "start"]).await?;
    maker.wait_pool(SIZE).await?;
    maker.ok(&["server", "stop"]).await?;
    // It gets its name when all is in it, so that nobody finds half of it.
    let unfinished = folder.join("unfinished");
    copy(maker.state_dir(), &unfinished).await?;
    std::fs::rename(&unfinished, &template)?;
    Ok(template)
}

/// Copies a state directory's pool, and what the folders around it are like.
async fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to).with_context(|| format!("{} is there already", to.display()))?;
    std::fs::set_permissions(to, from.metadata()?.permissions())?;
    let output = Command::new("cp").arg("-a").arg(from.join("pool")).arg(to).stdin(Stdio::null()).output().await?;
    ensure!(output.status.success(), "the pool can't be copied: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

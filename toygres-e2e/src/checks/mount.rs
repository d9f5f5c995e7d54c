//! Small memory disks, for tests of full and read-only ones. Only root may mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::place::temporary_folder;

/// A memory disk; unmounted when dropped, so whatever works on it has to be dropped before.
#[derive(Debug)]
pub struct MemoryDisk {
    path: PathBuf,
    _folder: TempDir,
}

impl MemoryDisk {
    /// Mounts one of that size.
    ///
    /// # Errors
    /// If the system doesn't permit it.
    pub fn mount(megabytes: u32) -> Result<Self> {
        let folder = temporary_folder()?;
        let path = folder.path().join("disk");
        std::fs::create_dir(&path)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0711"), "tmpfs"]).arg(&path))?;
        Ok(Self { path, _folder: folder })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it bigger or smaller.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn resize(&self, megabytes: u32) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,size={megabytes}m")]).arg(&self.path))
    }

    /// Lets no program on it run.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn forbid_programs(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "remount,noexec"]).arg(&self.path))
    }

    /// Allows no more writing.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn make_read_only(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.path))
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        // Lazily: a process on its way out may still be in it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{:?} can't be run", command.get_program()))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

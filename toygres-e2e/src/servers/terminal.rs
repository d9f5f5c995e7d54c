//! The program on a terminal, as a person sees it: `script` from util-linux makes one.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::Toygres;
use crate::wait::SOON;

/// A command at work on a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: Option<ChildStdin>,
    screen: ChildStdout,
    seen: String,
}

impl Terminal {
    /// Whether this machine can make terminals.
    #[must_use]
    pub fn is_there() -> bool {
        let version = std::process::Command::new("script").arg("--version").output();
        version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("util-linux"))
    }

    /// Runs the program on a terminal.
    ///
    /// # Errors
    /// If `script` can't be run.
    pub fn open(toygres: &Toygres, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let direct = toygres.command(arguments);
        let words = std::iter::once(direct.as_std().get_program()).chain(direct.as_std().get_args());
        let line: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))).collect();
        let mut command = Command::new("script");
        // No shell stays between, which Ctrl-C would end.
        command
            .args(["-qefc", &format!("exec {}", line.join(" ")), "/dev/null"])
            .env_clear()
            .env("TERM", "xterm-256color")
            .env("SHELL", "/bin/sh");
        command.envs(direct.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)))).envs(variables.iter().copied());
        command.current_dir(toygres.folder()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.kill_on_drop(true).spawn().context("script can't be run")?;
        let (keyboard, screen) = (child.stdin.take(), child.stdout.take().context("the terminal has no screen")?);
        Ok(Self { child, keyboard, screen, seen: String::new() })
    }

    /// Waits until the screen has shown a text.
    ///
    /// # Errors
    /// If it doesn't soon.
    pub async fn wait_for(&mut self, text: &str) -> Result<()> {
        while !self.seen.contains(text) {
            if !self.read().await? {
                bail!("it ended and never showed {text:?}: {}", self.seen);
            }
        }
        Ok(())
    }

    /// Types keys.
    ///
    /// # Errors
    /// If nobody reads them.
    pub async fn press(&mut self, keys: &str) -> Result<()> {
        let keyboard = self.keyboard.as_mut().context("the keyboard is gone")?;
        keyboard.write_all(keys.as_bytes()).await?;
        Ok(keyboard.flush().await?)
    }

    /// Waits for the program's end: its exit status, and all that the screen has shown.
    ///
    /// # Errors
    /// If it doesn't end soon.
    pub async fn end(mut self) -> Result<(Option<i32>, String)> {
        while self.read().await? {}
        drop(self.keyboard.take());
        let status = tokio::time::timeout(SOON, self.child.wait()).await.context("the terminal doesn't close")??;
        Ok((status.code(), self.seen))
    }

    async fn read(&mut self) -> Result<bool> {
        let mut bytes = [0; 4096];
        let limit = SOON + Duration::from_secs(30);
        let read = tokio::time::timeout(limit, self.screen.read(&mut bytes)).await;
        let count = read.with_context(|| format!("nothing happens on the screen any more: {}", self.seen))??;
        self.seen.push_str(&String::from_utf8_lossy(bytes.get(..count).unwrap_or_default()));
        Ok(count > 0)
    }
}

//! A command that goes on and on, such as `toygres logs --follow`, and somebody who reads what it prints.

use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use sysinfo::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::process;
use crate::wait::{SOON, wait_until};

/// A command at work.
#[derive(Debug)]
pub struct Follower {
    child: Child,
    reader: JoinHandle<()>,
    lines: Arc<Mutex<Vec<String>>>,
}

fn lock(lines: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Follower {
    /// Starts it.
    ///
    /// # Errors
    /// If it can't be run.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut screen = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let read = lines.clone();
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = screen.next_line().await {
                lock(&read).push(line);
            }
        });
        Ok(Self { child, reader, lines })
    }

    /// What it has printed so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }

    /// Waits until the last line that it printed has these words.
    ///
    /// # Errors
    /// With that line, if it isn't so within `limit`.
    pub async fn wait_for(&self, words: &str, limit: Duration) -> Result<()> {
        let last = || lock(&self.lines).last().cloned().unwrap_or_default();
        wait_until(words, limit, || last().contains(words)).await.with_context(|| format!("the last line is {:?}", last()))
    }

    /// Ctrl-C.
    ///
    /// # Errors
    /// If it has ended.
    pub fn interrupt(&self) -> Result<()> {
        process::send(self.child.id().context("it ended")?, Signal::Interrupt)
    }

    /// Waits for its end: its exit status, and what it said besides its result.
    ///
    /// # Errors
    /// If it doesn't end soon.
    pub async fn end(self) -> Result<(Option<i32>, String)> {
        let output = tokio::time::timeout(SOON, self.child.wait_with_output()).await.context("it doesn't end")??;
        self.reader.await?;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    }
}

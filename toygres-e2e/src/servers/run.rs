//! One run of the program: what it printed, and how it ended.

use std::fmt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A command that takes this long hangs.
const LIMIT: Duration = Duration::from_secs(180);

/// A command that has ended.
#[derive(Debug)]
pub struct Run {
    /// The words after `toygres`.
    pub arguments: Vec<String>,
    /// Its exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed as its result.
    pub stdout: String,
    /// What else it said.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Run {
    /// What a command does, with something to read.
    ///
    /// # Errors
    /// If it can't be run, or hangs.
    pub async fn of(mut command: Command, stdin: Option<&[u8]>) -> Result<Self> {
        let arguments: Vec<String> = command.as_std().get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let began = Instant::now();
        command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{:?} can't be run; build it first: cargo build", command.as_std().get_program()))?;
        let mut pipe = child.stdin.take();
        let fed = async {
            if let (Some(pipe), Some(bytes)) = (&mut pipe, stdin) {
                // A program that has read enough may close its end.
                let _ = pipe.write_all(bytes).await;
            }
            drop(pipe.take());
        };
        let ended = tokio::time::timeout(LIMIT, async { tokio::join!(child.wait_with_output(), fed).0 }).await;
        let output = ended.with_context(|| format!("toygres {} took more than {} s", arguments.join(" "), LIMIT.as_secs()))??;
        Ok(Self {
            arguments,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: began.elapsed(),
        })
    }

    /// All that was printed.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// The result as JSON.
    ///
    /// # Errors
    /// If it isn't.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("the result is not JSON: {self}"))
    }

    /// Makes any other exit status an error.
    ///
    /// # Errors
    /// With all that was printed.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        ensure!(self.code == Some(code), "exit status {code} was expected: {self}");
        Ok(self)
    }

    /// Makes an error of a text that isn't for people: Rust's debug output, a panic, a backtrace.
    ///
    /// # Errors
    /// With the text and what is wrong with it.
    pub fn expect_humane(self) -> Result<Self> {
        humane(&self.text()).with_context(|| format!("not a text for people: {self}"))?;
        Ok(self)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, stdout, stderr, took, .. } = self;
        let shown = self.arguments.join(" ");
        write!(f, "`toygres {shown}` ended with {code:?} after {took:.1?}\n-- stdout\n{stdout}\n-- stderr\n{stderr}")
    }
}

/// Whether a text is for people.
///
/// # Errors
/// Names what a programmer left in it.
pub fn humane(text: &str) -> Result<()> {
    for trace in
        ["panicked at", "RUST_BACKTRACE", "Some(", "Err(", "Os {", "kind: ", "PgDatabaseError", "\\\"", "unwrap()", "::{"]
    {
        if text.contains(trace) {
            bail!("it has {trace:?}: {text}");
        }
    }
    Ok(())
}

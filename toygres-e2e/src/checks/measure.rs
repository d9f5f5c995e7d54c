//! What the benches share: times of the same thing done both ways, their medians, and the table.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// One line of the table.
#[derive(Debug)]
pub struct Measure {
    /// What was measured.
    pub name: &'static str,
    /// Toygres's own.
    pub ours: String,
    /// The same by hand.
    pub by_hand: String,
    /// What is compared with the limit.
    pub reached: String,
    /// What was promised.
    pub limit: &'static str,
    /// Whether it was kept.
    pub is_met: bool,
}

/// Runs a bench and prints its table, if it has one. With `TOYGRES_BENCH_STRICT` a limit that isn't kept is a
/// failure.
pub fn run(bench: impl Future<Output = Result<Vec<Measure>>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.context("the runtime can't be set up").and_then(|runtime| runtime.block_on(bench)) {
        Ok(measures) if measures.is_empty() => ExitCode::SUCCESS,
        Ok(measures) => {
            println!("{}", table(&measures));
            let is_strict = std::env::var_os("TOYGRES_BENCH_STRICT").is_some();
            ExitCode::from(u8::from(is_strict && measures.iter().any(|measure| !measure.is_met)))
        }
        Err(error) => {
            eprintln!("the bench could not be run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The number of rounds: `TOYGRES_BENCH_ROUNDS`, or the bench's own.
///
/// # Errors
/// If it isn't one.
pub fn rounds(default: usize) -> Result<usize> {
    let rounds = match std::env::var("TOYGRES_BENCH_ROUNDS") {
        Ok(text) => text.parse().context("TOYGRES_BENCH_ROUNDS is not a number")?,
        Err(_) => default,
    };
    ensure!(rounds > 0, "TOYGRES_BENCH_ROUNDS is 0");
    Ok(rounds)
}

/// The moment to begin at: what was written and removed before has reached the disk.
///
/// # Errors
/// If `sync` can't be run.
pub async fn calm() -> Result<Instant> {
    let status = tokio::process::Command::new("sync").status().await.context("sync can't be run")?;
    ensure!(status.success(), "sync failed");
    Ok(Instant::now())
}

/// Times of the same thing done both ways.
#[derive(Debug, Default)]
pub struct Pair {
    /// By toygres.
    pub ours: Vec<Duration>,
    /// By hand.
    pub by_hand: Vec<Duration>,
}

impl Pair {
    /// Toygres's median in medians by hand.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        median(&self.ours).as_secs_f64() / median(&self.by_hand).as_secs_f64()
    }

    /// A line of the table.
    #[must_use]
    pub fn measure(&self, name: &'static str, limit: &'static str, is_met: bool) -> Measure {
        Measure {
            name,
            ours: milliseconds(median(&self.ours)),
            by_hand: milliseconds(median(&self.by_hand)),
            reached: format!("{:.2}", self.ratio()),
            limit,
            is_met,
        }
    }
}

/// The one in the middle, or the mean of the two there.
#[must_use]
pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let middle = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    if sorted.len().is_multiple_of(2) { (at(middle.saturating_sub(1)) + at(middle)) / 2 } else { at(middle) }
}

/// A time for the table.
#[must_use]
pub fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

/// Says what is being measured now.
pub fn note(text: &str) {
    eprintln!("  {text}");
}

fn table(measures: &[Measure]) -> String {
    let mut text = "| measure | ours | by hand | ratio or value | limit | limit met |\n|---|---|---|---|---|---|\n".to_owned();
    for Measure { name, ours, by_hand, reached, limit, is_met } in measures {
        let is_met = if *is_met { "yes" } else { "**no**" };
        text.push_str(&format!("| {name} | {ours} | {by_hand} | {reached} | {limit} | {is_met} |\n"));
    }
    text
}

//! The server's log: a file that is turned over, and standard error in the foreground.

use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use anyhow::Context;
use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::settings::StateDir;

/// A log file's size before it becomes `server.log.1`, and how many older ones are kept.
const MAX_BYTES: usize = 8 * 1024 * 1024;
const KEPT: usize = 4;
/// Workflows trace every turn at `info`; what a person looks for are toygres's own lines.
const DEFAULT_FILTER: &str = "info,duroxide=warn,sqlx=warn,hyper=warn";

/// Begins to log. `TOYGRES_LOG` has a filter in `tracing`'s syntax.
///
/// # Errors
/// If the filter can't be read, or logging has begun already.
pub fn start(state_dir: StateDir<'_>, background: bool) -> anyhow::Result<()> {
    let filter = || -> anyhow::Result<EnvFilter> {
        let text = std::env::var("TOYGRES_LOG").unwrap_or_else(|_| DEFAULT_FILTER.into());
        EnvFilter::try_new(&text).with_context(|| format!("TOYGRES_LOG={text:?} is not a log filter; give, say, info or debug"))
    };
    let mut private = std::fs::OpenOptions::new();
    private.create(true).append(true).read(true).mode(0o600);
    let limit = ContentLimit::BytesSurpassed(MAX_BYTES);
    let file = FileRotate::new(state_dir.log_path(), AppendCount::new(KEPT), limit, Compression::None, Some(private));
    let to_file = fmt::layer().with_ansi(false).with_target(false).with_writer(Mutex::new(file)).with_filter(filter()?);
    let to_stderr = (!background)
        .then(|| -> anyhow::Result<_> {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            Ok(fmt::layer().with_ansi(colour).with_target(false).with_writer(std::io::stderr).with_filter(filter()?))
        })
        .transpose()?;
    tracing_subscriber::registry().with(to_file).with(to_stderr).try_init().context("logging has begun already")
}

//! The server's log: a file that is turned over, and standard error in the foreground.

use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context;
use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, Format, Full, Writer};
use tracing_subscriber::fmt::{self, FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::LogFormat;

/// A log file's size before it becomes `server.log.1`, and how many older ones are kept.
const MAX_BYTES: usize = 8 * 1024 * 1024;
const KEPT: usize = 4;
/// Workflows trace every turn at `info`; what a person looks for are toygres's own lines.
const DEFAULT_FILTER: &str = "info,duroxide=warn,sqlx=warn,hyper=warn";

/// Begins to log to the file at `path`. `TOYGRES_LOG` has a filter: levels, or targets and their levels, as in
/// `info,sqlx=debug`.
///
/// # Errors
/// If the filter can't be read, or logging has begun already.
pub fn start(path: &Path, background: bool, format: LogFormat) -> anyhow::Result<()> {
    let text = std::env::var("TOYGRES_LOG").unwrap_or_else(|_| DEFAULT_FILTER.into());
    // By target and level alone, and one for both writers: what looks at spans costs each request some 3 % of its time.
    let filter: Targets =
        text.parse().with_context(|| format!("TOYGRES_LOG={text:?} is not a log filter; give, say, info or debug"))?;
    let mut private = std::fs::OpenOptions::new();
    private.create(true).append(true).read(true).mode(0o600);
    let limit = ContentLimit::BytesSurpassed(MAX_BYTES);
    let file = FileRotate::new(path, AppendCount::new(KEPT), limit, Compression::None, Some(private));
    let to_file = layer(format, false, Mutex::new(file));
    let to_stderr = (!background).then(|| {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        layer(format, colour, std::io::stderr)
    });
    tracing_subscriber::registry().with(filter).with(to_file).with(to_stderr).try_init().context("logging has begun already")
}

fn layer<S, W>(format: LogFormat, colour: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => fmt::layer().with_ansi(colour).event_format(one_line(colour)).with_writer(writer).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_ansi(false).with_writer(writer).boxed(),
    }
}

/// Writes each event as one line, whatever its values are: a tenant's words begin no line of their own.
struct OneLine(Format<Full>);

fn one_line(colour: bool) -> OneLine {
    OneLine(format::format().with_ansi(colour).with_target(false))
}

impl<S, N> FormatEvent<S, N> for OneLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        writeln!(writer, "{}", text.replace('\r', "\\r").replace('\n', "\\n"))
    }
}

//! The server on this machine: finding it by what it left in the state directory, and starting it
//! in the background.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::error::CliError;
use super::progress::Progress;
use super::ui::Ui;
use super::watch::interrupted;
use crate::client::{Client, ClientError};
use crate::settings::{ServerRecord, Settings, StartLine};

/// How long a server that is being started may say nothing. A download tells how far it is.
const SILENCE: Duration = Duration::from_secs(120);
/// How long a server that someone else is starting may take.
const OTHERS_START: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How many lines of a crashed server's words are shown.
const EVIDENCE_LINES: usize = 15;

/// The server that runs here, if one does: it left its record, and answers as a toygres server.
/// It isn't enough that someone listens on its port, which a stranger may have taken since.
pub async fn find(settings: &Settings) -> Result<Option<ServerRecord>, CliError> {
    let path = settings.state().server_record_path();
    let Some(record) = settings.state().server_record().map_err(|error| unreadable(&path, &error))? else {
        return Ok(None);
    };
    match Client::new(&parse_url(&record.url)?, None)?.health().await {
        Ok(_) => Ok(Some(record)),
        Err(ClientError::TimedOut { .. }) => Err(CliError::failed(format!(
            "the toygres server (process {}) is there, but does not answer",
            record.pid
        ))
        .hint(format!("its log: {}", settings.state().log_path().display()))
        .hint("`toygres server stop` ends it; instances keep running, and what it was doing is finished by the next one")),
        Err(_) => Ok(None),
    }
}

/// Tells if the server is of another version than this program.
pub fn warn_of_other_version(server: &ServerRecord, ui: &Ui) {
    let mine = crate::VERSION;
    if server.version != mine {
        ui.warn(format_args!(
            "the server is toygres {}, this program {mine}; `toygres server stop` lets the next command start a new one",
            server.version
        ));
    }
}

/// Reads an address that a server wrote down.
pub fn parse_url(url: &str) -> Result<Url, CliError> {
    url.parse().map_err(|error| CliError::failed(format!("the server wrote down {url:?} as its address: {error}")))
}

/// What to say when a file of the state directory is there and can't be read.
pub fn unreadable(path: &Path, error: &io::Error) -> CliError {
    let explained = CliError::failed(format!("{} can't be read: {error}", path.display()));
    if error.kind() == io::ErrorKind::PermissionDenied {
        return explained.hint("the state directory belongs to another user; choose another one with --state-dir, or name a server with --url");
    }
    explained
}

/// Starts a server in the background and tells what it does until it serves. If another process
/// is just starting one, that one is waited for. Returns its address.
pub async fn start(settings: &Settings, ui: &Ui) -> Result<String, CliError> {
    let stderr = prepare_state_dir(settings)?;
    let log = settings.state().log_path();
    ui.note(format_args!("starting the toygres server in the background (log: {})", log.display()));
    let mut progress = Progress::begin(ui);
    let outcome = tokio::select! {
        outcome = bring_up(settings, stderr, &mut progress) => outcome,
        () = interrupted() => Err(CliError::failed("stopped waiting; the server goes on starting in the background")
            .hint("`toygres server status` tells how it went")),
    };
    match &outcome {
        Ok(_) => progress.done("server ready"),
        Err(_) => progress.clear(),
    }
    outcome
}

async fn bring_up(settings: &Settings, stderr: File, progress: &mut Progress<'_>) -> Result<String, CliError> {
    let mut child = spawn(settings, stderr)?;
    let Some(stdout) = child.stdout.take() else {
        return Err(CliError::failed("the server's standard output is not there to be read"));
    };
    let mut lines = BufReader::new(stdout).lines();
    loop {
        let Ok(line) = timeout(SILENCE, next_line(&mut lines)).await else {
            // Half a server helps nobody: what it began, the next one finishes.
            let _ = child.start_kill();
            return Err(ended(settings, format!("the server was not ready and said nothing for {} s, and was ended", SILENCE.as_secs())));
        };
        match line {
            Some(StartLine::Starting { message }) => progress.busy(&message),
            Some(StartLine::Ready { url }) => return Ok(url),
            Some(StartLine::Error { message }) => {
                return Err(CliError::failed(format!("the server could not start: {message}"))
                    .hint(format!("its log: {}", settings.state().log_path().display())));
            }
            Some(StartLine::Locked { message }) => {
                progress.busy(message.as_deref().unwrap_or("waiting for a server that is starting already"));
                return wait_for_other(settings).await;
            }
            None => return Err(ended(settings, "the server ended while it was starting".into())),
        }
    }
}

/// The next thing it says; `None` at its end. Lines that aren't for us are passed over.
async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<StartLine> {
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(line) = serde_json::from_str(&line) {
            return Some(line);
        }
    }
    None
}

fn spawn(settings: &Settings, stderr: File) -> Result<Child, CliError> {
    let program = std::env::current_exe().map_err(|error| CliError::failed(format!("this program can't find itself: {error}")))?;
    Command::new(&program)
        .args(["server", "run", "--background"])
        .env_remove("TOYGRES_URL")
        .envs(settings.to_environment())
        // So that it keeps no folder busy that somebody wants to unmount or remove.
        .current_dir(&settings.state_dir)
        // Ctrl-C goes to the terminal's foreground group: this program, not the server.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(|error| CliError::failed(format!("{} can't be started: {error}", program.display())))
}

/// Makes the state directory if need be, and opens the file that catches a crash's last words.
fn prepare_state_dir(settings: &Settings) -> Result<File, CliError> {
    let dir = &settings.state_dir;
    let refuse = |what: &str, error: &io::Error| {
        CliError::failed(format!("the state directory {} {what}: {error}", dir.display()))
            .hint("choose another one with --state-dir or TOYGRES_STATE_DIR")
    };
    let me = rustix::process::geteuid();
    // As root the servers run as another user, who has to get through to their directories.
    let mode = if me.is_root() { 0o711 } else { 0o700 };
    DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(|error| refuse("can't be made", &error))?;
    let owner = std::fs::metadata(dir).map_err(|error| refuse("can't be read", &error))?.uid();
    if owner != me.as_raw() {
        return Err(CliError::failed(format!(
            "the state directory {} belongs to another user (uid {owner}; you are {}), so no server is started on it",
            dir.display(),
            me.as_raw()
        ))
        .hint("run toygres as that user, or choose another directory with --state-dir or TOYGRES_STATE_DIR"));
    }
    let open = OpenOptions::new().create(true).append(true).mode(0o600).open(settings.state().stderr_path());
    let file = open.map_err(|error| refuse("can't be written to", &error))?;
    file.set_len(0).map_err(|error| refuse("can't be written to", &error))?;
    Ok(file)
}

async fn wait_for_other(settings: &Settings) -> Result<String, CliError> {
    let deadline = Instant::now() + OTHERS_START;
    while Instant::now() < deadline {
        if let Some(server) = find(settings).await? {
            return Ok(server.url);
        }
        sleep(POLL_INTERVAL).await;
    }
    Err(CliError::failed(format!(
        "another toygres server holds the state directory {} and did not become reachable within {} s",
        settings.state_dir.display(),
        OTHERS_START.as_secs()
    ))
    .hint(format!("its log: {}", settings.state().log_path().display())))
}

fn ended(settings: &Settings, message: String) -> CliError {
    let words = std::fs::read_to_string(settings.state().stderr_path()).unwrap_or_default();
    let lines: Vec<_> = words.lines().filter(|line| !line.trim().is_empty()).map(ToOwned::to_owned).collect();
    let tail = lines.len().saturating_sub(EVIDENCE_LINES);
    CliError::failed(message)
        .evidence(lines.into_iter().skip(tail))
        .hint(format!("its log: {}", settings.state().log_path().display()))
}

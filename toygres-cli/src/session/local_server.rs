//! The server on this machine: finding it by its Unix socket in the state directory, and starting it
//! in the background.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};
use toygres_client::local_socket::{LocalConnection, LocalError};
use toygres_client::{Client, ClientError};
use toygres_server::settings::StartLine;

use crate::error::CliError;
use crate::others_secrets;
use crate::output::interrupt::interrupted;
use crate::output::progress::Progress;
use crate::output::ui::Ui;
use crate::settings::Settings;

/// How long a server that is being started may say nothing. A download tells how far it is.
const SILENCE: Duration = Duration::from_secs(120);
/// How long a server that someone else started may hold the state directory without serving.
const OTHERS_LIMIT: Duration = Duration::from_secs(120);
/// After this long without an answer of it, another start is tried.
const OTHERS_PAUSE: Duration = Duration::from_millis(500);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How many lines of a crashed server's words are shown.
const EVIDENCE_LINES: usize = 15;

/// The server that runs here.
#[derive(Debug, Clone)]
pub struct LocalServer {
    /// Its process, where the operating system tells.
    pub pid: Option<u32>,
    /// Where browsers and programs reach it. Commands here don't use it: the port may be anybody's by now.
    pub url: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
}

/// What is found of the server that runs here.
pub enum Found {
    /// It answers.
    Answering(LocalServer),
    /// It is there, with this process id, and doesn't answer.
    Hanging(Option<u32>),
    /// There is none.
    Nothing,
}

/// Asks the server that runs here what it is, by its socket.
pub async fn find_server(settings: &Settings) -> Result<Found, CliError> {
    let Some(connection) = connect(settings).await? else { return Ok(Found::Nothing) };
    match client(settings, None)?.local_server().await {
        Ok(server) => Ok(Found::Answering(LocalServer {
            pid: connection.pid,
            url: server.url,
            version: server.version,
            started_at: server.started_at,
        })),
        Err(ClientError::TimedOut { .. }) => Ok(Found::Hanging(connection.pid)),
        Err(_) => Ok(Found::Nothing),
    }
}

/// A server that runs here, if one does. One that is there and doesn't answer is an error: another can't be started.
pub async fn find(settings: &Settings) -> Result<Option<LocalServer>, CliError> {
    match find_server(settings).await? {
        Found::Answering(server) => Ok(Some(server)),
        Found::Hanging(pid) => {
            // One that is frozen takes no request to stop.
            let command = pid.map_or_else(|| "toygres server stop".to_owned(), |pid| format!("kill -9 {pid}"));
            Err(CliError::failed(format!("the toygres server{} is there, but does not answer", process(pid)))
                .hint(log_hint(settings))
                .hint(format!("`{command}` ends it; instances keep running, and what it was doing is finished by the next one")))
        }
        Found::Nothing => Ok(None),
    }
}

/// ` (process 7)`, where that is known.
pub fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// A connection to the server that runs here, by its socket; `None` if there is no server.
pub async fn connect(settings: &Settings) -> Result<Option<LocalConnection>, CliError> {
    match LocalConnection::open(&settings.server.state().socket_folder()).await {
        Ok(connection) => Ok(Some(connection)),
        Err(LocalError::NoServer(_)) => Ok(None),
        Err(LocalError::Io(path, error)) => Err(unreadable(&path, &error)),
        Err(error @ LocalError::Owner { .. }) => {
            Err(CliError::failed(format!("{error}; nothing was sent")).hint(OTHER_DIRECTORY))
        }
        Err(error @ LocalError::Mode(..)) => Err(CliError::failed(format!("{error}; nothing was sent"))),
    }
}

/// Tells if the server is of another version than this program.
pub fn warn_of_other_version(server: &LocalServer, ui: &Ui) {
    let mine = toygres_server::VERSION;
    if server.version != mine {
        ui.warn(format_args!(
            "the server is toygres {}, this program {mine}; `toygres server stop` lets the next command start a new one",
            server.version
        ));
    }
}

/// Tells if flags were given that the server, which runs already, has no use for.
pub fn warn_of_flags(settings: &Settings, ui: &Ui) {
    let flags = &settings.flags_of_a_start;
    if !flags.is_empty() {
        let (verb, them) = if flags.len() == 1 { ("has", "it") } else { ("have", "them") };
        ui.warn(format_args!(
            "the server runs already, so {} {verb} no effect; `toygres server stop`, then `toygres server start` with {them}",
            flags.join(", ")
        ));
    }
}

/// A client of the server here, by its socket.
pub fn client(settings: &Settings, token: Option<&SecretString>) -> Result<Client, CliError> {
    Ok(Client::local(&settings.server.state().socket_folder(), token)?)
}

const OTHER_DIRECTORY: &str =
    "the state directory belongs to another user; choose another one with --state-dir, or name a server with --url";

/// What to say when a file of the state directory is there and can't be read.
pub fn unreadable(path: &Path, error: &io::Error) -> CliError {
    let explained = CliError::failed(format!("{} can't be read: {error}", path.display()));
    if error.kind() == io::ErrorKind::PermissionDenied {
        return explained.hint(OTHER_DIRECTORY);
    }
    explained
}

/// Starts a server in the background and tells what it does until it serves. If another process
/// is just starting one, that one is waited for. Returns its address.
pub async fn start(settings: &Settings, ui: &Ui) -> Result<String, CliError> {
    let stderr = prepare_state_dir(settings)?;
    let log = settings.server.state().log_path();
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

/// Starts servers until one serves. One that finds the state directory taken ends at once: then
/// the other one will serve soon, or it is just shutting down.
async fn bring_up(settings: &Settings, stderr: File, progress: &mut Progress<'_>) -> Result<String, CliError> {
    let deadline = Instant::now() + OTHERS_LIMIT;
    loop {
        let stderr = stderr.try_clone().map_err(|error| CliError::failed(format!("no more files can be opened: {error}")))?;
        if let Some(url) = start_one(settings, stderr, progress).await? {
            return Ok(url);
        }
        let pause = Instant::now() + OTHERS_PAUSE;
        while Instant::now() < pause {
            if let Some(server) = find(settings).await? {
                return Ok(server.url);
            }
            sleep(POLL_INTERVAL).await;
        }
        if Instant::now() > deadline {
            return Err(CliError::failed(format!(
                "another toygres server holds the state directory {} and did not become reachable within {} s",
                settings.server.state_dir.display(),
                OTHERS_LIMIT.as_secs()
            ))
            .hint(log_hint(settings)));
        }
    }
}

/// Starts a server and follows what it says. `None` if another one holds the state directory.
async fn start_one(settings: &Settings, stderr: File, progress: &mut Progress<'_>) -> Result<Option<String>, CliError> {
    let mut child = spawn(settings, stderr)?;
    let Some(stdout) = child.stdout.take() else {
        return Err(CliError::failed("the server's standard output is not there to be read"));
    };
    let mut lines = BufReader::new(stdout).lines();
    loop {
        let Ok(line) = timeout(SILENCE, next_line(&mut lines)).await else {
            // Half a server helps nobody: what it began, the next one finishes.
            let _ = child.start_kill();
            let problem = format!("the server was not ready and said nothing for {} s, and was ended", SILENCE.as_secs());
            return Err(ended(settings, problem));
        };
        match line {
            Some(StartLine::Starting { message }) => progress.busy(&message),
            Some(StartLine::Ready { url }) => return Ok(Some(url)),
            Some(StartLine::Error { message }) => {
                return Err(CliError::failed(format!("the server could not start: {message}")).hint(log_hint(settings)));
            }
            Some(StartLine::Locked { .. }) => {
                progress.busy("waiting for the server that has the state directory");
                return Ok(None);
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
    let program =
        std::env::current_exe().map_err(|error| CliError::failed(format!("this program can't find itself: {error}")))?;
    // libpq's variables say how this person's psql connects, not how the server does.
    let environment = std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("PG"));
    let mut command = Command::new(&program);
    command.args(["server", "run", "--background"]).env_clear().envs(environment).env_remove("TOYGRES_URL");
    for name in others_secrets::NAMES {
        command.env_remove(name);
    }
    command
        .envs(settings.to_environment())
        // So that it keeps no folder busy that somebody wants to unmount or remove.
        .current_dir(&settings.server.state_dir)
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
    let dir = &settings.server.state_dir;
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
    let open = OpenOptions::new().create(true).append(true).mode(0o600).open(settings.server.state().stderr_path());
    let file = open.map_err(|error| refuse("can't be written to", &error))?;
    file.set_len(0).map_err(|error| refuse("can't be written to", &error))?;
    Ok(file)
}

fn log_hint(settings: &Settings) -> String {
    format!("its log: {}", settings.server.state().log_path().display())
}

fn ended(settings: &Settings, message: String) -> CliError {
    let words = std::fs::read_to_string(settings.server.state().stderr_path()).unwrap_or_default();
    let lines: Vec<_> = words.lines().filter(|line| !line.trim().is_empty()).map(ToOwned::to_owned).collect();
    let tail = lines.len().saturating_sub(EVIDENCE_LINES);
    CliError::failed(message).evidence(lines.into_iter().skip(tail)).hint(log_hint(settings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::settings;

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_no_server() {
        let state_dir = tempfile::tempdir().unwrap();
        let settings = settings(state_dir.path());
        assert!(find(&settings).await.unwrap().is_none());
        let folder = settings.server.state().socket_folder();
        std::fs::create_dir(&folder).unwrap();
        assert!(find(&settings).await.unwrap().is_none());
        std::fs::write(folder.join("socket"), "").unwrap();
        assert!(find(&settings).await.unwrap().is_none());
        std::fs::remove_file(folder.join("socket")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap());
        assert!(find(&settings).await.unwrap().is_none());
    }

    #[test]
    fn a_state_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = prepare_state_dir(&settings(&file.path().join("below"))).unwrap_err();
        assert!(error.message.contains(file.path().to_str().unwrap()), "{error:?}");
        assert!(error.hints[0].contains("--state-dir"));
    }
}

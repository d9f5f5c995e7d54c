//! `toygres server start|stop|status|logs|config|run`.

mod config;
pub mod doctor;
mod logs;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde::Serialize;
use tokio::time::sleep;
use toygres_server::settings::ServerSettings;

use crate::error::{CliError, Outcome};
use crate::output::display::{self, age, moment};
use crate::output::ui::Ui;
use crate::session::process::ServerProcess;
use crate::session::{PAUSE, local_server};
use crate::settings::Settings;

/// A clean shutdown of the server and its database takes a moment; this long, something hangs.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Start the server in the background, unless it runs already
    Start,
    /// Stop the server; instances keep running
    Stop {
        /// Stop those on this machine too; the next start of the server starts them again
        #[arg(long)]
        instances: bool,
    },
    /// Tell whether the server runs, and where; exit status 1 if it doesn't
    Status,
    /// Show what the server on this machine said
    Logs(logs::ServerLogs),
    /// Show each setting here, and where it is from; a server that runs keeps those that it was started with
    Config,
    /// Run the server in the foreground, until Ctrl-C or SIGTERM
    Run {
        /// Tell the process that started it, by lines of JSON on standard output, how it goes.
        #[arg(long, hide = true)]
        background: bool,
        /// Stop the instances on this machine too when the server is told to stop, as in a container
        #[arg(long)]
        stop_instances: bool,
    },
}

pub async fn run(command: ServerCommand, settings: Settings, ui: &Ui) -> Outcome {
    match command {
        ServerCommand::Run { background, stop_instances } => {
            toygres_server::server::run(ServerSettings { stop_instances, ..settings.server }, background).await?;
            Ok(ExitCode::SUCCESS)
        }
        ServerCommand::Start => start(&settings, ui).await,
        ServerCommand::Stop { instances } => stop(&settings, ui, instances).await,
        ServerCommand::Status => status(&settings, ui).await,
        ServerCommand::Logs(arguments) => logs::run(arguments, &settings, ui).await,
        ServerCommand::Config => config::run(&settings, ui),
    }
}

async fn start(settings: &Settings, ui: &Ui) -> Outcome {
    let running = local_server::find(settings).await?;
    let was_running = running.is_some();
    let url = match &running {
        Some(server) => {
            local_server::warn_of_other_version(server, ui);
            local_server::warn_of_flags(settings, ui);
            server.url.clone()
        }
        None => local_server::start(settings, ui).await?,
    };
    if !ui.is_for_people() {
        ui.print_record(&fetch_status(settings).await?)?;
    } else if was_running {
        ui.print(format_args!("the toygres server is running already, at {url}"))?;
    } else {
        ui.print(format_args!("the toygres server is running at {url}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn stop(settings: &Settings, ui: &Ui, with_instances: bool) -> Outcome {
    if with_instances && local_server::find(settings).await?.is_none() {
        // Instances run without it, and it is what stops them.
        local_server::start(settings, ui).await?;
    }
    let Some(process) = find_process(settings, ui).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    process.terminate(with_instances).map_err(|error| {
        CliError::failed(format!("the toygres server (process {}) can't be told to stop: {error}", process.pid()))
    })?;
    if !process.wait(SHUTDOWN_LIMIT) {
        return Err(CliError::failed(format!(
            "the toygres server (process {}) was told to stop and is still there after {} s",
            process.pid(),
            SHUTDOWN_LIMIT.as_secs()
        ))
        .hint(format!("its log: {}", settings.server.state().log_path().display()))
        .hint(format!("`kill -9 {}` loses nothing: the next server finishes what this one was doing", process.pid())));
    }
    match with_instances {
        true => {
            let running = running_instances(&settings.server.state_dir);
            if !running.is_empty() {
                return Err(CliError::failed(format!(
                    "the toygres server is stopped, and these instances still run: {}",
                    running.join(", ")
                ))
                .hint(format!("its log: {}", settings.server.state().log_path().display())));
            }
            ui.print("the toygres server and the instances on this machine are stopped")?;
        }
        false => stopped(ui)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The instances that processes still work in, as far as the system tells.
fn running_instances(state_dir: &Path) -> Vec<String> {
    let instances = state_dir.join("instances");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let folders = processes.filter_map(|process| std::fs::read_link(process.path().join("cwd")).ok());
    let data = folders.filter_map(|folder| Some(folder.strip_prefix(&instances).ok()?.parent()?.display().to_string()));
    data.collect::<BTreeSet<_>>().into_iter().collect()
}

fn stopped(ui: &Ui) -> Result<(), CliError> {
    ui.print("the toygres server is stopped")?;
    ui.note("Instances keep running. The next command that needs the server starts it again.");
    Ok(())
}

/// The process to stop; `None` if there is none, which is told. One that is just starting is waited for until it listens,
/// and one that is stopping until it has ended.
async fn find_process(settings: &Settings, ui: &Ui) -> Result<Option<ServerProcess>, CliError> {
    let state = settings.server.state();
    let deadline = Instant::now() + SHUTDOWN_LIMIT;
    let mut was_locked = false;
    loop {
        if let Some(connection) = local_server::connect(settings).await? {
            if connection.pid.is_none() {
                return Err(CliError::failed("this system doesn't tell which process the toygres server is")
                    .hint("end it where it was started"));
            }
            if let Some(process) = ServerProcess::of(&connection) {
                return Ok(Some(process));
            }
        }
        let locked = state.is_locked().map_err(|error| local_server::unreadable(&state.lock_path(), &error))?;
        if !locked {
            match was_locked {
                true => stopped(ui)?,
                false => ui.note(format_args!("no toygres server runs on {}", state.path().display())),
            }
            return Ok(None);
        }
        if Instant::now() > deadline {
            return Err(CliError::failed(format!(
                "a toygres server works on {}, and neither listens nor ends within {} s",
                state.path().display(),
                SHUTDOWN_LIMIT.as_secs()
            ))
            .hint(format!(
                "its log: {}; its process is named in {}",
                state.log_path().display(),
                state.lock_path().display()
            )));
        }
        was_locked = true;
        sleep(PAUSE).await;
    }
}

/// What `server status` tells.
#[derive(Serialize)]
struct Status {
    running: bool,
    /// `ok`, or what keeps it from working.
    ready: Option<String>,
    url: Option<String>,
    pid: Option<u32>,
    version: Option<String>,
    started_at: Option<DateTime<Utc>>,
    uptime_seconds: Option<i64>,
    state_dir: String,
    log: String,
}

async fn fetch_status(settings: &Settings) -> Result<Status, CliError> {
    let server = local_server::find(settings).await?;
    let ready = match &server {
        Some(_) => {
            let client = local_server::client(settings, None)?;
            Some(client.readiness().await.map_or_else(|error| error.to_string(), |health| health.status))
        }
        None => None,
    };
    Ok(Status {
        running: server.is_some(),
        ready,
        uptime_seconds: server.as_ref().map(|server| (Utc::now() - server.started_at).num_seconds().max(0)),
        url: server.as_ref().map(|server| server.url.clone()),
        pid: server.as_ref().and_then(|server| server.pid),
        started_at: server.as_ref().map(|server| server.started_at),
        version: server.map(|server| server.version),
        state_dir: settings.server.state_dir.display().to_string(),
        log: settings.server.state().log_path().display().to_string(),
    })
}

async fn status(settings: &Settings, ui: &Ui) -> Outcome {
    let status = fetch_status(settings).await?;
    if ui.is_for_people() {
        ui.print(status_text(ui, &status))?
    } else {
        ui.print_record(&status)?
    }
    Ok(ExitCode::from(u8::from(!status.running)))
}

fn status_text(ui: &Ui, status: &Status) -> String {
    let style = ui.out;
    let (word, ready) = match (status.running, status.ready.as_deref()) {
        (true, Some("ok")) => (style.green("running"), None),
        (true, ready) => (style.yellow("running, not ready"), ready.map(ToOwned::to_owned)),
        (false, _) => (style.dim("not running"), None),
    };
    let since = status.started_at.map(|at| format!("{} (since {})", age(at, Utc::now()), moment(at)));
    let fields: Vec<(&str, String)> = [
        ("Problem", ready),
        ("URL", status.url.clone()),
        ("Process", status.pid.map(|pid| pid.to_string())),
        ("Version", status.version.clone()),
        ("Uptime", since),
        ("State", Some(status.state_dir.clone())),
        ("Log", Some(status.log.clone())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect();
    format!("{}  {word}\n\n{}", style.bold("toygres server"), display::fields(ui, &fields))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_status_says_what_keeps_it_from_working() {
        let mut status = Status {
            running: true,
            ready: Some("the control database is down".into()),
            url: Some("http://127.0.0.1:7654".into()),
            pid: Some(7),
            version: Some("0.1.0".into()),
            started_at: Some(Utc::now()),
            uptime_seconds: Some(0),
            state_dir: "/s".into(),
            log: "/s/server.log".into(),
        };
        let text = status_text(&testing::ui(), &status);
        assert!(text.starts_with("toygres server  running, not ready\n"), "{text}");
        assert!(text.contains("Problem  the control database is down\n"), "{text}");
        status.ready = Some("ok".into());
        assert!(status_text(&testing::ui(), &status).starts_with("toygres server  running\n\n  URL      http"));
    }
}

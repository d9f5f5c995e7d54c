//! Processes, told apart by what they run and where, and ended by id.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, Signal, System, UpdateKind};

use crate::wait::{SOON, wait_until};

const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// After five seconds of looking, harder means are taken.
const LOOKS: u32 = 250;

/// All processes as they are at this moment.
#[must_use]
pub fn all() -> System {
    let mut system = System::new();
    let what = ProcessRefreshKind::nothing()
        .with_exe(UpdateKind::Always)
        .with_cwd(UpdateKind::Always)
        .with_cmd(UpdateKind::Always)
        .with_environ(UpdateKind::Always)
        .with_cpu()
        .with_memory()
        .without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    system
}

fn lives(process: &Process) -> bool {
    !matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead)
}

/// A process's working directory; the same after it was removed.
fn cwd(process: &Process) -> Option<PathBuf> {
    let text = process.cwd()?.to_str()?;
    Some(text.strip_suffix(" (deleted)").unwrap_or(text).into())
}

fn runs(process: &Process, program: &str) -> bool {
    let name = process.exe().and_then(Path::file_name).and_then(OsStr::to_str).unwrap_or_default();
    name.strip_suffix(" (deleted)").unwrap_or(name) == program
}

/// Whether it is what initdb runs, and no server.
fn makes_a_directory(process: &Process) -> bool {
    process.cmd().iter().any(|word| ["--boot", "--check", "--single"].iter().any(|mode| word == *mode))
}

/// The PostgreSQL servers on a data directory: their first processes, not their children.
#[must_use]
pub fn postmasters_on(data: &Path) -> Vec<u32> {
    postmasters(|folder| folder == data)
}

/// The PostgreSQL servers on any data directory in `folder`.
#[must_use]
pub fn postmasters_below(folder: &Path) -> Vec<u32> {
    postmasters(|data| data.starts_with(folder))
}

fn postmasters(is_meant: impl Fn(&Path) -> bool) -> Vec<u32> {
    let system = all();
    let is_server =
        |process: &Process| lives(process) && runs(process, "postgres") && cwd(process).is_some_and(|folder| is_meant(&folder));
    let servers = system.processes().values().filter(|process| is_server(process));
    servers
        .filter(|process| !process.parent().and_then(|parent| system.process(parent)).is_some_and(is_server))
        .map(|process| process.pid().as_u32())
        .collect()
}

/// Processes of `toygres` that work on a state directory: servers, and commands at work.
#[must_use]
pub fn toygres_on(state_dir: &Path) -> Vec<u32> {
    let mut marked = std::ffi::OsString::from("TOYGRES_STATE_DIR=");
    marked.push(state_dir);
    let system = all();
    // By its folder too: the variable may name the directory by a link.
    let is_meant = |process: &Process| {
        process.environ().contains(&marked) || (runs(process, "toygres") && cwd(process).is_some_and(|cwd| cwd == state_dir))
    };
    let found = system.processes().values().filter(|process| lives(process) && is_meant(process));
    found.map(|process| process.pid().as_u32()).collect()
}

/// `toygres server run` processes among them.
#[must_use]
pub fn servers_on(state_dir: &Path) -> Vec<u32> {
    let mut found = toygres_on(state_dir);
    let system = all();
    found.retain(|pid| {
        let words = system.process(Pid::from_u32(*pid)).map(Process::cmd).unwrap_or_default();
        words.iter().any(|word| word == "run")
    });
    found
}

/// Processes that work in `folder`, whatever they run.
#[must_use]
pub fn working_below(folder: &Path) -> Vec<u32> {
    below(folder, |_| true)
}

fn below(folder: &Path, is_meant: impl Fn(&Process) -> bool) -> Vec<u32> {
    let system = all();
    let works_there = |process: &Process| lives(process) && cwd(process).is_some_and(|cwd| cwd.starts_with(folder));
    let found = system.processes().values().filter(|process| works_there(process) && is_meant(process));
    found.map(|process| process.pid().as_u32()).collect()
}

/// Whether a process is there and hasn't ended.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let pid = Pid::from_u32(pid);
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, ProcessRefreshKind::nothing());
    system.process(pid).is_some_and(lives)
}

/// What a process takes of the machine's memory now, in bytes.
///
/// # Errors
/// If it isn't there.
pub fn memory_bytes(pid: u32) -> Result<u64> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, ProcessRefreshKind::nothing().with_memory());
    Ok(system.process(pid).context("the process is gone")?.memory())
}

/// Sends a signal to one process. One that is gone is no error.
///
/// # Errors
/// If it is there and may not be signalled.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, ProcessRefreshKind::nothing());
    let Some(process) = system.process(pid) else { return Ok(()) };
    let sent = process.kill_with(signal).with_context(|| format!("this system has no signal {signal}"))?;
    ensure!(sent || !is_alive(pid.as_u32()), "{signal} could not be sent to process {pid}");
    Ok(())
}

/// Kills a process with no chance to tidy up, and waits until it is gone.
///
/// # Errors
/// If it doesn't go.
pub async fn kill(pid: u32) -> Result<()> {
    send(pid, Signal::Kill)?;
    wait_gone(pid).await
}

/// Waits until a process has ended.
///
/// # Errors
/// If it doesn't soon.
pub async fn wait_gone(pid: u32) -> Result<()> {
    wait_until(&format!("the end of process {pid}"), SOON, || !is_alive(pid)).await
}

/// Ends everything that works on or in a folder. Shared memory belongs to no folder, so processes that have
/// some get the time to release it.
pub fn end_all(state_dir: &Path) {
    // First toygres, so that it restarts nothing.
    end_each(|| toygres_on(state_dir), Signal::Kill);
    // Without initdb, what it runs has nothing more to read, and ends by itself.
    end_each(|| below(state_dir, |process| runs(process, "initdb")), Signal::Kill);
    for _ in 0..LOOKS {
        if below(state_dir, |process| runs(process, "postgres") && makes_a_directory(process)).is_empty() {
            break;
        }
        std::thread::sleep(LOOK_AGAIN_AFTER);
    }
    // An immediate shutdown.
    end_each(|| postmasters_below(state_dir), Signal::Quit);
    end_each(|| working_below(state_dir), Signal::Kill);
}

fn end_each(list: impl Fn() -> Vec<u32>, signal: Signal) {
    for _ in 0..LOOKS {
        let pids = list();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            // What can't be ended shows in the next look.
            let _ = send(pid, signal);
        }
        std::thread::sleep(LOOK_AGAIN_AFTER);
    }
}

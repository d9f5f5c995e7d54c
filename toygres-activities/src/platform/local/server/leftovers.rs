//! What outlives a server: processes that its superuser started, and shared memory. Only an instance with a user id of its own
//! can be freed of them.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};
use toygres_models::{Failure, FailureKind};

/// How often a user's processes are ended before that is given up.
const END_ATTEMPTS: u32 = 200;

/// Ends every process of a user who has nothing but one instance, and frees the memory that they shared. The caller knows
/// that its server is stopped.
pub(in crate::platform::local) fn end_all_of(uid: u32) -> Result<(), Failure> {
    end_processes(uid)?;
    free_shared_memory(uid);
    Ok(())
}

/// System V shared memory, which belongs to no process: that of a server which was killed, or of a program of its
/// superuser's. It also keeps from the disk's other uses the folders that a killed server was limited to.
fn free_shared_memory(uid: u32) {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    // key shmid perms size cpid lpid nattch uid …
    let id_of = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words.get(7)?.parse() == Ok(uid)).then(|| words.get(1).map(|id| (*id).to_owned()))?
    };
    for id in table.lines().filter_map(id_of) {
        // No crate that is here has the call, and the user may free what is his.
        let freed = Command::new("ipcrm").args(["-m", &id]).uid(uid).gid(uid).stdin(Stdio::null()).stderr(Stdio::null()).status();
        if !freed.is_ok_and(|status| status.success()) {
            tracing::warn!(user.id = uid, shared_memory = id, "could not free shared memory of an instance that is gone");
        }
    }
}

fn end_processes(uid: u32) -> Result<(), Failure> {
    // What is ended may be starting another one at this moment.
    for attempt in 0..END_ATTEMPTS {
        let found = all_of(uid);
        if found.is_empty() {
            return Ok(());
        }
        if attempt == 0 {
            tracing::info!(user.id = uid, count = found.len(), "ending the processes that an instance's superuser left");
        }
        for pid in found {
            end_if_of(pid, uid);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let message = format!("processes with the user id {uid} don't end, not even by force; end them by `pkill -KILL -U {uid}`");
    Err(Failure::transient(FailureKind::Platform, message))
}

fn of_user() -> ProcessRefreshKind {
    ProcessRefreshKind::nothing().with_user(UpdateKind::Always).without_tasks()
}

/// The processes of a user that haven't ended.
fn all_of(uid: u32) -> Vec<sysinfo::Pid> {
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, of_user());
    let lives = |process: &sysinfo::Process| !matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead);
    let is_his = |process: &&sysinfo::Process| process.user_id().is_some_and(|found| **found == uid) && lives(process);
    system.processes().values().filter(is_his).map(sysinfo::Process::pid).collect()
}

/// Ends a process if it is that user's, and no other one that has its number by now.
#[cfg(target_os = "linux")]
fn end_if_of(pid: sysinfo::Pid, uid: u32) {
    let Some(raw) = i32::try_from(pid.as_u32()).ok().and_then(Pid::from_raw) else { return };
    let Ok(held) = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()) else { return };
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, of_user());
    if system.process(pid).and_then(sysinfo::Process::user_id).is_some_and(|found| **found == uid) {
        let _ = rustix::process::pidfd_send_signal(&held, Signal::KILL);
    }
}

/// Elsewhere no instance has a user of its own.
#[cfg(not(target_os = "linux"))]
fn end_if_of(_pid: sysinfo::Pid, _uid: u32) {}

//! The duty of a container's first process: taking note of the ends of others' children.
//!
//! A server of PostgreSQL that is killed leaves children to process 1. The own ones are noted by tokio at once, so what has
//! been dead for a whole interval is nobody's.

use std::collections::HashSet;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

const INTERVAL: Duration = Duration::from_secs(5);

/// Does that for as long as the server runs, if it is process 1.
pub async fn keep_reaping() {
    if std::process::id() != 1 {
        return;
    }
    let mut dead_before = HashSet::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let dead = tokio::task::spawn_blocking(dead_children).await.unwrap_or_default();
        for pid in dead.intersection(&dead_before) {
            if let Some(pid) = Pid::from_raw(*pid) {
                // Another process noted it.
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
        dead_before = dead;
    }
}

fn dead_children() -> HashSet<i32> {
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, ProcessRefreshKind::nothing());
    let own = sysinfo::Pid::from_u32(std::process::id());
    let is_dead = |process: &&sysinfo::Process| process.parent() == Some(own) && process.status() == ProcessStatus::Zombie;
    system.processes().values().filter(is_dead).filter_map(|process| i32::try_from(process.pid().as_u32()).ok()).collect()
}

//! Reaping orphans, which a container's process 1 has to do.
//!
//! The children of a PostgreSQL server that is killed become process 1's. tokio reaps the children that toygres started, and does
//! so at once: a child that has been a zombie for a whole interval is an orphan.

use std::collections::HashSet;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

const INTERVAL: Duration = Duration::from_secs(5);

/// Reaps orphans for as long as the server runs, if it is process 1.
pub async fn keep_reaping() {
    if std::process::id() != 1 {
        return;
    }
    let mut dead_before = HashSet::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let dead = tokio::task::spawn_blocking(zombies).await.unwrap_or_default();
        for pid in dead.intersection(&dead_before) {
            if let Some(pid) = Pid::from_raw(*pid) {
                // tokio may have reaped it a moment ago.
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
        dead_before = dead;
    }
}

fn zombies() -> HashSet<i32> {
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, ProcessRefreshKind::nothing());
    let own = sysinfo::Pid::from_u32(std::process::id());
    let is_dead = |process: &&sysinfo::Process| process.parent() == Some(own) && process.status() == ProcessStatus::Zombie;
    system.processes().values().filter(is_dead).filter_map(|process| i32::try_from(process.pid().as_u32()).ok()).collect()
}

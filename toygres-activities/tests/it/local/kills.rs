//! The local platform's verbs, cut at each of their kill points by killing the process that is at them.

#![expect(clippy::unwrap_used, reason = "a failed check is to panic")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use toygres_activities::platform::Platform;
use toygres_activities::platform::local::{DirectoryPorts, LocalConfig, LocalHost, LocalPlatform};

use toygres_models::PlatformName;

use crate::support::local::local;
use crate::support::{READY, Subject, ask, key, spec, spec_of};

/// Not a check: what the next two run as a process of its own, to be killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the checks that kill it"]
async fn a_process_to_be_killed() {
    let Ok(task) = std::env::var("TOYGRES_CONFORMANCE_TASK") else { return };
    let config = LocalConfig::from_environment().unwrap();
    let host = LocalHost::open(config).await.unwrap();
    let platform = LocalPlatform::new(host.clone(), std::sync::Arc::new(DirectoryPorts::new(&host)));
    if task == "remove" {
        platform.remove(&key("demo")).await.unwrap();
        return;
    }
    if let Some(request) = task.strip_prefix("restart ") {
        platform.restart(&key("demo"), request).await.unwrap();
        return;
    }
    platform.ensure(&spec_of(PlatformName::Local, task.parse().unwrap(), "demo")).await.unwrap();
}

fn killed_at(point: &str, task: &str, config: &LocalConfig) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "local::kills::a_process_to_be_killed"])
        .env("TOYGRES_CONFORMANCE_TASK", task)
        .env("TOYGRES_KILL_AT", point)
        .env("TOYGRES_STATE_DIR", &config.state_dir)
        .env("TOYGRES_CACHE_DIR", &config.cache_dir)
        .env("TOYGRES_PORT_RANGE", format!("{}-{}", config.port_range.start(), config.port_range.end()))
        .env("TOYGRES_POOL_SIZE", "0")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(9), "it wasn't killed at {point}, but ended with {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_while_it_creates_leaves_what_the_next_one_finishes() {
    let local = local().await;
    let version = local.version().to_string();
    for point in [
        "create-initdb-begun",
        "create-begun",
        "create-folder-made",
        "create-recorded",
        "create-data-not-given",
        "create-data-placed",
        "create-server-started",
        "create-server-answers",
        "create-database-made",
        "create-owner-made",
        "create-password-set",
        "create-provisioned",
    ] {
        if point == "create-data-not-given" && !local.host.account().separates {
            continue;
        }
        killed_at(point, &version, &local.config);
        let again = local.restarted().await;
        again.supervise().await.unwrap();
        let half = again.observe(&key("demo")).await.unwrap();
        let made = again.ensure(&spec(&local, "demo")).await;
        made.unwrap_or_else(|failure| panic!("killed at {point}: {failure:?}; it was {half:?}"));
        ask(&local, "demo", "SELECT 'x'").await;
        assert_eq!(local.servers(), 1, "killed at {point}");
        assert!(again.remove(&key("demo")).await.unwrap());
        assert_eq!((local.servers(), local.leftovers()), (0, vec![]), "killed at {point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_while_it_removes_leaves_what_the_next_one_finishes() {
    let local = local().await;
    for point in [
        "remove-begun",
        "remove-record-gone",
        "remove-server-stopped",
        "remove-data-gone",
        "remove-folder-gone",
        "remove-port-released",
    ] {
        let first = local.restarted().await;
        first.ensure(&spec(&local, "demo")).await.unwrap();
        first.shutdown();
        killed_at(point, "remove", &local.config);
        let again = local.restarted().await;
        again.supervise().await.unwrap();
        again.remove(&key("demo")).await.unwrap();
        assert_eq!((local.servers(), local.leftovers()), (0, vec![]), "killed at {point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_while_it_restarts_leaves_what_the_next_one_finishes() {
    let local = local().await;
    local.restarted().await.ensure(&spec(&local, "demo")).await.unwrap();
    for point in ["restart-recorded", "restart-server-stopped"] {
        let request = format!("request at {point}");
        let started = || ask(&local, "demo", "SELECT pg_postmaster_start_time()::text");
        let before = started().await;
        killed_at(point, &format!("restart {request}"), &local.config);
        let again = local.restarted().await;
        again.supervise().await.unwrap();
        again.restart(&key("demo"), &request).await.unwrap();
        assert!(again.wait_ready(&key("demo"), READY).await.unwrap().ready, "killed at {point}");
        let after = started().await;
        assert_ne!(after, before, "killed at {point}");
        assert!(!again.restart(&key("demo"), &request).await.unwrap(), "killed at {point}");
        assert_eq!((started().await, local.servers()), (after, 1), "killed at {point}");
        again.shutdown();
    }
}

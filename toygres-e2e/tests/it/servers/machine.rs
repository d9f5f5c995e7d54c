//! The server and its instances as the only things on a machine, as in a container.

use std::process::Stdio;

use anyhow::Result;
use sysinfo::{ProcessStatus, ProcessesToUpdate, Signal, System};
use tokio::process::Command;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Toygres, eventually, process, required_or_skip};

/// The instance's server, once there is one that answers.
async fn answering(toygres: &Toygres, than: Option<u32>) -> Result<u32> {
    eventually("a server that answers", SOON, async || {
        let Some(postmaster) = toygres.postmasters("demo").first().copied().filter(|pid| Some(*pid) != than) else {
            return Ok(None);
        };
        toygres.api()?.log_in("demo").await?;
        Ok(Some(postmaster))
    })
    .await
}

#[tokio::test]
async fn instances_stop_with_the_server_where_that_is_wanted_and_come_back_with_the_next() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    toygres.ok(&["psql", "demo", "-c", "create table kept as select 42 as answer"]).await.unwrap();
    toygres.ok(&["server", "stop", "--instances"]).await.unwrap();
    assert_eq!(toygres.postmasters("demo"), [0; 0]);
    let log = std::fs::read_to_string(toygres.log_files("demo").unwrap().last().unwrap()).unwrap();
    assert!(log.contains("database system is shut down"), "it was not stopped cleanly: {log}");
    assert_eq!(toygres.json(&["get", "demo"]).await.unwrap()["spec"]["power"], "running");
    answering(&toygres, None).await.unwrap();
    let kept = toygres.ok(&["psql", "demo", "-XAtc", "select answer from kept"]).await.unwrap();
    assert_eq!(kept.stdout, "42\n", "{kept}");
}

/// Zombies among a process's children.
fn zombies_of(pid: u32) -> usize {
    let mut system = System::new();
    system.refresh_processes(ProcessesToUpdate::All, true);
    let parent = sysinfo::Pid::from_u32(pid);
    let is_dead = |process: &&sysinfo::Process| process.parent() == Some(parent) && process.status() == ProcessStatus::Zombie;
    system.processes().values().filter(is_dead).count()
}

#[tokio::test]
async fn as_process_1_it_reaps_orphans_and_stops_its_instances() {
    let toygres = Toygres::new().unwrap();
    let server = toygres.command(&["server", "run", "--stop-instances"]);
    let server = server.as_std();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(server.get_program()).args(server.get_args());
    command.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let container = command.spawn();
    let begun = eventually("the server in its container", SOON, async || Ok(toygres.server_pid().ok())).await;
    let (Ok(mut container), Ok(pid)) = (container, begun) else {
        return required_or_skip("no process of its own namespace can be started here").unwrap();
    };
    toygres.ok(&["create", "demo"]).await.unwrap();
    let first = answering(&toygres, None).await.unwrap();
    process::kill(first).await.unwrap();
    answering(&toygres, Some(first)).await.unwrap();
    eventually("the orphans to be reaped", SOON, async || Ok((zombies_of(pid) == 0).then_some(()))).await.unwrap();

    process::send(pid, Signal::Term).unwrap();
    assert!(container.wait().await.unwrap().success());
    assert_eq!(toygres.postmasters("demo"), [0; 0]);
    let log = std::fs::read_to_string(toygres.log_files("demo").unwrap().last().unwrap()).unwrap();
    assert!(log.contains("database system is shut down"), "it was not stopped cleanly: {log}");
    // Where it isn't process 1, another server goes on.
    toygres.ok(&["server", "start"]).await.unwrap();
    answering(&toygres, None).await.unwrap();
}

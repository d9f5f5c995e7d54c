//! Days on which the machine doesn't play along: processes die, files vanish.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use toygres_e2e::wait::{SOON, take_address};
use toygres_e2e::{Toygres, eventually, process, wait_until};

/// An instance's health and state, as one sees them.
async fn seen(toygres: &Toygres, name: &str) -> Result<(String, String)> {
    let instance = toygres.json(&["get", name]).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&instance["state"]), text(&instance["status"]["health_status"])))
}

async fn wait_seen(toygres: &Toygres, name: &str, state: &str, health: &str) -> Result<()> {
    eventually(&format!("{name} to be {state} and {health}"), SOON, async || {
        let now = seen(toygres, name).await?;
        if now == (state.into(), health.into()) { Ok(Some(())) } else { bail!("it is {now:?}") }
    })
    .await
}

async fn kinds_of_events(toygres: &Toygres, name: &str) -> Result<Vec<String>> {
    let events = toygres.json(&["events", name]).await?;
    let events = events.as_array().cloned().unwrap_or_default();
    Ok(events.iter().filter_map(|event| Some(event["kind"].as_str()?.to_owned())).collect())
}

#[tokio::test]
async fn an_instance_that_dies_is_restarted_with_its_data_and_an_event_says_so() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut session = api.log_in("demo").await.unwrap();
    sqlx::query("CREATE TABLE kept AS SELECT 42 AS answer").execute(&mut session).await.unwrap();
    let first = toygres.only_postmaster("demo").await.unwrap();
    process::kill(first).await.unwrap();
    eventually("the instance to answer again", SOON, async || {
        let mut session = api.log_in("demo").await?;
        let (answer,): (i32,) = sqlx::query_as("SELECT answer FROM kept").fetch_one(&mut session).await?;
        ensure!(answer == 42);
        Ok(Some(()))
    })
    .await
    .unwrap();
    assert_ne!(toygres.only_postmaster("demo").await.unwrap(), first);
    // Before anybody looks at its health, which is told too.
    eventually("two events", SOON, async || {
        let kinds = kinds_of_events(&toygres, "demo").await?;
        ensure!(kinds[2..] == ["server_exited", "server_restarted"], "{kinds:?}");
        Ok(Some(()))
    })
    .await
    .unwrap();
    wait_seen(&toygres, "demo", "running", "healthy").await.unwrap();
    let operations = toygres.json(&["operations"]).await.unwrap();
    assert_eq!(operations.as_array().unwrap().len(), 1, "nobody asked for anything: {operations}");
}

#[tokio::test]
async fn an_instance_that_died_while_no_server_ran_is_started_by_the_next() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap().create("demo").await.unwrap();
    toygres.ok(&["server", "stop"]).await.unwrap();
    process::kill(toygres.only_postmaster("demo").await.unwrap()).await.unwrap();
    // Another process may have the number by now: that must not keep the instance down.
    let file = toygres.instance_dir("demo").join("data/postmaster.pid");
    let text = std::fs::read_to_string(&file).unwrap();
    let reused = text.split_once('\n').map(|(_, rest)| format!("{}\n{rest}", std::process::id())).unwrap();
    std::fs::write(&file, reused).unwrap();
    toygres.ok(&["list"]).await.unwrap();
    let api = toygres.api().unwrap();
    eventually("the instance to answer again", SOON, async || api.log_in("demo").await.map(Some)).await.unwrap();
    toygres.only_postmaster("demo").await.unwrap();
    wait_seen(&toygres, "demo", "running", "healthy").await.unwrap();
}

#[tokio::test]
async fn a_killed_server_is_replaced_by_the_next_command_and_nothing_is_restarted() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    let before = toygres.all_postmasters();
    let postmaster = toygres.only_postmaster("demo").await.unwrap();
    // A clock that was set back or forward makes the start time in this file a wrong one.
    let file = toygres.instance_dir("demo").join("data/postmaster.pid");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut lines: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
    lines[2] = (lines[2].parse::<i64>().unwrap() - 7200).to_string();
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();

    toygres.kill_server().await.unwrap();
    assert_eq!(toygres.json(&["get", "demo"]).await.unwrap()["state"], "running");
    assert_eq!(toygres.only_postmaster("demo").await.unwrap(), postmaster);
    assert_eq!(toygres.all_postmasters(), before, "the control database was restarted, or started twice");
    assert_eq!(kinds_of_events(&toygres, "demo").await.unwrap().len(), 2, "nothing happened to it");
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();
}

#[tokio::test]
async fn a_control_database_that_dies_comes_back_and_nothing_is_lost() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let control = toygres.state_dir().join("control/data");
    for round in 0..2 {
        let [pid] = process::postmasters_on(&control)[..] else { panic!("not one control database") };
        process::kill(pid).await.unwrap();
        let down = api.get("/v1/instances").await.unwrap();
        assert!([200, 503].contains(&down.status.as_u16()), "{}", down.text);
        if down.status == 503 {
            let detail = down.expect_problem(503).unwrap();
            assert!(!detail.contains("sqlx") && !detail.contains("pool"), "{detail}");
        }
        eventually("the API to work again", SOON, async || api.items("/v1/instances").await.map(Some)).await.unwrap();
        api.get("/readyz").await.unwrap().expect(200).unwrap();
        // Workflows too, and at once: within the time of the first look, not of a lost wake-up.
        let name = format!("after-{round}");
        api.create(&name).await.unwrap();
        api.delete(&name).await.unwrap();
    }
    api.log_in("demo").await.unwrap();
    wait_seen(&toygres, "demo", "running", "healthy").await.unwrap();
}

#[tokio::test]
async fn a_control_database_that_dies_during_a_create_only_delays_it() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.state_dir().join("control/data");
    let operation = api.begin_create("demo").await.unwrap();
    wait_until("the instance's folder", SOON, || toygres.instance_dir("demo").exists()).await.unwrap();
    let [pid] = process::postmasters_on(&control)[..] else { panic!("not one control database") };
    process::kill(pid).await.unwrap();
    eventually("the API to work again", SOON, async || api.items("/v1/operations").await.map(Some)).await.unwrap();
    api.wait_success(&operation).await.unwrap();
    toygres.only_postmaster("demo").await.unwrap();
    api.log_in("demo").await.unwrap();
}

#[tokio::test]
async fn a_removed_data_directory_shows_as_unhealthy_and_can_be_deleted() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    api.create("whole").await.unwrap();
    std::fs::remove_dir_all(toygres.instance_dir("demo").join("data")).unwrap();
    // The server notices the loss of its files by itself within a minute; this is sooner.
    process::kill(toygres.only_postmaster("demo").await.unwrap()).await.unwrap();
    wait_seen(&toygres, "demo", "running", "unhealthy").await.unwrap();
    assert!(toygres.ok(&["list"]).await.unwrap().stdout.contains("unhealthy"));
    eventually("an event that says that the data is gone", SOON, async || {
        let events = toygres.json(&["events", "demo"]).await?;
        let mut events = events.as_array().into_iter().flatten();
        let told = |event: &Value| {
            event["kind"] == "server_start_failed" && event["message"].as_str().is_some_and(|text| text.contains("gone"))
        };
        Ok(events.any(told).then_some(()))
    })
    .await
    .unwrap();
    assert!(!toygres.instance_dir("demo").join("data/PG_VERSION").exists(), "an empty database took the lost one's place");
    wait_seen(&toygres, "whole", "running", "healthy").await.unwrap();
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();

    // Of the other one somebody removes all, its server still running.
    std::fs::remove_dir_all(toygres.instance_dir("whole")).unwrap();
    toygres.ok(&["list"]).await.unwrap();
    toygres.ok(&["delete", "whole", "--yes"]).await.unwrap();
    toygres.expect_nothing_of("whole").await.unwrap();
}

#[tokio::test]
async fn a_lost_secret_is_told_and_the_instance_can_be_deleted() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    std::fs::remove_file(toygres.secret_file("demo")).unwrap();
    let run = toygres.fails(1, &["connect", "demo"]).await.unwrap();
    assert!(run.stderr.contains("no password is kept"), "{run}");
    let connection = api.get("/v1/instances/demo/connection").await.unwrap().expect_problem(409).unwrap();
    assert!(!connection.contains(&*toygres.state_dir().to_string_lossy()), "{connection}");
    let create = json!({ "name": "demo", "password": "hunter2" });
    let create = api.post_instance(&create).await.unwrap().expect_problem(409).unwrap();
    assert!(create.contains("no password is kept"), "{create}");
    toygres.ok(&["get", "demo"]).await.unwrap();
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();
}

#[tokio::test]
async fn ctrl_c_stops_the_waiting_and_not_the_work() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    toygres_e2e::control::hold_up(&control, "demo", "deploy-postgres", toygres_e2e::control::Moment::End).await.unwrap();
    let mut command = toygres.command(&["create", "demo"]);
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    toygres_e2e::control::wait_held_up(&control, 1).await.unwrap();
    process::send(child.id().unwrap(), sysinfo::Signal::Interrupt).unwrap();
    let output = tokio::time::timeout(SOON, child.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let id = said.split("toygres operations watch ").nth(1).unwrap_or_else(|| panic!("no way to go on: {said}"));
    let id = id.split_whitespace().next().unwrap().to_owned();
    let waiting = toygres.json(&["operations", "get", &id]).await.unwrap();
    assert_eq!(waiting["state"], "running", "{waiting}");
    toygres_e2e::control::let_go(&control).await.unwrap();
    toygres.ok(&["operations", "watch", &id]).await.unwrap();
    wait_seen(&toygres, "demo", "running", "healthy").await.unwrap();
}

#[tokio::test]
async fn a_command_that_waits_survives_the_death_of_the_server() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    toygres_e2e::control::hold_up(&control, "demo", "deploy-postgres", toygres_e2e::control::Moment::End).await.unwrap();
    let waiting = toygres.run(&["create", "demo"]);
    let killer = async {
        toygres_e2e::control::wait_held_up(&control, 1).await?;
        toygres.kill_server().await?;
        toygres_e2e::control::let_go(&control).await
    };
    let (run, killed) = tokio::join!(waiting, killer);
    killed.unwrap();
    let run = run.unwrap().expect_code(0).unwrap();
    assert!(run.stdout.contains("demo is ready"), "{run}");
    toygres.only_postmaster("demo").await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_during_a_create_leaves_it_to_the_next() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    toygres_e2e::control::hold_up(&control, "demo", "wait-for-ready", toygres_e2e::control::Moment::Begin).await.unwrap();
    let operation = api.begin_create("demo").await.unwrap();
    toygres_e2e::control::wait_held_up(&control, 1).await.unwrap();
    toygres.ok(&["server", "stop"]).await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let control = toygres.control().await.unwrap();
    toygres_e2e::control::let_go(&control).await.unwrap();
    toygres.api().unwrap().wait_success(&operation).await.unwrap();
    toygres.only_postmaster("demo").await.unwrap();
    let steps = toygres.json(&["operations", "get", &operation]).await.unwrap()["steps"].clone();
    assert!(steps.as_array().unwrap().iter().all(|step| step["state"] == "succeeded"), "{steps}");
}

/// A program that has taken over the port of a server that ended, and keeps what it is sent.
fn stranger(listener: std::net::TcpListener, answer: &'static str) -> std::sync::mpsc::Receiver<String> {
    let (sender, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut bytes = [0; 8192];
            let length = std::io::Read::read(&mut stream, &mut bytes).unwrap_or_default();
            let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
            if sender.send(String::from_utf8_lossy(&bytes[..length]).into_owned()).is_err() {
                return;
            }
        }
    });
    heard
}

#[tokio::test]
async fn a_stranger_on_the_old_servers_port_is_not_taken_for_it_and_learns_no_token() {
    for answer in ["", "hello\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"] {
        let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
        toygres.serve().await.unwrap();
        let url = toygres.url().unwrap();
        toygres.kill_server().await.unwrap();
        let heard = stranger(take_address(url.trim_start_matches("http://")).await.unwrap(), answer);
        toygres.json(&["list"]).await.unwrap();
        assert_ne!(toygres.url().unwrap(), url);
        let token = std::fs::read_to_string(toygres.state_dir().join("token")).unwrap();
        let told: Vec<String> = heard.try_iter().collect();
        assert!(told.iter().all(|request| !request.contains(token.trim())), "the token was sent to a stranger: {told:?}");
    }
}

#[tokio::test]
async fn what_a_crash_left_half_written_is_no_obstacle() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    let postmaster = toygres.only_postmaster("demo").await.unwrap();
    for half in ["", "1", "nonsense"] {
        toygres.kill_server().await.unwrap();
        std::fs::write(toygres.state_dir().join("server.lock"), half).unwrap();
        std::fs::remove_file(toygres.socket()).unwrap();
        std::fs::write(toygres.socket(), half).unwrap();
        assert_eq!(toygres.json(&["get", "demo"]).await.unwrap()["state"], "running");
    }
    toygres.ok(&["server", "stop"]).await.unwrap();
    assert_eq!(toygres.only_postmaster("demo").await.unwrap(), postmaster);
}

#[tokio::test]
async fn a_command_that_comes_while_the_server_stops_gets_a_new_one() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    for pause in [0, 20, 60, 120, 200] {
        let pid = toygres.server_pid().unwrap();
        let list = async {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            toygres.ok(&["list"]).await
        };
        let (stop, list) = tokio::join!(toygres.run(&["server", "stop"]), list);
        let (stop, list) = (stop.unwrap().expect_code(0).unwrap(), list.unwrap());
        assert!(list.took < SOON && list.stdout.contains("demo"), "after {pause} ms: {stop}\n{list}");
        // Served by the old one before it stopped, or by a new one.
        toygres.ok(&["list"]).await.unwrap();
        assert_ne!(toygres.server_pid().unwrap(), pid);
    }
    toygres.only_postmaster("demo").await.unwrap();
}

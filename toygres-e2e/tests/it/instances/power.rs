//! Instances that are stopped, started and restarted: `toygres stop`, `start` and `restart`, and the `power` of their spec.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use sysinfo::Signal;
use tokio::task::JoinSet;
use toygres_e2e::control::{Moment, hold_queue, hold_up, let_go, wait_all_blocked, wait_blocked, wait_held_up};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually, process, wait_until};

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn id(operation: &Value) -> String {
    text(operation, "id").to_owned()
}

fn power(name: &str, power: &str) -> Value {
    json!({ "name": name, "power": power })
}

/// Asks for another power; the operation's id.
async fn begin_power(api: &Api, name: &str, to: &str) -> Result<String> {
    Ok(id(&api.put(&format!("/v1/instances/{name}"), &power(name, to), &[]).await?.expect(202)?))
}

/// Stops or starts an instance, and waits for it.
async fn set_power(api: &Api, name: &str, to: &str) -> Result<Value> {
    api.wait_success(&begin_power(api, name, to).await?).await
}

async fn begin_restart(api: &Api, name: &str) -> Result<String> {
    Ok(id(&api.post(&format!("/v1/instances/{name}/restart")).await?.expect(202)?))
}

async fn keep_42(api: &Api, name: &str) -> Result<()> {
    let mut session = api.log_in(name).await?;
    sqlx::query("CREATE TABLE kept AS SELECT 42 AS answer").execute(&mut session).await?;
    Ok(())
}

/// How often the instance's server was started.
fn starts(toygres: &Toygres, name: &str) -> usize {
    let logs = std::fs::read_dir(toygres.instance_dir(name).join("log")).into_iter().flatten().flatten();
    let ready = |log: &str| log.matches("database system is ready to accept connections").count();
    logs.map(|log| ready(&String::from_utf8_lossy(&std::fs::read(log.path()).unwrap_or_default()))).sum()
}

/// Stopped, on record and on the machine.
async fn expect_stopped(toygres: &Toygres, api: &Api, name: &str) -> Result<()> {
    let instance = api.instance(name).await?;
    ensure!(instance["state"] == "stopped" && instance["spec"]["power"] == "stopped", "{instance:#}");
    ensure!(instance["status"]["health_status"].is_null(), "{instance:#}");
    ensure!(instance["generation"] == instance["observed_generation"], "{instance:#}");
    ensure!(toygres.postmasters(name).is_empty(), "its server runs");
    Ok(())
}

/// Running, with its data, and as the record says.
async fn expect_running(toygres: &Toygres, api: &Api, name: &str) -> Result<()> {
    let instance = api.instance(name).await?;
    ensure!(instance["state"] == "running" && instance["spec"]["power"] == "running", "{instance:#}");
    ensure!(instance["status"]["health_status"] == "healthy", "{instance:#}");
    ensure!(instance["generation"] == instance["observed_generation"], "{instance:#}");
    toygres.only_postmaster(name).await?;
    api.expect_42(name).await
}

/// A setting that no server starts with.
fn break_settings(toygres: &Toygres, name: &str) {
    use std::io::Write;
    let file = toygres.instance_dir(name).join("data/postgresql.auto.conf");
    writeln!(std::fs::OpenOptions::new().append(true).open(file).unwrap(), "no_such_setting = on").unwrap();
}

fn mend_settings(toygres: &Toygres, name: &str) {
    let file = toygres.instance_dir(name).join("data/postgresql.auto.conf");
    let text = std::fs::read_to_string(&file).unwrap().replace("no_such_setting = on\n", "");
    std::fs::write(&file, text).unwrap();
}

#[tokio::test]
async fn a_stopped_instance_keeps_its_data_its_address_and_its_password() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    keep_42(&api, "demo").await.unwrap();
    let uri = api.uri("demo").await.unwrap();

    let stopped = toygres.ok(&["stop", "demo"]).await.unwrap().expect_humane().unwrap();
    assert!(stopped.stdout.starts_with("demo is stopped ("), "{stopped}");
    expect_stopped(&toygres, &api, "demo").await.unwrap();
    let list = toygres.ok(&["list"]).await.unwrap();
    assert!(list.stdout.lines().any(|line| line.starts_with("demo") && line.contains("stopped")), "{list}");
    assert_eq!(toygres.json(&["list", "--state", "stopped"]).await.unwrap().as_array().unwrap().len(), 1);
    let again = toygres.ok(&["stop", "demo"]).await.unwrap();
    assert_eq!(again.stdout, "demo is stopped already\n", "{again}");
    for command in ["connect", "psql"] {
        let refused = toygres.fails(1, &[command, "demo"]).await.unwrap();
        assert!(refused.stderr.contains("demo is stopped") && refused.stderr.contains("toygres start demo"), "{refused}");
    }
    let refused = toygres.fails(1, &["restart", "demo"]).await.unwrap();
    assert!(refused.stderr.contains("stopped"), "{refused}");
    let why = toygres.ok(&["why", "demo"]).await.unwrap();
    assert!(why.stdout.contains("toygres start demo") && !why.stdout.contains("toygres delete"), "{why}");
    let yaml = toygres.ok(&["get", "demo", "-o", "yaml"]).await.unwrap();
    assert!(yaml.stdout.contains("power: stopped\n"), "{yaml}");

    let started = toygres.ok(&["start", "demo"]).await.unwrap().expect_humane().unwrap();
    assert!(started.stdout.starts_with("demo is started ("), "{started}");
    assert_eq!(api.uri("demo").await.unwrap(), uri, "another address or password");
    expect_running(&toygres, &api, "demo").await.unwrap();
    let again = toygres.ok(&["start", "demo"]).await.unwrap();
    assert_eq!(again.stdout, "demo is running already\n", "{again}");
    let before = toygres.only_postmaster("demo").await.unwrap();
    let restarted = toygres.ok(&["restart", "demo"]).await.unwrap();
    assert!(restarted.stdout.starts_with("demo is restarted ("), "{restarted}");
    assert_ne!(toygres.only_postmaster("demo").await.unwrap(), before);
    assert_eq!(api.uri("demo").await.unwrap(), uri);
    expect_running(&toygres, &api, "demo").await.unwrap();
    assert_eq!(starts(&toygres, "demo"), 3);
    assert_eq!(
        api.kinds_of_events("demo").await.unwrap(),
        [
            "create_requested",
            "instance_running",
            "update_requested",
            "instance_updated",
            "update_requested",
            "instance_updated",
            "restart_requested",
            "instance_restarted"
        ],
        "no server that was stopped is told of as one that ended"
    );
    let summaries: Vec<_> =
        api.items("/v1/operations").await.unwrap().iter().map(|operation| text(operation, "summary").to_owned()).collect();
    assert_eq!(summaries, ["restart", "start", "stop", "create"]);

    toygres.ok(&["stop", "demo"]).await.unwrap();
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();
}

#[tokio::test]
async fn an_instance_can_be_made_stopped_and_a_missing_one_is_not_started() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let made = toygres.run_with_input(&["apply", "-f", "-"], b"name: demo\npower: stopped\n").await.unwrap();
    made.expect_code(0).unwrap();
    expect_stopped(&toygres, &api, "demo").await.unwrap();
    toygres.ok(&["start", "demo"]).await.unwrap();
    api.log_in("demo").await.unwrap();
    for command in ["stop", "start", "restart"] {
        toygres.fails(1, &[command, "nobody"]).await.unwrap();
    }
    assert_eq!(toygres.json(&["list"]).await.unwrap().as_array().unwrap().len(), 1, "one was made");
    let unknown = api.post("/v1/instances/demo/explode").await.unwrap().expect_problem(404).unwrap();
    assert!(unknown.contains("restart"), "{unknown}");
}

#[tokio::test]
async fn a_control_plane_that_restarts_leaves_a_stopped_instance_stopped() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    for name in ["rests", "runs"] {
        api.create(name).await.unwrap();
        keep_42(&api, name).await.unwrap();
    }
    set_power(&api, "rests", "stopped").await.unwrap();
    for killed in [false, true] {
        let running = toygres.only_postmaster("runs").await.unwrap();
        if killed {
            toygres.kill_server().await.unwrap();
        } else {
            toygres.ok(&["server", "stop"]).await.unwrap();
        }
        process::kill(running).await.unwrap();
        toygres.ok(&["server", "start"]).await.unwrap();
        let api = toygres.api().unwrap();
        // Once the other one is started again, this one would be, too.
        eventually("the other one to be healthy", SOON, async || expect_running(&toygres, &api, "runs").await.map(Some))
            .await
            .unwrap();
        expect_stopped(&toygres, &api, "rests").await.unwrap();
    }
    let api = toygres.api().unwrap();
    set_power(&api, "rests", "running").await.unwrap();
    expect_running(&toygres, &api, "rests").await.unwrap();
}

#[tokio::test]
async fn a_server_killed_in_the_middle_leaves_what_the_spec_says() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let cases = [
        ("stop-a", "stop", "deploy-postgres", Moment::Begin),
        ("stop-b", "stop", "deploy-postgres", Moment::End),
        ("stop-c", "stop", "update-metadata", Moment::Begin),
        ("stop-d", "stop", "stopped", Moment::Record),
        ("start-a", "start", "deploy-postgres", Moment::Begin),
        ("start-b", "start", "deploy-postgres", Moment::End),
        ("start-c", "start", "test-connection", Moment::Begin),
        ("start-d", "start", "update-metadata", Moment::Begin),
        ("restart-a", "restart", "restart-postgres", Moment::Begin),
        ("restart-b", "restart", "restart-postgres", Moment::End),
        ("restart-c", "restart", "update-metadata", Moment::Begin),
    ];
    let mut begun = Vec::new();
    for (name, ..) in cases {
        begun.push(api.begin_create(name).await.unwrap());
    }
    for id in &begun {
        api.wait_success(id).await.unwrap();
    }
    for (name, verb, ..) in cases {
        keep_42(&api, name).await.unwrap();
        if verb == "start" {
            set_power(&api, name, "stopped").await.unwrap();
        }
    }
    let mut operations = Vec::new();
    for (name, verb, step, moment) in cases {
        let before = (starts(&toygres, name), toygres.postmasters(name));
        hold_up(&control, name, step, moment).await.unwrap();
        let operation = match verb {
            "stop" => begin_power(&api, name, "stopped").await.unwrap(),
            "start" => begin_power(&api, name, "running").await.unwrap(),
            _ => begin_restart(&api, name).await.unwrap(),
        };
        operations.push((operation, before));
    }
    wait_held_up(&control, i64::try_from(cases.len()).unwrap()).await.unwrap();
    toygres.kill_server().await.unwrap();
    let_go(&control).await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    for ((name, verb, ..), (operation, (before, servers))) in cases.iter().zip(operations) {
        let ended = api.wait_success(&operation).await.with_context(|| (*name).to_owned()).unwrap();
        let done = match *verb {
            "stop" => expect_stopped(&toygres, &api, name).await,
            _ => expect_running(&toygres, &api, name).await,
        };
        done.with_context(|| format!("{name}: {ended:#}")).unwrap();
        let expected = before + usize::from(*verb != "stop");
        assert_eq!(starts(&toygres, name), expected, "{name}: started as often as that");
        assert!(*verb == "stop" || toygres.postmasters(name) != servers, "{name}: the same server");
    }
}

#[tokio::test]
async fn a_server_killed_while_the_instances_shuts_down_stops_it_all_the_same() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    keep_42(&api, "demo").await.unwrap();
    let server = toygres.only_postmaster("demo").await.unwrap();
    // It can't end.
    process::send(server, Signal::Stop).unwrap();
    let stop = begin_power(&api, "demo", "stopped").await.unwrap();
    let record = toygres.instance_dir("demo").join("instance.json");
    wait_until("the stop to be written down", SOON, || {
        std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"stopped\""))
    })
    .await
    .unwrap();
    toygres.kill_server().await.unwrap();
    process::send(server, Signal::Continue).unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    api.wait_success(&stop).await.unwrap();
    expect_stopped(&toygres, &api, "demo").await.unwrap();
    set_power(&api, "demo", "running").await.unwrap();
    expect_running(&toygres, &api, "demo").await.unwrap();
}

#[tokio::test]
async fn one_that_crashes_in_a_loop_is_stopped_and_a_start_that_fails_is_reverted_and_says_why() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    keep_42(&api, "demo").await.unwrap();
    break_settings(&toygres, "demo");
    process::kill(toygres.only_postmaster("demo").await.unwrap()).await.unwrap();
    eventually("a start that failed", SOON, async || {
        Ok(api.kinds_of_events("demo").await.unwrap().iter().any(|kind| kind == "server_start_failed").then_some(()))
    })
    .await
    .unwrap();
    toygres.ok(&["stop", "demo"]).await.unwrap();
    expect_stopped(&toygres, &api, "demo").await.unwrap();
    let before = api.instance("demo").await.unwrap();

    let refused = toygres.fails(1, &["start", "demo"]).await.unwrap();
    println!("{refused}");
    assert!(refused.stderr.contains("postgresql.auto.conf"), "{refused}");
    expect_stopped(&toygres, &api, "demo").await.unwrap();
    let after = api.instance("demo").await.unwrap();
    assert_eq!((&after["spec"], &after["status"]["failure"]), (&before["spec"], &Value::Null));
    let operation = &api.items("/v1/operations?instance_name=demo").await.unwrap()[0];
    assert_eq!((text(operation, "state"), text(operation, "summary")), ("failed", "start"));
    assert!(operation["error"].to_string().contains("postgresql.auto.conf"), "{operation:#}");
    let why = toygres.ok(&["why", "demo"]).await.unwrap();
    println!("{why}");
    assert!(why.stdout.contains("postgresql.auto.conf") && !why.stdout.contains("toygres delete"), "{why}");

    mend_settings(&toygres, "demo");
    toygres.ok(&["operations", "retry", text(operation, "id")]).await.unwrap();
    expect_running(&toygres, &api, "demo").await.unwrap();
}

#[tokio::test]
async fn a_failed_create_can_be_stopped_and_started() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    for first in ["stop", "start"] {
        hold_up(&control, first, "test-connection", Moment::Begin).await.unwrap();
        let create = api.begin_create(first).await.unwrap();
        wait_held_up(&control, 1).await.unwrap();
        let secret = toygres.secret_file(first);
        let password = std::fs::read(&secret).unwrap();
        std::fs::write(&secret, "not-this-one").unwrap();
        let_go(&control).await.unwrap();
        assert_eq!(text(&api.wait(&create).await.unwrap(), "state"), "failed");
        std::fs::write(&secret, password).unwrap();
        let failed = toygres.ok(&["get", first]).await.unwrap();
        assert!(failed.text().contains(&format!("toygres start {first}")), "{failed}");
        if first == "stop" {
            toygres.ok(&["stop", first]).await.unwrap();
            expect_stopped(&toygres, &api, first).await.unwrap();
        }
        toygres.ok(&["start", first]).await.unwrap();
        let instance = api.instance(first).await.unwrap();
        assert_eq!((text(&instance, "state"), &instance["status"]["failure"]), ("running", &Value::Null), "{instance:#}");
        api.log_in(first).await.unwrap();
    }
}

#[tokio::test]
async fn restarts_that_are_asked_for_at_once_are_one() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    keep_42(&api, "demo").await.unwrap();
    let control = toygres.control().await.unwrap();
    let queue = hold_queue(&control).await.unwrap();
    let asked: JoinSet<_> = (0..3)
        .map(|_| {
            let api = api.clone();
            async move { begin_restart(&api, "demo").await.unwrap() }
        })
        .collect();
    // One begins its workflow; the others may be answered already.
    wait_all_blocked(&control, "enqueue", 1).await.unwrap();
    let early = begin_restart(&api, "demo").await.unwrap();
    queue.rollback().await.unwrap();
    let mut ids = asked.join_all().await;
    ids.push(early);
    ids.dedup();
    let [restart] = &ids[..] else { panic!("more than one operation: {ids:?}") };
    api.wait_success(restart).await.unwrap();
    assert_eq!(starts(&toygres, "demo"), 2, "one start, and one restart");
    expect_running(&toygres, &api, "demo").await.unwrap();
    // Another one afterwards is another one.
    let second = begin_restart(&api, "demo").await.unwrap();
    assert_ne!(second, *restart);
    api.wait_success(&second).await.unwrap();
    assert_eq!(starts(&toygres, "demo"), 3);
}

#[tokio::test]
async fn a_restart_is_cancelled_until_it_has_begun() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let server = toygres.only_postmaster("demo").await.unwrap();
    let control = toygres.control().await.unwrap();
    let queue = hold_queue(&control).await.unwrap();
    let request = tokio::spawn({
        let api = api.clone();
        async move { begin_restart(&api, "demo").await }
    });
    wait_blocked(&control, "enqueue").await.unwrap();
    let pending = id(&api.items("/v1/operations?kind=restart").await.unwrap()[0]);
    let cancelled = api.post(&format!("/v1/operations/{pending}/cancel")).await.unwrap().expect(202).unwrap();
    assert_eq!(text(&cancelled, "state"), "cancelled");
    queue.rollback().await.unwrap();
    assert_eq!(request.await.unwrap().unwrap(), pending);
    eventually("its workflow to end", SOON, async || {
        let (status,): (String,) = sqlx::query_as("SELECT status FROM duroxide.executions WHERE instance_id = $1")
            .bind(&pending)
            .fetch_one(&control)
            .await?;
        Ok((status != "Running").then_some(()))
    })
    .await
    .unwrap();
    assert_eq!(toygres.only_postmaster("demo").await.unwrap(), server, "it was restarted");
    assert_eq!(api.kinds_of_events("demo").await.unwrap()[2..], ["restart_requested", "restart_cancelled"]);

    hold_up(&control, "demo", "wait-for-ready", Moment::Begin).await.unwrap();
    let begun = begin_restart(&api, "demo").await.unwrap();
    wait_held_up(&control, 1).await.unwrap();
    let refused = tokio::spawn({
        let (api, path) = (api.clone(), format!("/v1/operations/{begun}/cancel"));
        async move { api.post(&path).await }
    });
    wait_blocked(&control, "FOR NO KEY UPDATE").await.unwrap();
    let_go(&control).await.unwrap();
    let refused = refused.await.unwrap().unwrap().expect_problem(409).unwrap();
    assert!(refused.contains("can't be taken back"), "{refused}");
    api.wait_success(&begun).await.unwrap();
}

#[tokio::test]
async fn a_label_that_changes_during_an_update_stays_when_that_is_cancelled() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    keep_42(&api, "demo").await.unwrap();
    set_power(&api, "demo", "stopped").await.unwrap();
    let control = toygres.control().await.unwrap();
    hold_up(&control, "demo", "test-connection", Moment::Begin).await.unwrap();
    let start = begin_power(&api, "demo", "running").await.unwrap();
    wait_held_up(&control, 1).await.unwrap();
    let labelled = json!({ "name": "demo", "labels": { "team": "a" } });
    api.put("/v1/instances/demo", &labelled, &[]).await.unwrap().expect(200).unwrap();
    // Anything else has to wait for the end.
    let refused = api.put("/v1/instances/demo", &power("demo", "stopped"), &[]).await.unwrap().expect_problem(409).unwrap();
    assert!(refused.contains(&start), "{refused}");
    let cancelled = tokio::spawn({
        let (api, path) = (api.clone(), format!("/v1/operations/{start}/cancel"));
        async move { api.post(&path).await }
    });
    wait_blocked(&control, "FOR NO KEY UPDATE").await.unwrap();
    let_go(&control).await.unwrap();
    cancelled.await.unwrap().unwrap().expect(202).unwrap();
    let ended = api.wait(&start).await.unwrap();
    assert_eq!((text(&ended, "state"), &ended["reverting"]), ("cancelled", &json!(true)), "{ended:#}");
    expect_stopped(&toygres, &api, "demo").await.unwrap();
    assert_eq!(api.instance("demo").await.unwrap()["spec"]["labels"], json!({ "team": "a" }));
    set_power(&api, "demo", "running").await.unwrap();
    expect_running(&toygres, &api, "demo").await.unwrap();
    assert_eq!(api.instance("demo").await.unwrap()["spec"]["labels"], json!({ "team": "a" }));
}

#[tokio::test]
async fn what_was_seen_never_makes_if_match_fail() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let etag = async || {
        let answer = api.get("/v1/instances/demo").await.unwrap();
        answer.expect(200).unwrap();
        answer.headers["etag"].to_str().unwrap().to_owned()
    };
    let before = etag().await;
    let control = toygres.control().await.unwrap();
    let health = async || {
        let (health,): (Option<String>,) =
            sqlx::query_as("SELECT status ->> 'health_status' FROM toygres.instances WHERE name = 'demo'")
                .fetch_one(&control)
                .await?;
        anyhow::Ok(health.unwrap_or_default())
    };
    // Its health changes, and back.
    break_settings(&toygres, "demo");
    process::kill(toygres.only_postmaster("demo").await.unwrap()).await.unwrap();
    eventually("it to be unhealthy", SOON, async || Ok((health().await? == "unhealthy").then_some(()))).await.unwrap();
    assert_eq!(etag().await, before);
    mend_settings(&toygres, "demo");
    eventually("it to be healthy", SOON, async || {
        api.instance("demo").await?;
        Ok((health().await? == "healthy").then_some(()))
    })
    .await
    .unwrap();
    // A new address, as a server writes down what it has found.
    let moved =
        "UPDATE toygres.instances SET status = jsonb_set(status, '{ip_connection_string}', '\"postgresql://elsewhere/\"')";
    sqlx::query(moved).execute(&control).await.unwrap();
    let restart = begin_restart(&api, "demo").await.unwrap();
    api.wait_success(&restart).await.unwrap();
    assert_eq!(etag().await, before);
    let labelled = json!({ "name": "demo", "labels": { "team": "a" } });
    let changed = api.put("/v1/instances/demo", &labelled, &[("if-match", &before)]).await.unwrap();
    changed.expect(200).unwrap();
    assert_ne!(etag().await, before);
    let stale = api.send_with(&[("if-match", &before)], Method::DELETE, "/v1/instances/demo", None).await.unwrap();
    stale.expect_problem(412).unwrap();
}

#[tokio::test]
async fn a_dry_run_says_what_a_stop_does() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let plan =
        async |to: &str| api.put("/v1/instances/demo?dry_run=true", &power("demo", to), &[]).await.unwrap().expect(200).unwrap();
    let stop = plan("stopped").await;
    assert_eq!((text(&stop, "action"), &stop["generation"]), ("update", &json!(1)), "{stop:#}");
    let expected = json!([
        { "field": "power", "from": "running", "to": "stopped", "effect": "offline", "can_revert": true }
    ]);
    assert_eq!(stop["changes"], expected);
    assert!(text(&stop, "unavailable").contains("until the instance is started"), "{stop:#}");
    assert!(stop["expected_seconds"].is_null(), "nothing was ever stopped: {stop:#}");
    let dry = toygres.run_with_input(&["apply", "-f", "-", "--dry-run"], b"name: demo\npower: stopped\n").await.unwrap();
    let dry = dry.expect_code(0).unwrap().expect_humane().unwrap();
    println!("{dry}");
    for words in ["default/demo would be changed (power)", "offline", "reverts it", "until the instance is started"] {
        assert!(dry.stdout.contains(words), "no word of {words:?}: {dry}");
    }
    assert_eq!(text(&api.instance("demo").await.unwrap(), "state"), "running", "a dry run stopped it");

    set_power(&api, "demo", "stopped").await.unwrap();
    let start = plan("running").await;
    assert_eq!((text(&start["changes"][0], "effect"), &start["unavailable"]), ("live", &Value::Null), "{start:#}");
    set_power(&api, "demo", "running").await.unwrap();
    let stop = plan("stopped").await;
    assert!(stop["expected_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{stop:#}");
    assert_eq!(text(&plan("running").await, "action"), "none");
}

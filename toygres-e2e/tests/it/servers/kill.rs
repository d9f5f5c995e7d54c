//! `kill -9` of the server at each step of create and delete, then a new server: what was begun is
//! finished, with one server process and one directory, or none.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use toygres_e2e::control::{Moment, hold_up, let_go, wait_held_up};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually, process, wait_until};

const CREATE_STEPS: [&str; 5] =
    ["deploy-postgres", "wait-for-ready", "get-connection-strings", "test-connection", "update-metadata"];
const DELETE_STEPS: [&str; 2] = ["delete-postgres", "update-metadata"];

/// One name for each moment of each step, which is where that instance's operation is killed.
fn moments(prefix: &str, steps: &[&'static str]) -> Vec<(String, &'static str, Moment)> {
    let named = |step: &&'static str, moment, word: &str| (format!("{prefix}-{word}-{step}"), *step, moment);
    steps.iter().flat_map(|step| [named(step, Moment::Begin, "begin"), named(step, Moment::End, "end")]).collect()
}

/// There is one of it, and it works.
async fn expect_made(toygres: &Toygres, api: &Api, name: &str) -> Result<()> {
    toygres.only_postmaster(name).await?;
    let instance = api.instance(name).await?;
    ensure!(instance["state"] == "running" && instance["status"]["health_status"] == "healthy", "{instance:#}");
    ensure!(toygres.instance_dir(name).join("data/PG_VERSION").exists(), "no data directory");
    api.log_in(name).await?;
    let events = api.items(&format!("/v1/instances/{name}/events")).await?;
    let made = events.iter().filter(|event| event["kind"] == "instance_running").count();
    ensure!(made == 1, "made {made} times: {events:?}");
    Ok(())
}

/// Holds each up at its moment, kills the server there, and starts it again.
async fn kill_at<'a>(
    toygres: &Toygres,
    killed: &'a [(String, &'static str, Moment)],
    begin: impl AsyncFn(&'a str) -> Result<String>,
) -> Result<(Api, Vec<String>)> {
    let control = toygres.control().await?;
    let mut operations = Vec::new();
    for (name, step, moment) in killed {
        hold_up(&control, name, step, *moment).await?;
        operations.push(begin(name).await?);
    }
    wait_held_up(&control, i64::try_from(killed.len())?).await?;
    toygres.kill_server().await?;
    let_go(&control).await?;
    toygres.ok(&["server", "start"]).await?;
    Ok((toygres.api()?, operations))
}

async fn restart(toygres: &Toygres) -> Result<Api> {
    toygres.kill_server().await?;
    toygres.ok(&["server", "start"]).await?;
    toygres.api()
}

/// A `server start` that nobody waits for.
fn begin_start(toygres: &Toygres) -> Result<tokio::process::Child> {
    let mut command = toygres.command(&["server", "start"]);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn()?)
}

#[tokio::test]
async fn a_create_is_finished_at_whichever_step_the_server_was_killed() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let mut killed = moments("c", &CREATE_STEPS);
    killed.push(("c-record".into(), "running", Moment::Record));
    let (api, operations) = kill_at(&toygres, &killed, async |name| api.begin_create(name).await).await.unwrap();
    for (operation, (name, ..)) in operations.iter().zip(&killed) {
        let ended = api.wait_success(operation).await.unwrap();
        assert_eq!(ended["steps"].as_array().unwrap().len(), CREATE_STEPS.len(), "{ended:#}");
        expect_made(&toygres, &api, name).await.with_context(|| name.clone()).unwrap();
    }
    assert_eq!(process::postmasters_below(&toygres.state_dir().join("instances")).len(), killed.len());
}

#[tokio::test]
async fn a_delete_is_finished_at_whichever_step_the_server_was_killed() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let mut killed = moments("d", &DELETE_STEPS);
    killed.push(("d-record".into(), "deleted", Moment::Record));
    let creates: Vec<_> = {
        let mut ids = Vec::new();
        for (name, ..) in &killed {
            ids.push(api.begin_create(name).await.unwrap());
        }
        ids
    };
    for id in creates {
        api.wait_success(&id).await.unwrap();
    }
    let (api, operations) = kill_at(&toygres, &killed, async |name| api.begin_delete(name).await).await.unwrap();
    for (operation, (name, ..)) in operations.iter().zip(&killed) {
        api.wait_success(operation).await.unwrap();
        toygres.expect_nothing_of(name).await.with_context(|| name.clone()).unwrap();
    }
}

#[tokio::test]
async fn a_create_is_finished_wherever_in_its_deployment_the_server_was_killed() {
    let mut toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    for point in ["create-begun", "create-folder-made", "create-recorded", "create-data-placed", "create-server-started"] {
        toygres.kill_server().await.unwrap();
        toygres = toygres.with("TOYGRES_KILL_AT", point);
        let name = point.replace("create", "demo");
        let operation = toygres.serve().await.unwrap().begin_create(&name).await.unwrap();
        let killed = toygres.server_pid().unwrap();
        wait_until("the server to be killed", SOON, || !process::is_alive(killed)).await.unwrap();
        toygres = toygres.without("TOYGRES_KILL_AT");
        let api = toygres.serve().await.unwrap();
        api.wait_success(&operation).await.unwrap();
        expect_made(&toygres, &api, &name).await.context(point).unwrap();
    }
}

#[tokio::test]
async fn a_create_that_was_killed_before_it_was_on_record_leaves_no_password() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_KILL_AT", "create-password-kept");
    let api = toygres.serve().await.unwrap();
    api.post_instance(&json!({ "name": "demo", "password": "given" })).await.unwrap_err();
    let folder = toygres.state_dir().join("secrets/default");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "it was killed elsewhere");
    let toygres = toygres.without("TOYGRES_KILL_AT");
    let api = toygres.serve().await.unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    api.create("demo").await.unwrap();
    api.log_in("demo").await.unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

#[tokio::test]
async fn whatever_is_under_way_when_the_server_is_killed_is_finished() {
    let toygres = Toygres::new().unwrap();
    let mut api = toygres.serve().await.unwrap();
    for round in 0..2 {
        let old: Vec<String> = (0..3).map(|number| format!("old-{round}-{number}")).collect();
        for name in &old {
            api.create(name).await.unwrap();
        }
        // A request every while; the kill comes after the last of them, so each is at another point.
        let mut requests = Vec::new();
        for offset in 0..6 {
            let name = format!("new-{round}-{offset}");
            let (asked, path) = (api.clone(), name.clone());
            requests.push((name, tokio::spawn(async move { asked.post_instance(&json!({ "name": path })).await })));
            if let Some(name) = old.get(offset) {
                let (asked, name) = (api.clone(), name.clone());
                tokio::spawn(async move { asked.begin_delete(&name).await });
            }
            tokio::time::sleep(Duration::from_millis(40 + 35 * round)).await;
        }
        toygres.kill_server().await.unwrap();
        toygres.ok(&["server", "start"]).await.unwrap();
        api = toygres.api().unwrap();
        for (name, request) in requests {
            let answered = request.await.unwrap().ok().filter(|answer| answer.status == 202);
            // Of a request that got no answer, all or nothing is there.
            let found = api.items(&format!("/v1/operations?instance_name={name}")).await.unwrap();
            assert!(found.len() == 1 || (answered.is_none() && found.is_empty()), "{name}: {answered:?}, {found:?}");
            match found.first() {
                Some(operation) => {
                    api.wait_success(operation["id"].as_str().unwrap()).await.unwrap();
                    expect_made(&toygres, &api, &name).await.context(name).unwrap();
                }
                None => {
                    let gone = async || toygres.expect_nothing_made_of(&name).map(Some);
                    eventually("what no operation will ever clear to be gone", SOON, gone).await.unwrap();
                }
            }
        }
        for name in &old {
            let operations = api.items(&format!("/v1/operations?instance_name={name}")).await.unwrap();
            match operations.iter().find(|operation| operation["kind"] == "delete") {
                Some(operation) => {
                    api.wait_success(operation["id"].as_str().unwrap()).await.unwrap();
                    toygres.expect_nothing_of(name).await.unwrap();
                }
                None => expect_made(&toygres, &api, name).await.unwrap(),
            }
        }
    }
}

#[tokio::test]
async fn killing_it_again_and_again_while_it_recovers_changes_nothing() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("old").await.unwrap();
    let (create, delete) = (api.begin_create("fresh").await.unwrap(), api.begin_delete("old").await.unwrap());
    toygres.kill_server().await.unwrap();
    for _ in 0..3 {
        // Killed while it starts, and while its children may be at work.
        let mut starting = begin_start(&toygres).unwrap();
        wait_until("the server to start", SOON, || !process::servers_on(toygres.state_dir()).is_empty()).await.unwrap();
        toygres.kill_servers().await.unwrap();
        starting.wait().await.unwrap();
    }
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    api.wait_success(&create).await.unwrap();
    api.wait_success(&delete).await.unwrap();
    expect_made(&toygres, &api, "fresh").await.unwrap();
    toygres.expect_nothing_of("old").await.unwrap();
    assert_eq!(toygres.all_postmasters().len(), 2, "one control database, one instance");
}

#[tokio::test]
async fn a_first_start_that_was_killed_is_finished_by_the_next() {
    let toygres = Toygres::new().unwrap();
    for sign in ["", "control", "control/data", "control/data/postmaster.pid"] {
        let mut starting = begin_start(&toygres).unwrap();
        let sign = toygres.state_dir().join(sign);
        wait_until(&sign.display().to_string(), SOON, || sign.exists()).await.unwrap();
        toygres.kill_servers().await.unwrap();
        starting.wait().await.unwrap();
    }
    toygres.ok(&["create", "demo"]).await.unwrap();
    assert_eq!(toygres.all_postmasters().len(), 2);
}

#[tokio::test]
async fn when_all_processes_die_at_once_everything_comes_back() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("old").await.unwrap();
    let mut session = api.log_in("old").await.unwrap();
    sqlx::query("CREATE TABLE kept AS SELECT 42 AS answer").execute(&mut session).await.unwrap();
    let (create, delete) = (api.begin_create("fresh").await.unwrap(), {
        api.create("gone").await.unwrap();
        api.begin_delete("gone").await.unwrap()
    });
    // As when the machine goes down: nobody tidies up, no one first.
    for pid in process::working_below(toygres.state_dir()).into_iter().chain([toygres.server_pid().unwrap()]) {
        process::kill(pid).await.unwrap();
    }
    toygres.ok(&["list"]).await.unwrap();
    let api = toygres.api().unwrap();
    api.wait_success(&create).await.unwrap();
    api.wait_success(&delete).await.unwrap();
    expect_made(&toygres, &api, "fresh").await.unwrap();
    toygres.expect_nothing_of("gone").await.unwrap();
    let mut session = eventually("the old instance to answer", SOON, async || api.log_in("old").await.map(Some)).await.unwrap();
    let (answer,): (i32,) = sqlx::query_as("SELECT answer FROM kept").fetch_one(&mut session).await.unwrap();
    assert_eq!(answer, 42);
    eventually("it to be healthy", SOON, async || {
        Ok((api.instance("old").await?["status"]["health_status"] == "healthy").then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_was_written_down_and_never_started_is_started_by_the_next_server() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("old").await.unwrap();
    // What a server leaves that is killed right after its commit: rows, and no workflow.
    let control = toygres.control().await.unwrap();
    // The password first, as a server does: this one's sweep may find the rows before it is killed.
    std::fs::write(toygres.secret_file("fresh"), "a-password").unwrap();
    let mut ids = Vec::new();
    for (kind, name, state) in [("create", "fresh", "creating"), ("delete", "old", "deleting")] {
        let (id,): (sqlx::types::Uuid,) = sqlx::query_as(
            "WITH changed AS (UPDATE toygres.instances SET state = $3 WHERE name = $2 RETURNING *),
                made AS (INSERT INTO toygres.instances (id, namespace, name, cluster_id, spec, generation)
                    SELECT gen_random_uuid(), 'default', $2, cluster_id, spec, 1 FROM toygres.instances WHERE $1 = 'create' RETURNING *)
             INSERT INTO toygres.operations (id, kind, instance_id, namespace, instance_name, cause, place, summary, spec_before,
                spec, generation, state_before)
             SELECT gen_random_uuid(), $1, id, 'default', $2, 'a test', cluster_id, $1, spec, spec, generation, state
             FROM (TABLE changed UNION ALL TABLE made) i RETURNING id",
        )
        .bind(kind)
        .bind(name)
        .bind(state)
        .fetch_one(&control)
        .await
        .unwrap();
        ids.push(id.to_string());
    }
    let api = restart(&toygres).await.unwrap();
    for id in &ids {
        api.wait_success(id).await.unwrap();
    }
    expect_made(&toygres, &api, "fresh").await.unwrap();
    toygres.expect_nothing_of("old").await.unwrap();
}

#[tokio::test]
async fn of_a_request_that_was_cut_off_before_its_commit_nothing_is_left() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    hold_up(&control, "demo", "creating", Moment::Record).await.unwrap();
    let request = tokio::spawn(async move { api.post_instance(&json!({ "name": "demo", "password": "the-first-one" })).await });
    wait_held_up(&control, 1).await.unwrap();
    toygres.kill_server().await.unwrap();
    request.await.unwrap().unwrap_err();
    let_go(&control).await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    assert!(api.items("/v1/operations").await.unwrap().is_empty(), "an operation that nobody was told of");
    let gone = async || toygres.expect_nothing_made_of("demo").map(Some);
    eventually("the secret of an instance that never was to be gone", SOON, gone).await.unwrap();
    // Under its name another one can be made.
    let created = api.post_instance(&json!({ "name": "demo", "password": "the-second-one" })).await.unwrap().expect(202).unwrap();
    api.wait_success(created["id"].as_str().unwrap()).await.unwrap();
    assert!(api.uri("demo").await.unwrap().contains(":the-second-one@"));
    expect_made(&toygres, &api, "demo").await.unwrap();
}

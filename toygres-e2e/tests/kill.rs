//! `kill -9` of the server at each step of create and delete, then a new server: what was begun is
//! finished, with one server process and one directory, or none.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use toygres_e2e::control::{Moment, hold_up, let_go, wait_held_up};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres};

const CREATE_STEPS: [&str; 5] = ["deploy-postgres", "wait-for-ready", "get-connection-strings", "test-connection", "update-metadata"];
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
    ensure!(instance["state"] == "running" && instance["health_status"] == "healthy", "{instance:#}");
    ensure!(toygres.instance_dir(name).join("data/PG_VERSION").exists(), "no data directory");
    api.log_in(name).await?;
    let events = api.items(&format!("/v1/instances/{name}/events")).await?;
    let made = events.iter().filter(|event| event["kind"] == "instance_running").count();
    ensure!(made == 1, "made {made} times: {events:?}");
    Ok(())
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
    let control = toygres.control().await.unwrap();
    let mut killed = moments("c", &CREATE_STEPS);
    killed.push(("c-record".into(), "running", Moment::Record));
    let mut operations = Vec::new();
    for (name, step, moment) in &killed {
        hold_up(&control, name, step, *moment).await.unwrap();
        operations.push(api.begin_create(name).await.unwrap());
    }
    wait_held_up(&control, i64::try_from(killed.len()).unwrap()).await.unwrap();
    toygres.kill_server().await.unwrap();
    let_go(&control).await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    for (operation, (name, ..)) in operations.iter().zip(&killed) {
        let ended = api.wait_success(operation).await.unwrap();
        assert_eq!(ended["steps"].as_array().unwrap().len(), CREATE_STEPS.len(), "{ended:#}");
        expect_made(&toygres, &api, name).await.with_context(|| name.clone()).unwrap();
    }
    assert_eq!(toygres_e2e::process::postmasters_below(&toygres.state_dir().join("instances")).len(), killed.len());
}

#[tokio::test]
async fn a_delete_is_finished_at_whichever_step_the_server_was_killed() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
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
    let mut operations = Vec::new();
    for (name, step, moment) in &killed {
        hold_up(&control, name, step, *moment).await.unwrap();
        operations.push(api.begin_delete(name).await.unwrap());
    }
    wait_held_up(&control, i64::try_from(killed.len()).unwrap()).await.unwrap();
    toygres.kill_server().await.unwrap();
    let_go(&control).await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    for (operation, (name, ..)) in operations.iter().zip(&killed) {
        api.wait_success(operation).await.unwrap();
        toygres.expect_nothing_of(name).await.with_context(|| name.clone()).unwrap();
    }
}

#[tokio::test]
async fn a_create_is_finished_wherever_in_its_deployment_the_server_was_killed() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    for (number, sign) in ["", "instance.json", "data/PG_VERSION", "data/postmaster.pid"].into_iter().enumerate() {
        let name = format!("demo-{number}");
        let operation = toygres.api().unwrap().begin_create(&name).await.unwrap();
        let sign = toygres.instance_dir(&name).join(sign);
        // Looked for without a pause: the moment is short.
        tokio::time::timeout(SOON, async {
            while !sign.exists() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        let api = restart(&toygres).await.unwrap();
        api.wait_success(&operation).await.unwrap();
        expect_made(&toygres, &api, &name).await.with_context(|| sign.display().to_string()).unwrap();
    }
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
                None => toygres.expect_nothing_made_of(&name).unwrap(),
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
        toygres_e2e::wait_until("the server to start", SOON, || !toygres_e2e::process::servers_on(toygres.state_dir()).is_empty()).await.unwrap();
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
        toygres_e2e::wait_until(&sign.display().to_string(), SOON, || sign.exists()).await.unwrap();
        toygres.kill_servers().await.unwrap();
        starting.wait().await.unwrap();
    }
    toygres.ok(&["create", "demo"]).await.unwrap();
    assert_eq!(toygres.all_postmasters().len(), 2);
}

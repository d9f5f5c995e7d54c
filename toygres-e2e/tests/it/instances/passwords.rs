//! `toygres rotate-password`, and passwords that were lost.

use serde_json::Value;
use sqlx::Executor;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Toygres, eventually};

#[tokio::test]
async fn a_rotated_password_replaces_the_old_one() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let old = api.uri("demo").await.unwrap();
    let mut session = api.log_in("demo").await.unwrap();
    session.execute("CREATE TABLE kept AS SELECT 42 AS answer").await.unwrap();
    let run = toygres.ok(&["rotate-password", "demo"]).await.unwrap();
    println!("$ toygres rotate-password demo\n{}", run.stdout);
    assert!(run.stdout.contains("demo is given a new password"), "{run}");
    assert!(toygres_e2e::api::log_in(&old).await.is_err(), "the old password still works");
    let mut renewed = api.log_in("demo").await.unwrap();
    let (answer,): (i32,) = sqlx::query_as("SELECT answer FROM kept").fetch_one(&mut renewed).await.unwrap();
    assert_eq!(answer, 42);
    // Who is in stays in.
    session.execute("SELECT 1").await.unwrap();
    let kinds = api.kinds_of_events("demo").await.unwrap();
    assert!(kinds.iter().any(|kind| kind == "password_rotated"), "{kinds:?}");
    toygres.ok(&["stop", "demo"]).await.unwrap();
    let refused = toygres.fails(1, &["rotate-password", "demo"]).await.unwrap();
    assert!(refused.stderr.contains("toygres start demo"), "{refused}");
}

#[tokio::test]
async fn a_rotation_that_was_cut_off_is_finished() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap().create("demo").await.unwrap();
    toygres.ok(&["server", "stop"]).await.unwrap();
    let mut toygres = toygres.with("TOYGRES_KILL_AT", "rotate-password-kept");
    let rotation = toygres.json(&["rotate-password", "demo", "--no-wait"]).await.unwrap();
    let server = toygres.server_pid();
    eventually("the server to be killed", SOON, async || {
        Ok(server.as_ref().map_or(true, |pid| !toygres_e2e::process::is_alive(*pid)).then_some(()))
    })
    .await
    .unwrap();
    toygres = toygres.without("TOYGRES_KILL_AT");
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    api.wait_success(rotation["id"].as_str().unwrap()).await.unwrap();
    api.log_in("demo").await.unwrap();
}

#[tokio::test]
async fn a_lost_password_is_made_anew_with_the_data_as_it_is() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    api.log_in("demo").await.unwrap().execute("CREATE TABLE kept AS SELECT 42 AS answer").await.unwrap();
    std::fs::remove_file(toygres.secret_file("demo")).unwrap();
    let why: Value = toygres.json(&["why", "demo"]).await.unwrap();
    let verdict = why["verdict"].to_string();
    assert!(verdict.contains("password_missing") && verdict.contains("toygres rotate-password demo"), "{why:#}");
    toygres.ok(&["rotate-password", "demo"]).await.unwrap();
    let mut session = api.log_in("demo").await.unwrap();
    let (answer,): (i32,) = sqlx::query_as("SELECT answer FROM kept").fetch_one(&mut session).await.unwrap();
    assert_eq!(answer, 42);
}

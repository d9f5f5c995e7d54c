//! The control database is lost: instances run on, and are taken on record again with their data.

use anyhow::Result;
use serde_json::{Value, json};
use toygres_e2e::{Api, Toygres};

/// Stops the server, removes its database, and starts it.
async fn lose_database(toygres: &Toygres) -> Result<Api> {
    toygres.ok(&["server", "stop"]).await?;
    std::fs::remove_dir_all(toygres.state_dir().join("control"))?;
    toygres.serve().await
}

#[tokio::test]
async fn instances_are_adopted_after_the_control_database_was_lost() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let made = "name: runs\nlabels: {team: a}\n---\nname: rests\npassword: p@/:?#%'\n---\nname: left\n";
    toygres.run_with_input(&["apply", "-f", "-"], made.as_bytes()).await.unwrap().expect_code(0).unwrap();
    for name in ["runs", "rests"] {
        let mut session = api.log_in(name).await.unwrap();
        sqlx::query("CREATE TABLE kept AS SELECT 42 AS answer").execute(&mut session).await.unwrap();
    }
    let (runs, rests) = (api.uri("runs").await.unwrap(), api.uri("rests").await.unwrap());
    let before = api.instance("runs").await.unwrap();
    toygres.ok(&["stop", "rests"]).await.unwrap();
    let server = toygres.only_postmaster("runs").await.unwrap();
    let none = toygres.ok(&["adopt"]).await.unwrap();
    assert!(none.text().contains("on record"), "{none}");

    let api = lose_database(&toygres).await.unwrap();
    assert_eq!(toygres.only_postmaster("runs").await.unwrap(), server, "its server was restarted");
    assert!(toygres.postmasters("rests").is_empty(), "its server was started");
    assert_eq!(toygres.json(&["list"]).await.unwrap(), json!([]));
    let listed = toygres.json(&["adopt"]).await.unwrap();
    let mut names: Vec<_> = listed.as_array().unwrap().iter().map(|found| found["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["left", "rests", "runs"], "{listed:#}");
    let shown = toygres.ok(&["adopt"]).await.unwrap().expect_humane().unwrap();
    println!("{shown}");
    assert!(shown.stdout.contains("rests") && shown.stderr.contains("toygres adopt NAME"), "{shown}");
    for name in ["runs", "rests"] {
        let refused = toygres.fails(1, &["create", name]).await.unwrap();
        assert!(refused.stderr.contains(&format!("toygres adopt {name}")), "{refused}");
    }
    toygres.fails(1, &["adopt", "nobody"]).await.unwrap();
    // A new one's port is none of theirs.
    api.create("fresh").await.unwrap();
    api.log_in("fresh").await.unwrap();

    let adopted = toygres.ok(&["adopt", "runs"]).await.unwrap().expect_humane().unwrap();
    assert!(adopted.stdout.starts_with("runs is adopted ("), "{adopted}");
    let after = api.instance("runs").await.unwrap();
    for field in ["id", "spec", "state"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_eq!(after["status"]["ip_connection_string"], before["status"]["ip_connection_string"]);
    assert_eq!((&after["status"]["health_status"], &after["generation"]), (&json!("healthy"), &after["observed_generation"]));
    assert_eq!(toygres.only_postmaster("runs").await.unwrap(), server, "its server was restarted");
    assert_eq!(api.uri("runs").await.unwrap(), runs);
    api.expect_42("runs").await.unwrap();

    toygres.ok(&["adopt", "rests"]).await.unwrap();
    let rests_now = api.instance("rests").await.unwrap();
    assert_eq!((&rests_now["state"], &rests_now["spec"]["power"]), (&json!("stopped"), &json!("stopped")), "{rests_now:#}");
    assert!(toygres.postmasters("rests").is_empty(), "its server was started");
    toygres.ok(&["start", "rests"]).await.unwrap();
    assert_eq!(api.uri("rests").await.unwrap(), rests);
    api.expect_42("rests").await.unwrap();
    for name in ["runs", "rests"] {
        let again = toygres.fails(1, &["adopt", name]).await.unwrap();
        assert!(again.stderr.contains("on record already"), "{again}");
    }

    // Adopted ones are like any other.
    for name in ["runs", "rests", "fresh"] {
        toygres.ok(&["delete", name, "--yes"]).await.unwrap();
        toygres.expect_nothing_of(name).await.unwrap();
    }
    toygres.only_postmaster("left").await.unwrap();
    assert_eq!(toygres.json(&["adopt"]).await.unwrap().as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn an_adoption_is_finished_whoever_is_killed_and_needs_an_admin() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap().create("demo").await.unwrap();
    let api = lose_database(&toygres).await.unwrap();
    let server = toygres.only_postmaster("demo").await.unwrap();
    let minted = toygres.ok(&["token", "create", "ed", "--role", "editor"]).await.unwrap();
    let editor = api.with_token(Some(minted.stdout.trim()));
    editor.get("/v1/adoptable").await.unwrap().expect_problem(403).unwrap();
    editor.post("/v1/adoptable/demo").await.unwrap().expect_problem(403).unwrap();
    let control = toygres.control().await.unwrap();
    toygres_e2e::control::hold_up(&control, "demo", "test-connection", toygres_e2e::control::Moment::Begin).await.unwrap();
    let adopt: Value = api.post("/v1/adoptable/demo").await.unwrap().expect(202).unwrap();
    toygres_e2e::control::wait_held_up(&control, 1).await.unwrap();
    toygres.kill_server().await.unwrap();
    toygres_e2e::control::let_go(&control).await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    api.wait_success(adopt["id"].as_str().unwrap()).await.unwrap();
    assert_eq!(toygres.only_postmaster("demo").await.unwrap(), server);
    api.log_in("demo").await.unwrap();
    api.delete("demo").await.unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();
}

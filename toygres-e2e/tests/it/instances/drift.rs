//! What others change inside an instance: its owner's password, and parameters that toygres sets.

use anyhow::{Result, ensure};
use serde_json::Value;
use sqlx::Executor;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Toygres, eventually};

async fn expect_health(toygres: &Toygres, status: &str, kinds: &[&str]) -> Result<()> {
    eventually(&format!("its health to be {status} for {kinds:?}"), SOON, async || {
        let found = &toygres.json(&["health"]).await?[0];
        let reasons = found["health_reasons"].as_array().into_iter().flatten();
        let seen: Vec<_> = reasons.filter_map(|reason| reason["kind"].as_str()).collect();
        ensure!(found["health_status"] == status && seen == kinds, "{found:#}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn a_password_that_somebody_else_set_is_told_until_both_sides_have_the_same() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_HEALTH_INTERVAL_SECONDS", "1");
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut owner = api.log_in("demo").await.unwrap();
    owner.execute("ALTER ROLE app PASSWORD 'something else'").await.unwrap();
    // What was right is asked about again after minutes, or by the next server.
    toygres.ok(&["server", "stop"]).await.unwrap();
    expect_health(&toygres, "degraded", &["password_differs"]).await.unwrap();
    let why = toygres.ok(&["why", "demo"]).await.unwrap();
    assert!(why.stdout.contains("toygres rotate-password demo"), "{why}");
    let events = toygres.ok(&["events", "demo"]).await.unwrap();
    assert!(events.stdout.contains("instance_degraded") && !events.stdout.contains("something else"), "{events}");
    toygres.ok(&["rotate-password", "demo"]).await.unwrap();
    expect_health(&toygres, "healthy", &[]).await.unwrap();
    let told = toygres.ok(&["events", "demo"]).await.unwrap();
    assert_eq!(told.stdout.matches("instance_degraded").count(), 1, "{told}");
    toygres.api().unwrap().log_in("demo").await.unwrap();
}

#[tokio::test]
async fn a_parameter_that_a_superuser_set_shows_as_a_difference() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let same = toygres.ok(&["diff", "demo"]).await.unwrap();
    assert!(same.stdout.is_empty() && same.stderr.contains("as its spec has it"), "{same}");
    let mut admin = toygres_e2e::api::log_in(&api.superuser_uri("demo").await.unwrap()).await.unwrap();
    // One that toygres sets, one that it doesn't, and one in which it would be a command to a terminal.
    for statement in [
        "ALTER SYSTEM SET authentication_timeout = '30s'",
        "ALTER SYSTEM SET work_mem = '5MB'",
        "ALTER SYSTEM SET cluster_name = E'\\x1b[31mred'",
    ] {
        admin.execute(statement).await.unwrap();
    }
    let told = toygres.fails(1, &["diff", "demo"]).await.unwrap();
    let timeout = "authentication_timeout of PostgreSQL's configuration is 30s, not 15s (changed by ALTER SYSTEM)";
    assert!(told.stdout.contains(timeout) && !told.stdout.contains("work_mem") && !told.stdout.contains('\u{1b}'), "{told}");
    assert!(told.stdout.contains("ALTER SYSTEM RESET authentication_timeout"), "{told}");
    let told = toygres.run(&["-o", "json", "diff", "demo"]).await.unwrap();
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(told["items"].as_array().unwrap().len(), 2, "{told:#}");
    admin.execute("ALTER SYSTEM RESET ALL").await.unwrap();
    toygres.ok(&["diff", "demo"]).await.unwrap();
    // Of one that is stopped nothing can be asked, and nothing is to be told.
    toygres.ok(&["stop", "demo"]).await.unwrap();
    toygres.ok(&["diff", "demo"]).await.unwrap();
    for wrong in [&["diff"][..], &["diff", "demo", "-f", "x.yaml"], &["diff", "Demo"]] {
        toygres.fails(2, wrong).await.unwrap();
    }
    toygres.fails(2, &["diff", "nothing"]).await.unwrap();
}

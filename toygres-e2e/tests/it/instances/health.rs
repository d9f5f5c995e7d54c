//! How instances are: each reason is made for real, and seen by `health`, `list`, `why` and an event.

use anyhow::{Context, Result, ensure};
use sqlx::Executor;
use sysinfo::Signal;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually, process};

/// Waits until the server has seen by itself that an instance is like that.
async fn expect_health(toygres: &Toygres, name: &str, status: &str, kinds: &[&str]) -> Result<()> {
    eventually(&format!("{name} to be {status} for {kinds:?}"), SOON, async || {
        let all = toygres.json(&["health"]).await?;
        let found = all.as_array().into_iter().flatten().find(|health| health["name"] == name).context("it isn't listed")?;
        let seen: Vec<_> =
            found["health_reasons"].as_array().into_iter().flatten().filter_map(|reason| reason["kind"].as_str()).collect();
        ensure!(found["health_status"] == status && seen == kinds, "{found:#}");
        Ok(Some(()))
    })
    .await
}

async fn events_of(api: &Api, name: &str) -> Result<Vec<String>> {
    let events = api.get(&format!("/v1/instances/{name}/events?limit=500")).await?.expect(200)?;
    let kinds = events["items"].as_array().into_iter().flatten();
    Ok(kinds.filter_map(|event| event["kind"].as_str().map(str::to_owned)).collect())
}

async fn superuser(api: &Api, name: &str) -> Result<sqlx::postgres::PgConnection> {
    toygres_e2e::api::log_in(&api.superuser_uri(name).await?).await
}

#[tokio::test]
async fn what_has_to_be_seen_to_is_told_with_every_reason_until_it_is_mended() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_HEALTH_INTERVAL_SECONDS", "1");
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    expect_health(&toygres, "demo", "healthy", &[]).await.unwrap();
    let mut admin = superuser(&api, "demo").await.unwrap();

    // A slot that nobody reads keeps WAL; a gigabyte of it would take too long, so the slot is made to be lost.
    admin.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await.unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
    admin.execute("SELECT pg_create_physical_replication_slot('left', true)").await.unwrap();
    for _ in 0..4 {
        admin
            .execute("SELECT pg_switch_wal() FROM (SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))) x")
            .await
            .unwrap();
    }
    admin.execute("CHECKPOINT").await.unwrap();
    expect_health(&toygres, "demo", "degraded", &["slot_retains_wal"]).await.unwrap();

    // Most of its connections, and none for ordinary roles.
    let (room,): (i32,) = sqlx::query_as(
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true)::int, 0)",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    let mut sessions = Vec::new();
    while (sessions.len() as i32) < room * 9 / 10 {
        sessions.push(api.log_in("demo").await.unwrap());
    }
    expect_health(&toygres, "demo", "degraded", &["connections_nearly_used_up", "slot_retains_wal"]).await.unwrap();
    drop(sessions);

    // Read-only, for the owner's database and for all.
    admin.execute("SELECT pg_drop_replication_slot('left')").await.unwrap();
    admin.execute("ALTER DATABASE app SET default_transaction_read_only = on").await.unwrap();
    expect_health(&toygres, "demo", "degraded", &["read_only"]).await.unwrap();
    admin.execute("ALTER DATABASE app RESET default_transaction_read_only").await.unwrap();
    admin.execute("ALTER SYSTEM SET default_transaction_read_only = on").await.unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
    expect_health(&toygres, "demo", "unhealthy", &["read_only"]).await.unwrap();
    let why = toygres.ok(&["why", "demo"]).await.unwrap();
    assert!(why.stdout.contains("default_transaction_read_only"), "{why}");
    let get = toygres.ok(&["get", "demo"]).await.unwrap();
    assert!(get.stdout.contains("running (unhealthy)") && get.stdout.contains("read-only"), "{get}");
    admin.execute("SET default_transaction_read_only = off").await.unwrap();
    admin.execute("ALTER SYSTEM RESET default_transaction_read_only").await.unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
    let events = events_of(&api, "demo").await.unwrap();
    assert!(events.iter().filter(|kind| *kind == "instance_degraded").count() >= 2, "{events:?}");
    assert!(events.iter().any(|kind| kind == "instance_unhealthy"), "{events:?}");
    let health = toygres.json(&["health", "demo"]).await.unwrap();
    assert!(health["changes"].as_array().unwrap().len() >= 4, "{health:#}");
    assert!(health["latency_milliseconds"].as_f64().unwrap() > 0.0, "{health:#}");
    let shown = toygres.ok(&["health", "demo"]).await.unwrap();
    assert!(shown.stdout.contains("How it was") && shown.stdout.contains("unhealthy"), "{shown}");
}

#[tokio::test]
async fn a_restart_that_is_owed_is_told_within_a_minute_or_two() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut admin = superuser(&api, "demo").await.unwrap();
    admin.execute("ALTER SYSTEM SET max_connections = 77").await.unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
    expect_health(&toygres, "demo", "degraded", &["restart_pending"]).await.unwrap();
    let events = events_of(&api, "demo").await.unwrap();
    assert_eq!(events.last().map(String::as_str), Some("instance_degraded"), "{events:?}");
    let restart = api.post("/v1/instances/demo/restart").await.unwrap().expect(202).unwrap();
    api.wait_success(restart["id"].as_str().unwrap()).await.unwrap();
    expect_health(&toygres, "demo", "healthy", &[]).await.unwrap();
}

#[tokio::test]
async fn one_that_hangs_has_one_session_of_toygress_and_holds_up_no_other() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_HEALTH_INTERVAL_SECONDS", "1");
    let api = toygres.serve().await.unwrap();
    for name in ["hangs", "works"] {
        api.create(name).await.unwrap();
        expect_health(&toygres, name, "healthy", &[]).await.unwrap();
    }
    // Sessions that are open go on, and nobody else gets one.
    let postmaster = toygres.postmasters("hangs")[0];
    process::send(postmaster, Signal::Stop).unwrap();
    let seen = expect_health(&toygres, "hangs", "unhealthy", &["no_answer"]).await;
    let other = expect_health(&toygres, "works", "healthy", &[]).await;
    process::send(postmaster, Signal::Continue).unwrap();
    seen.and(other).unwrap();
    expect_health(&toygres, "hangs", "healthy", &[]).await.unwrap();
    let mut admin = superuser(&api, "hangs").await.unwrap();
    let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'toygres' AND backend_type = 'client backend'";
    eventually("one session of toygres's", SOON, async || {
        let (sessions,): (i64,) = sqlx::query_as(count).fetch_one(&mut admin).await?;
        ensure!(sessions == 1, "there are {sessions}");
        Ok(Some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_nobody_looks_at_is_not_said_to_be_well() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    expect_health(&toygres, "demo", "healthy", &[]).await.unwrap();
    // As if its server had been away.
    let control = toygres.control().await.unwrap();
    let age = "UPDATE toygres.instances SET cluster_id = 'elsewhere',
        status = jsonb_set(status, '{health_since}', '\"2026-01-01T00:00:00Z\"')";
    sqlx::query(age).execute(&control).await.unwrap();
    expect_health(&toygres, "demo", "unknown", &["not_observed"]).await.unwrap();
    let list = toygres.ok(&["list"]).await.unwrap();
    assert!(list.stdout.contains("running (unknown)"), "{list}");
}

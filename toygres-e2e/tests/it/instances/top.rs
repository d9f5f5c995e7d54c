//! The load of instances, as people see it, and an end to what somebody does.

use anyhow::{Context, ensure};
use sqlx::Executor;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Toygres, eventually};

#[tokio::test]
async fn sessions_and_who_waits_for_whom_are_shown_and_can_be_ended() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut holder = api.log_in("demo").await.unwrap();
    holder.execute("CREATE TABLE held (id int)").await.unwrap();
    holder.execute("BEGIN; LOCK TABLE held").await.unwrap();
    let (holder_pid,): (i32,) = sqlx::query_as("SELECT pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    let mut waiter = api.log_in("demo").await.unwrap();
    let (waiter_pid,): (i32,) = sqlx::query_as("SELECT pg_backend_pid()").fetch_one(&mut waiter).await.unwrap();
    let waits = tokio::spawn(async move {
        // What would be a command to a terminal, and begins a line of its own.
        let ended = waiter.execute("SELECT 'secret \n\u{1b}[31m', count(*) FROM held").await;
        (waiter, ended.map(drop))
    });
    let activity = eventually("one to wait for the other", SOON, async || {
        let activity = toygres.json(&["top", "demo"]).await?;
        let sessions = activity["sessions"].as_array().context("no sessions")?;
        let waiter = sessions.iter().find(|session| session["pid"] == waiter_pid);
        let waits = waiter.is_some_and(|waiter| waiter["blocked_by"] == serde_json::json!([holder_pid]));
        // The usage and the sessions are each at most a second old.
        Ok((waits && activity["usage"]["connections"] == 2).then_some(activity))
    })
    .await
    .unwrap();
    let usage = &activity["usage"];
    assert_eq!((&usage["connections"], &usage["health_status"]), (&2.into(), &"healthy".into()), "{activity:#}");
    let sessions = activity["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 2, "toygres's own are none of them: {activity:#}");
    assert!(
        sessions.iter().any(|session| session["statement"].as_str().is_some_and(|text| text.contains("secret"))),
        "{activity:#}"
    );
    let shown = toygres.ok(&["top", "demo", "--once"]).await.unwrap();
    assert!(shown.stdout.contains(&format!("lock of {holder_pid}")) && !shown.stdout.contains('\u{1b}'), "{shown}");
    let all = toygres.ok(&["top"]).await.unwrap();
    assert!(all.stdout.contains("CONNECTIONS") && all.stdout.contains("demo"), "{all}");

    // A viewer is shown no statement, and ends nothing.
    let minted = toygres.json(&["token", "create", "watcher", "--role", "viewer"]).await.unwrap();
    let viewer = toygres_e2e::Api::new(&toygres.url().unwrap(), minted["secret"].as_str()).unwrap();
    let seen = viewer.get("/v1/instances/demo/activity").await.unwrap();
    assert!(seen.status == 200 && !seen.text.contains("secret"), "{}", seen.text);
    let started_at = sessions.iter().find(|session| session["pid"] == waiter_pid).unwrap()["started_at"].as_str().unwrap();
    let cancel = format!("/v1/instances/demo/sessions/{waiter_pid}/cancel?started_at={}", started_at.replace('+', "%2B"));
    let refused = viewer.post(&cancel).await.unwrap();
    assert!(refused.status == 403, "{}", refused.text);

    toygres.ok(&["top", "demo", "--cancel", &waiter_pid.to_string()]).await.unwrap();
    let (mut waiter, ended) = waits.await.unwrap();
    assert!(ended.unwrap_err().to_string().contains("canceling statement due to user request"));
    waiter.execute("SELECT 1").await.expect("its session goes on");
    let idle = api.post(&cancel).await.unwrap();
    assert!(idle.status == 409 && idle.text.contains("runs no statement"), "{}", idle.text);
    let other = api.post(&cancel.replace(started_at.split('.').next().unwrap(), "2020-01-01T00:00:00")).await.unwrap();
    assert_eq!(other.status.as_u16(), 404, "another session of that process: {}", other.text);

    // A superuser's sessions are for admins, and other encodings break nothing.
    let mut admin = toygres_e2e::api::log_in(&api.superuser_uri("demo").await.unwrap()).await.unwrap();
    let (admin_pid,): (i32,) = sqlx::query_as("SELECT pg_backend_pid()").fetch_one(&mut admin).await.unwrap();
    admin.execute("CREATE DATABASE latin ENCODING LATIN1 TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'").await.unwrap();
    let latin = api.uri("demo").await.unwrap().replace("/app?", "/latin?");
    let mut latin = toygres_e2e::api::log_in(&latin).await.unwrap();
    latin.execute("SET client_encoding = 'LATIN1'").await.unwrap();
    latin.execute("SELECT '\u{e9}' AS accented").await.unwrap();
    let minted = toygres.json(&["token", "create", "writer", "--role", "editor"]).await.unwrap();
    let editor = toygres_e2e::Api::new(&toygres.url().unwrap(), minted["secret"].as_str()).unwrap();
    // An answer is shared by all who ask within a second.
    let started_at = eventually("the superuser's session to be shown", SOON, async || {
        let activity = toygres.json(&["top", "demo"]).await?;
        ensure!(activity["problem"].is_null(), "{activity:#}");
        let sessions = activity["sessions"].as_array().context("no sessions")?;
        let of_admin = sessions.iter().find(|session| session["pid"] == admin_pid);
        Ok(of_admin.and_then(|session| session["started_at"].as_str()).map(|at| at.replace('+', "%2B")))
    })
    .await
    .unwrap();
    let end = format!("/v1/instances/demo/sessions/{admin_pid}/terminate?started_at={started_at}");
    assert_eq!(editor.post(&end).await.unwrap().status.as_u16(), 403);
    assert_eq!(api.post(&end).await.unwrap().status.as_u16(), 204);
    assert!(admin.execute("SELECT 1").await.is_err());
    toygres.ok(&["top", "demo", "--terminate", &holder_pid.to_string()]).await.unwrap();
    assert!(holder.execute("SELECT 1").await.is_err());
    let events = toygres.ok(&["events", "demo"]).await.unwrap();
    assert!(events.stdout.contains("session_cancelled") && events.stdout.contains("session_terminated"), "{events}");
    // No other process of the server's is one.
    let postmaster = toygres.only_postmaster("demo").await.unwrap();
    for pid in [postmaster, 1, 2_000_000_000] {
        let refused = toygres.fails(1, &["top", "demo", "--terminate", &pid.to_string()]).await.unwrap();
        assert!(refused.stderr.contains("no session of a client"), "{refused}");
    }
    for wrong in
        [&["top", "--cancel", "1"][..], &["top", "demo", "--cancel", "-1"], &["top", "demo", "--cancel", "1", "--terminate", "1"]]
    {
        toygres.fails(2, wrong).await.unwrap();
    }
    toygres.ok(&["stop", "demo"]).await.unwrap();
    let stopped = toygres.fails(1, &["top", "demo"]).await.unwrap();
    assert!(stopped.stderr.contains("stopped"), "{stopped}");
    ensure_none(&toygres).await.unwrap();
}

async fn ensure_none(toygres: &Toygres) -> anyhow::Result<()> {
    let all = toygres.ok(&["top"]).await?;
    ensure!(all.stdout.contains("No instance runs"), "{all}");
    Ok(())
}

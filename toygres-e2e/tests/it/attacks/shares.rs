//! Who wants all of the server for himself.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::join_all;
use futures::{StreamExt, stream};
use reqwest::Method;
use serde_json::json;
use toygres_e2e::raw::{Raw, status};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually};

/// More than one peer may have.
const IDLE: usize = 3000;

fn allow_files(count: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(count).min(hard), hard).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_silent_connections_shut_nobody_out() {
    allow_files(8192);
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..3 {
        // Those that were ended are replaced at once, as an attacker would.
        idle.extend(join_all((0..IDLE).map(|_| Raw::connect(api.url()))).await.into_iter().map(Result::unwrap));
        for _ in 0..5 {
            // A new connection each.
            toygres.api().unwrap().get("/v1/instances").await.unwrap().expect(200).unwrap();
            toygres.ok(&["list"]).await.unwrap();
        }
        idle.truncate(IDLE);
    }
}

/// A token that isn't an admin's.
async fn viewer(api: &Api, name: &str) -> Result<(Api, String)> {
    let token = json!({ "name": name, "role": "viewer" }).to_string();
    let token = api.send(Method::POST, "/v1/tokens", Some(token)).await?.json()?;
    let secret = token["secret"].as_str().unwrap().to_owned();
    Ok((api.with_token(Some(&secret)), secret))
}

/// Opens streams of events. Returns the streams that the server accepted, and how many requests it answered with 429.
async fn open_streams(api: &Api, secret: &str, count: usize) -> Result<(Vec<Raw>, usize)> {
    let request =
        format!("GET /v1/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nAuthorization: Bearer {secret}\r\n\r\n");
    // A few at a time: all at once, a busy machine takes longer for the last of them than a request may take.
    let opened = stream::iter(0..count).map(async |_| {
        let mut raw = Raw::connect(api.url()).await?;
        raw.send(request.as_bytes()).await;
        let head = raw.some().await?;
        anyhow::Ok((raw, status(&head)))
    });
    let opened: Vec<_> = opened.buffer_unordered(16).collect().await;
    let (mut held, mut refused) = (Vec::new(), 0);
    for opened in opened {
        match opened? {
            (raw, Some(200)) => held.push(raw),
            (_, Some(429)) => refused += 1,
            (_, other) => anyhow::bail!("{other:?}"),
        }
    }
    Ok((held, refused))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_an_eighth_of_the_waits_and_the_last_eighth_is_for_admins() {
    allow_files(8192);
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let (first, secret) = viewer(&api, "first").await.unwrap();
    let (mut held, refused) = open_streams(&api, &secret, 300).await.unwrap();
    assert_eq!((held.len(), refused), (256, 44));
    let told = first.get("/v1/operations/00000000-0000-7000-8000-000000000000?wait=1s").await.unwrap();
    assert!(told.expect_problem(429).unwrap().contains("256"));
    // It has other requests still, and others their waits.
    first.get("/v1/instances").await.unwrap().expect(200).unwrap();
    for turn in 1..7 {
        let (_, secret) = viewer(&api, &format!("more-{turn}")).await.unwrap();
        let (more, refused) = open_streams(&api, &secret, 256).await.unwrap();
        assert_eq!((more.len(), refused), (256, 0));
        held.extend(more);
    }
    let (last, _) = viewer(&api, "last").await.unwrap();
    last.get("/v1/operations/00000000-0000-7000-8000-000000000000?wait=1s").await.unwrap().expect_problem(429).unwrap();
    api.get("/v1/operations/00000000-0000-7000-8000-000000000000?wait=1s").await.unwrap().expect_problem(404).unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    drop(held);
    eventually("the places to be given back", SOON, async || {
        let answer = last.get("/v1/operations/00000000-0000-7000-8000-000000000000?wait=1s").await?;
        Ok((answer.status == 404).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_sends_bodies_slowly_leaves_room_for_others() {
    allow_files(8192);
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let token = json!({ "name": "slow", "role": "editor" }).to_string();
    let token = api.send(Method::POST, "/v1/tokens", Some(token)).await.unwrap().json().unwrap();
    let secret = token["secret"].as_str().unwrap();
    let (other, _) = viewer(&api, "other").await.unwrap();
    let head = format!(
        "POST /v1/instances HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    );
    let own = api.with_token(Some(secret));
    let mut held = Vec::new();
    eventually("the token's share to be taken", Duration::from_secs(60), async || {
        held.clear();
        let opened = join_all((0..300).map(async |_| {
            let mut raw = Raw::connect(api.url()).await?;
            raw.send(head.as_bytes()).await;
            anyhow::Ok(raw)
        }));
        held.extend(opened.await.into_iter().collect::<Result<Vec<_>>>()?);
        let sent = Instant::now();
        // A body is waited for ten seconds, which a busy machine may need for all of them.
        while sent.elapsed() < Duration::from_secs(5) {
            if own.get("/v1/instances").await?.text.contains("at work on 64 such requests") {
                return Ok(Some(()));
            }
        }
        Ok(None)
    })
    .await
    .unwrap();
    for other in [&other, &api] {
        other.get("/v1/instances").await.unwrap().expect(200).unwrap();
    }
    drop(held);
    eventually("the share to be given back", SOON, async || Ok((own.get("/v1/instances").await?.status == 200).then_some(())))
        .await
        .unwrap();
}

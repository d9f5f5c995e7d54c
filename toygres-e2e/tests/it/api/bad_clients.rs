//! Clients that nobody wants: each gets a clear answer with the right status or none at all, writes
//! nothing, and takes nothing from the others.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::{Value, json};
use toygres_e2e::api::Api;
use toygres_e2e::raw::{Raw, status};
use toygres_e2e::run::humane;
use toygres_e2e::wait::eventually;
use toygres_e2e::{Toygres, process};

/// A server with nothing in it, and its token.
async fn served() -> Result<(Toygres, Api, String)> {
    let toygres = Toygres::new()?.with("TOYGRES_POOL_SIZE", "0");
    let api = toygres.serve().await?;
    let token = std::fs::read_to_string(toygres.state_dir().join("token"))?.trim().to_owned();
    Ok((toygres, api, token))
}

/// Nothing was written, and every request is served.
async fn expect_unharmed(toygres: &Toygres, api: &Api) -> Result<()> {
    api.get("/readyz").await?.expect(200)?;
    ensure!(api.items("/v1/instances").await?.is_empty(), "an instance was made");
    ensure!(api.items("/v1/operations").await?.is_empty(), "an operation was begun");
    ensure!(!toygres.state_dir().join("instances/default").exists(), "an instance's folder was made");
    for log in ["server.log", "server.stderr"] {
        let log = std::fs::read_to_string(toygres.state_dir().join(log))?;
        ensure!(!log.contains("panicked"), "the server panicked: {log}");
    }
    Ok(())
}

/// The problem document at an answer's end, whose words have to be for people.
fn problem(answer: &str) -> Result<Value> {
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end to its head")?;
    ensure!(head.to_lowercase().contains("content-type: application/problem+json"), "no problem document: {answer}");
    ensure!(head.to_lowercase().contains("x-request-id: "), "no request id: {answer}");
    let problem: Value = serde_json::from_str(body).with_context(|| answer.to_owned())?;
    humane(problem["detail"].as_str().context("a problem without a detail")?)?;
    Ok(problem)
}

#[tokio::test]
async fn bytes_that_are_no_request_get_a_refusal_or_nothing() {
    let (toygres, api, token) = served().await.unwrap();
    let bearer = format!("Authorization: Bearer {token}\r\nConnection: close\r\n");
    let long = "a".repeat(100_000);
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    // Those that are refused before they are a request have no document; their connection ends.
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("HTTP/0.9", b"GET /\r\n\r\n".into(), &[400]),
        ("HTTP/2 spoken beforehand", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), &[400, 505]),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".into(), &[400]),
        ("NULs", vec![0; 64], &[400]),
        ("random", (0..=255).cycle().skip(7).step_by(11).take(4096).collect(), &[400]),
        ("an address of 100 kB", format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n").into(), &[414, 431]),
        ("a header of 100 kB", format!("GET / HTTP/1.1\r\nHost: x\r\nx: {long}\r\n\r\n").into(), &[431]),
        ("200 headers", format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").into(), &[431]),
        ("a header with NUL", b"GET /healthz HTTP/1.1\r\nHost: x\r\nx-request-id: a\0b\r\n\r\n".into(), &[400]),
        ("a header without a name", b"GET /healthz HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n".into(), &[400]),
        ("two lengths", format!("POST /v1/instances HTTP/1.1\r\nHost: x\r\n{bearer}Content-Length: 3\r\nContent-Length: 4\r\n\r\n{{}}").into(), &[400]),
        ("a length below none", format!("POST /v1/instances HTTP/1.1\r\nHost: x\r\n{bearer}Content-Length: -1\r\n\r\n").into(), &[400]),
        ("a chunk that is none", format!("POST /v1/instances HTTP/1.1\r\nHost: x\r\n{bearer}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").into(), &[422]),
    ];
    for (what, bytes, wanted) in cases {
        let mut raw = Raw::connect(api.url()).await.unwrap();
        raw.send(&bytes).await;
        let answer = raw.rest().await.unwrap();
        // A refusal may be lost where the client is still sending when the connection ends.
        assert!(status(&answer).is_none_or(|status| wanted.contains(&status)), "{what}: {answer}");
        println!("{what}: {}", answer.lines().next().unwrap_or("no answer"));
    }
    expect_unharmed(&toygres, &api).await.unwrap();
}

#[tokio::test]
async fn requests_that_ask_for_what_there_is_not_are_told_so() {
    let (toygres, api, token) = served().await.unwrap();
    let instance = r#"{"name":"demo"}"#;
    let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n", 70_000, " ".repeat(70_000));
    let cases: &[(&str, &str, String, u16)] = &[
        ("an unknown method", "BREW /v1/instances", String::new(), 405),
        ("TRACE", "TRACE /v1/instances", String::new(), 405),
        ("OPTIONS", "OPTIONS /v1/instances", String::new(), 405),
        ("CONNECT", "CONNECT example.org:443", String::new(), 404),
        ("a path upwards", "GET /v1/instances/../../token", String::new(), 404),
        ("a path upwards, encoded", "GET /v1/instances/..%2f..%2ftoken", String::new(), 422),
        ("a path upwards, encoded twice", "GET /v1/instances/%252e%252e%252ftoken/logs", String::new(), 422),
        ("a path upwards in a namespace", "GET /v1/instances/demo/logs?namespace=..%2f..", String::new(), 422),
        ("a path upwards to the page's files", "GET /docs/..%2f..%2f..%2fetc%2fpasswd", String::new(), 404),
        ("bytes that are no UTF-8", "GET /v1/instances/%ff%fe", String::new(), 422),
        ("NUL in a name", "GET /v1/instances/a%00b", String::new(), 422),
        ("SQL in a name", "DELETE /v1/instances/a'%3bDROP%20TABLE%20toygres.instances%3b--", String::new(), 422),
        ("SQL in a namespace", "GET /v1/instances?namespace='%20OR%20'1'='1", String::new(), 422),
        ("SQL in labels", "GET /v1/instances?label_selector=a%3db'%3b--", String::new(), 422),
        ("SQL in a cursor", "GET /v1/operations?cursor='%3bSELECT%20pg_sleep(9)", String::new(), 422),
        ("another server's address", "GET http://example.org/v1/nothing", String::new(), 404),
        ("no kind of body", "POST /v1/instances", format!("Content-Length: {}\r\n\r\n{instance}", instance.len()), 415),
        (
            "a form",
            "POST /v1/instances",
            format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{instance}", instance.len()),
            415,
        ),
        (
            "a body of 1 GB to come",
            "POST /v1/instances",
            "Content-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n{".into(),
            413,
        ),
        ("a body without a length", "POST /v1/instances", format!("Content-Type: application/json\r\n{chunked}"), 413),
        (
            "the same with a key",
            "POST /v1/instances",
            format!("Content-Type: application/json\r\nIdempotency-Key: k\r\n{chunked}"),
            413,
        ),
        (
            "a body that ends early",
            "POST /v1/instances",
            "Content-Type: application/json\r\nContent-Length: 5\r\n\r\n{\"a\":".into(),
            422,
        ),
        (
            "another coding of a body",
            "POST /v1/instances",
            format!("Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n\u{1f}\u{8b}", 3),
            422,
        ),
        ("an ETag that is none", "DELETE /v1/instances/demo", "If-Match: \"x\"\r\n\r\n".into(), 422),
        ("a number that is no ETag", "DELETE /v1/instances/demo", "If-Match: +3\r\n\r\n".into(), 422),
        ("a signed id", "GET /v1/events", "Last-Event-ID: +9\r\n\r\n".into(), 422),
        ("a kind with an odd byte", "GET /v1/events?kind=%00", String::new(), 422),
        ("a kind with an odd byte as a stream", "GET /v1/events?kind=%00", "Accept: text/event-stream\r\n\r\n".into(), 422),
        ("a time before all calendars", "GET /v1/events?since=-200000-01-01T00:00:00Z", String::new(), 422),
        ("an empty key", "DELETE /v1/instances/demo", "Idempotency-Key:\r\n\r\n".into(), 422),
        ("a key of odd bytes", "DELETE /v1/instances/demo", "Idempotency-Key: \u{ff}\r\n\r\n".into(), 422),
        ("an answer in XML", "GET /v1/nothing", "Accept: application/xml\r\n\r\n".into(), 404),
    ];
    for (what, line, rest, wanted) in cases {
        let rest = if rest.is_empty() { "\r\n" } else { rest };
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n{rest}");
        let mut raw = Raw::connect(api.url()).await.unwrap();
        raw.send(head.as_bytes()).await;
        let answer = raw.rest().await.unwrap();
        assert_eq!(status(&answer), Some(*wanted), "{what}: {answer}");
        let problem = problem(&answer).map_err(|error| error.context(*what)).unwrap();
        println!("{what}: {wanted} {}", problem["detail"]);
    }
    expect_unharmed(&toygres, &api).await.unwrap();
}

#[tokio::test]
async fn an_answer_to_head_and_to_a_wrong_method_says_what_get_would() {
    let (_toygres, api, _) = served().await.unwrap();
    let head = api.send(reqwest::Method::HEAD, "/v1/instances", None).await.unwrap();
    assert!(head.status == 200 && head.text.is_empty(), "{head:?}");
    let wrong = api.send(reqwest::Method::PATCH, "/v1/instances", None).await.unwrap();
    wrong.expect_problem(405).unwrap();
    let allowed = wrong.headers["allow"].to_str().unwrap();
    assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
    for path in ["/v1/instances", "/v1/nothing", "/docs/", "/openapi.json", "/healthz"] {
        let headers = api.get(path).await.unwrap().headers;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"), "{path}");
    }
}

#[tokio::test]
async fn a_request_keeps_its_id_if_that_can_stand_in_a_log() {
    let (toygres, api, _) = served().await.unwrap();
    let answered = async |given: &str| {
        let mut raw = Raw::connect(api.url()).await.unwrap();
        raw.send(format!("GET /v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{given}\r\n").as_bytes()).await;
        let answer = raw.rest().await.unwrap();
        let ids: Vec<_> = answer.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).map(str::to_owned).collect();
        assert_eq!(ids.len(), 1, "{answer}");
        ids[0].clone()
    };
    assert_eq!(answered("x-request-id: order-66.a_b\r\n").await, "order-66.a_b");
    let long = "a".repeat(129);
    for odd in [
        "",
        "x-request-id:\r\n",
        "x-request-id: a b\r\n",
        "x-request-id: \u{e9}\r\n",
        "x-request-id: a\r\nx-request-id: b\r\n",
        &format!("x-request-id: {long}\r\n"),
    ] {
        let id = answered(odd).await;
        assert!(id.len() == 36 && id.matches('-').count() == 4, "{odd:?} was answered with {id:?}");
    }
    let log = std::fs::read_to_string(toygres.state_dir().join("server.log")).unwrap();
    assert!(!log.contains(&long));
}

#[tokio::test]
async fn requests_that_come_in_one_go_are_answered_in_their_order() {
    let (_toygres, api, token) = served().await.unwrap();
    let mut raw = Raw::connect(api.url()).await.unwrap();
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    let paths: Vec<_> = (0..50).map(|n| format!("/v1/instances/absent-{n}")).collect();
    raw.send(paths.iter().map(|path| request(path)).collect::<String>().as_bytes()).await;
    raw.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let answer = raw.rest().await.unwrap();
    let mut rest = answer.as_str();
    for n in 0..50 {
        let (_, after) = rest
            .split_once(&format!("absent-{n} "))
            .or_else(|| rest.split_once(&format!("absent-{n};")))
            .unwrap_or_else(|| panic!("no answer to {n}: {rest}"));
        rest = after;
    }
    assert!(rest.contains("\"status\":\"ok\""), "{rest}");
}

#[tokio::test]
async fn no_json_makes_the_server_fail() {
    let (toygres, api, _) = served().await.unwrap();
    let valid = json!({
        "name": "demo", "namespace": "default", "postgres_version": "15", "storage_size_gb": 10, "password": "hunter2",
        "labels": { "team": "a" }, "delete_protection": true, "use_load_balancer": false
    })
    .to_string();
    // One byte is another one, left out, or doubled: at each place, with bytes that mean something in JSON.
    let mut bodies = Vec::new();
    for (at, _) in valid.char_indices() {
        for other in ["\"", "{", "]", "\\", "\0", "é", "-", ""] {
            bodies.push(format!("{}{other}{}", &valid[..at], &valid[at + 1..]));
        }
        bodies.push(valid[..at].to_owned());
    }
    let odd = [
        "[".repeat(60_000),
        "{\"a\":".repeat(12_000),
        format!(
            "{{\"name\":\"demo\",\"labels\":{{{}}}}}",
            (0..3000).map(|n| format!("\"k{n}\":\"v\"")).collect::<Vec<_>>().join(",")
        ),
        r#"{"name":"a","name":"b"}"#.to_owned(),
        r#"{"name":"demo","storage_size_gb":1e999}"#.to_owned(),
        r#"{"name":"demo","storage_size_gb":-0}"#.to_owned(),
        r#"{"name":"\ud800"}"#.to_owned(),
        "\u{feff}{\"name\":\"demo\"}".to_owned(),
    ];
    bodies.extend(odd);
    let mut made = 0;
    for body in &bodies {
        // A platform that isn't there, so that what is left whole by chance makes nothing either.
        let body = body.replacen("\"delete_protection\"", "\"platform\":\"kubernetes\",\"delete_protection\"", 1);
        let answer = api.send(reqwest::Method::POST, "/v1/instances", Some(body.clone())).await.unwrap();
        let status = answer.status.as_u16();
        assert!(matches!(status, 413 | 422 | 503), "{status} to {body}: {}", answer.text);
        assert!(!answer.text.contains("hunter2"), "{}", answer.text);
        answer.expect_problem(status).unwrap();
        made += 1;
    }
    println!("{made} bodies were refused");
    expect_unharmed(&toygres, &api).await.unwrap();
}

#[tokio::test]
async fn who_sends_slowly_is_given_up_and_disturbs_nobody() {
    let (toygres, api, token) = served().await.unwrap();
    let drip = async |mut raw: Raw, first: &str| {
        raw.send(first.as_bytes()).await;
        let began = Instant::now();
        (raw.rest_while_dripping().await.unwrap(), began.elapsed())
    };
    let headers =
        format!("POST /v1/instances HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n");
    let whole = format!("{headers}Content-Length: 100\r\n\r\n");
    let with_key = format!("{headers}Idempotency-Key: slow\r\nContent-Length: 100\r\n\r\n");
    let chunked = format!("{headers}Transfer-Encoding: chunked\r\n\r\nffff\r\n");
    let connect = async || Raw::connect(api.url()).await.unwrap();
    let half_open = async {
        let mut raw = connect().await;
        raw.send(whole.as_bytes()).await;
        raw.send_no_more().await;
        raw.rest().await.unwrap()
    };
    let silent = async { connect().await.rest().await.unwrap() };
    let meanwhile = async {
        for _ in 0..100 {
            let began = Instant::now();
            api.get("/v1/instances").await.unwrap().expect(200).unwrap();
            // The slow ones are given up after 10 s.
            assert!(began.elapsed() < Duration::from_secs(9), "a slow client slows others: {:?}", began.elapsed());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let (a, b, c, line, head, half_open, silent, ()) = tokio::join!(
        drip(connect().await, &whole),
        drip(connect().await, &with_key),
        drip(connect().await, &chunked),
        drip(connect().await, "GET /"),
        drip(connect().await, &headers),
        half_open,
        silent,
        meanwhile
    );
    for (answer, took) in [a, b, c] {
        assert_eq!(status(&answer), Some(408), "{answer}");
        assert!(answer.to_lowercase().contains("retry-after: "), "{answer}");
        println!("408 seen after {took:?}");
    }
    for (answer, _) in [line, head] {
        assert!(answer.is_empty(), "a request that never came was answered: {answer}");
    }
    assert!(silent.is_empty() && status(&half_open).is_none_or(|status| status == 422), "{half_open}");
    expect_unharmed(&toygres, &api).await.unwrap();
}

#[tokio::test]
async fn headers_of_32_kib_pass_and_larger_ones_never_do() {
    let (toygres, api, token) = served().await.unwrap();
    let answer = async |bytes: usize| {
        let start =
            format!("GET /v1/instances HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\nx-a: ");
        let padding = "a".repeat(bytes - start.len() - 4);
        let mut raw = Raw::connect(api.url()).await.unwrap();
        raw.send(format!("{start}{padding}\r\n\r\n").as_bytes()).await;
        raw.rest().await.unwrap()
    };
    for _ in 0..5 {
        assert_eq!(status(&answer(32 << 10).await), Some(200));
        let refused = answer((32 << 10) + 1).await;
        assert_eq!((status(&refused), problem(&refused).unwrap()["status"].as_u64()), (Some(431), Some(431)));
        for bytes in [40 << 10, 60 << 10, 100 << 10] {
            assert_eq!(status(&answer(bytes).await), Some(431), "{bytes}");
        }
    }
    expect_unharmed(&toygres, &api).await.unwrap();
}

#[tokio::test]
async fn a_thousand_connections_are_served_and_leave_no_memory_behind() {
    let (toygres, api, token) = served().await.unwrap();
    allow_files();
    let pid = toygres.server_pid().unwrap();
    let request = format!("GET /v1/instances HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n");
    let round = async || {
        let idle = join_all((0..1000).map(|_| Raw::connect(api.url()))).await;
        let busy: Vec<_> = join_all((0..1000).map(|_| Raw::connect(api.url()))).await.into_iter().map(Result::unwrap).collect();
        let began = Instant::now();
        let answers = join_all(busy.into_iter().map(async |mut raw| {
            raw.send(request.as_bytes()).await;
            raw.rest().await.unwrap()
        }))
        .await;
        let (mut served, mut refused) = (0, 0);
        for answer in &answers {
            match status(answer) {
                Some(200) => served += 1,
                Some(429) if answer.to_lowercase().contains("retry-after: ") => refused += 1,
                _ => panic!("{answer:?}"),
            }
        }
        println!("2,000 connections: {served} requests served, {refused} told to come again, in {:?}", began.elapsed());
        assert!(idle.iter().all(Result::is_ok) && served > 0);
        process::memory_bytes(pid).unwrap()
    };
    let first = round().await;
    let mut last = 0;
    for _ in 0..3 {
        last = round().await;
    }
    println!("memory: {} MB after the first round, {} MB after the fourth", first >> 20, last >> 20);
    assert!(last < first + (32 << 20), "memory grows: {first}, then {last} bytes");
    expect_unharmed(&toygres, &api).await.unwrap();
}

#[tokio::test]
async fn more_requests_than_there_is_room_for_are_told_to_come_again() {
    let (toygres, api, token) = served().await.unwrap();
    // Each takes room until its body has come, which it never does.
    let head = format!(
        "POST /v1/instances HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    );
    let mut held = Vec::new();
    let refused = eventually("a request to be refused", Duration::from_secs(60), async || {
        // All at once: a body is waited for ten seconds, which a busy machine may need for one after the other.
        held.clear();
        for raw in join_all((0..300).map(|_| Raw::connect(api.url()))).await {
            let mut raw = raw?;
            raw.send(head.as_bytes()).await;
            held.push(raw);
        }
        // The server has them when it has read their heads, which is a moment after they were sent.
        let sent = Instant::now();
        while sent.elapsed() < Duration::from_secs(8) {
            let answer = api.get("/v1/instances").await?;
            if answer.status == 429 {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    })
    .await
    .unwrap();
    refused.expect_problem(429).unwrap();
    assert_eq!(refused.headers["retry-after"], "1");
    // Who looks after the server still sees that it lives, and who waits has room of his own.
    api.get("/readyz").await.unwrap().expect(200).unwrap();
    api.get("/v1/operations/00000000-0000-7000-8000-000000000000?wait=1s").await.unwrap().expect_problem(404).unwrap();
    let served = eventually("requests to be served again", Duration::from_secs(20), async || {
        Ok((api.get("/v1/instances").await?.status == 200).then_some(()))
    });
    served.await.unwrap();
    drop(held);
    expect_unharmed(&toygres, &api).await.unwrap();
}

/// Two thousand connections are as many files on this side.
fn allow_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(4096).min(hard), hard).unwrap();
}

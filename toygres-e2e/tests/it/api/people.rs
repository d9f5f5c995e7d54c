//! Several people on one server, seen from outside: what each role may do where, tokens and their end,
//! quotas, and what is on record of who did it.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result};
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use sse_stream::SseStream;
use toygres_e2e::api::Answer;
use toygres_e2e::control::Moment;
use toygres_e2e::wait::{SOON, eventually};
use toygres_e2e::{Api, Toygres, control};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// Whoever has a token; what they see is another matter.
    Anybody,
    /// Whoever has that role, in the namespace that the request names.
    InNamespace(&'static str),
    /// Whoever has that role in every namespace.
    Everywhere(&'static str),
}

/// Every route below `/v1`: its template, a request of it that changes nothing, who may send it, and what
/// they are answered.
#[rustfmt::skip]
const ROUTES: &[(&str, &str, &str, &str, For, u16)] = &[
    // method, template, request ({ns} is the namespace), body, who, answer
    ("get", "/instances", "/instances?namespace={ns}", "", For::InNamespace("viewer"), 200),
    ("post", "/instances", "/instances?namespace={ns}", r#"{"name":"nobody","storage_size_gb":0}"#, For::InNamespace("editor"), 422),
    ("get", "/instances/{name}", "/instances/nobody?namespace={ns}", "", For::InNamespace("viewer"), 404),
    ("put", "/instances/{name}", "/instances/nobody?namespace={ns}", r#"{"name":"nobody","storage_size_gb":0}"#, For::InNamespace("editor"), 422),
    ("delete", "/instances/{name}", "/instances/nobody?namespace={ns}", "", For::InNamespace("editor"), 404),
    ("post", "/instances/{name}/{verb}", "/instances/nobody/restart?namespace={ns}", "", For::InNamespace("editor"), 404),
    ("get", "/adoptable", "/adoptable", "", For::Everywhere("admin"), 200),
    ("post", "/adoptable/{name}", "/adoptable/nobody?namespace={ns}", "", For::Everywhere("admin"), 404),
    ("get", "/instances/{name}/connection", "/instances/nobody/connection?namespace={ns}", "", For::InNamespace("editor"), 404),
    ("post", "/instances/{name}/superuser", "/instances/nobody/superuser?namespace={ns}", "", For::InNamespace("admin"), 404),
    ("get", "/instances/{name}/events", "/instances/nobody/events?namespace={ns}", "", For::InNamespace("viewer"), 404),
    ("get", "/instances/{name}/why", "/instances/nobody/why?namespace={ns}", "", For::InNamespace("viewer"), 404),
    ("get", "/instances/{name}/drift", "/instances/nobody/drift?namespace={ns}", "", For::InNamespace("viewer"), 404),
    ("get", "/instances/{name}/health", "/instances/nobody/health?namespace={ns}", "", For::InNamespace("viewer"), 404),
    ("get", "/instances/{name}/metrics", "/instances/nobody/metrics?namespace={ns}", "", For::InNamespace("viewer"), 404),
    ("get", "/instances/{name}/activity", "/instances/nobody/activity?namespace={ns}", "", For::InNamespace("viewer"), 404),
    ("post", "/instances/{name}/sessions/{pid}/{end}", "/instances/nobody/sessions/1/cancel?namespace={ns}&started_at=2026-01-01T00:00:00Z", "", For::InNamespace("editor"), 404),
    ("get", "/usage", "/usage?namespace={ns}", "", For::InNamespace("viewer"), 200),
    ("get", "/metrics", "/metrics", "", For::Anybody, 200),
    ("get", "/prometheus/targets", "/prometheus/targets", "", For::Anybody, 200),
    ("get", "/events", "/events?namespace={ns}", "", For::InNamespace("viewer"), 200),
    ("get", "/instances/{name}/logs", "/instances/nobody/logs?namespace={ns}", "", For::InNamespace("viewer"), 404),
    ("get", "/operations", "/operations?namespace={ns}", "", For::InNamespace("viewer"), 200),
    ("get", "/operations/{id}", "/operations/00000000-0000-7000-8000-000000000000", "", For::Anybody, 404),
    ("post", "/operations/{id}/cancel", "/operations/00000000-0000-7000-8000-000000000000/cancel", "", For::Anybody, 404),
    ("post", "/operations/{id}/retry", "/operations/00000000-0000-7000-8000-000000000000/retry", "", For::Anybody, 404),
    ("get", "/versions", "/versions", "", For::Anybody, 200),
    ("get", "/namespaces", "/namespaces", "", For::Anybody, 200),
    ("get", "/namespaces/{name}", "/namespaces/{ns}", "", For::InNamespace("viewer"), 200),
    ("put", "/namespaces/{name}", "/namespaces/{ns}", r#"{"max_instances":-1}"#, For::InNamespace("admin"), 422),
    ("get", "/tokens", "/tokens", "", For::Everywhere("admin"), 200),
    ("post", "/tokens", "/tokens", r#"{"name":"Nobody","role":"viewer"}"#, For::Everywhere("admin"), 422),
    ("get", "/tokens/{name}", "/tokens/nobody", "", For::Everywhere("admin"), 404),
    ("delete", "/tokens/{name}", "/tokens/nobody", "", For::Everywhere("admin"), 404),
    ("get", "/schemas/instance.json", "/schemas/instance.json", "", For::Anybody, 200),
    ("get", "/whoami", "/whoami", "", For::Anybody, 200),
];

const ROLES: [&str; 3] = ["viewer", "editor", "admin"];

/// A server without prepared directories.
async fn server() -> Result<(Toygres, Api)> {
    let toygres = Toygres::new()?.with("TOYGRES_POOL_SIZE", "0");
    let api = toygres.serve().await?;
    Ok((toygres, api))
}

/// Makes a token; the client that uses it, and its secret.
async fn token(api: &Api, body: Value) -> Result<(Api, String)> {
    let minted = api.send(Method::POST, "/v1/tokens", Some(body.to_string())).await?.expect(201)?;
    let secret = minted["secret"].as_str().context("no secret")?.to_owned();
    Ok((api.with_token(Some(&secret)), secret))
}

async fn put(api: &Api, path: &str, body: &Value) -> Result<Answer> {
    api.send(Method::PUT, path, Some(body.to_string())).await
}

async fn create_in(api: &Api, namespace: &str, name: &str) -> Result<Value> {
    let path = format!("/v1/instances?namespace={namespace}");
    let answer = api.send(Method::POST, &path, Some(json!({ "name": name }).to_string())).await?;
    api.wait_success(answer.expect(202)?["id"].as_str().context("no id")?).await
}

#[tokio::test]
async fn every_route_lets_in_whom_it_should_and_nobody_else() {
    let (_toygres, root) = server().await.unwrap();
    let document = root.get("/openapi.json").await.unwrap().expect(200).unwrap();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|_| path.starts_with("/v1/")) {
            described.insert((method.clone(), path["/v1".len()..].to_owned()));
        }
    }
    let in_table: BTreeSet<_> = ROUTES.iter().map(|row| (row.0.to_owned(), row.1.to_owned())).collect();
    assert_eq!(described, in_table, "the table above says of each route who may use it");

    for namespace in ["mine", "theirs"] {
        put(&root, &format!("/v1/namespaces/{namespace}"), &json!({})).await.unwrap().expect(200).unwrap();
    }
    let mut checked = 0;
    for (rank, role) in ROLES.iter().enumerate() {
        for limited in [false, true] {
            let name = format!("{role}-{}", if limited { "here" } else { "everywhere" });
            let mut body = json!({ "name": name, "role": role });
            if limited {
                body["namespaces"] = json!(["mine"]);
            }
            let (person, _) = token(&root, body).await.unwrap();
            for &(method, template, path, body, who, answer) in ROUTES {
                for namespace in ["mine", "theirs"] {
                    let has = |needed: &str| ROLES.iter().position(|role| *role == needed).unwrap() <= rank;
                    let allowed = match who {
                        For::Anybody => true,
                        For::InNamespace(needed) => has(needed) && (!limited || namespace == "mine"),
                        For::Everywhere(needed) => has(needed) && !limited,
                    };
                    let path = format!("/v1{}", path.replace("{ns}", namespace));
                    let body = (!body.is_empty()).then(|| body.to_owned());
                    let method = method.to_uppercase().parse().unwrap();
                    let given = person.send(method, &path, body).await.unwrap();
                    let expected = if allowed { answer } else { 403 };
                    assert_eq!(given.status, expected, "{name}: {template} in {namespace}: {}", given.text);
                    if !allowed {
                        let detail = given.expect_problem(403).unwrap();
                        assert!(detail.contains(&name) && detail.contains("nothing was done"), "{detail}");
                    }
                    checked += 1;
                }
            }
        }
    }
    println!("{checked} requests by {} tokens on {} routes", ROLES.len() * 2, ROUTES.len());
}

#[tokio::test]
async fn a_viewer_sees_no_password_and_nobody_sees_another_namespace() {
    let (toygres, root) = server().await.unwrap();
    create_in(&root, "mine", "demo").await.unwrap();
    let foreign = create_in(&root, "theirs", "secret-project").await.unwrap();
    let (viewer, _) = token(&root, json!({ "name": "eve", "role": "viewer", "namespaces": ["mine"] })).await.unwrap();
    let (editor, _) = token(&root, json!({ "name": "ann", "role": "editor", "namespaces": ["mine"] })).await.unwrap();

    let connection = editor.get("/v1/instances/demo/connection?namespace=mine").await.unwrap().expect(200).unwrap();
    let password = connection["password"].as_str().unwrap();
    viewer.get("/v1/instances/demo/connection?namespace=mine").await.unwrap().expect_problem(403).unwrap();
    let own = root.items("/v1/operations?namespace=mine").await.unwrap()[0]["id"].as_str().unwrap().to_owned();
    for path in [
        "/v1/instances".to_owned(),
        "/v1/instances?namespace=mine".into(),
        "/v1/instances/demo?namespace=mine".into(),
        "/v1/instances/demo/events?namespace=mine".into(),
        "/v1/instances/demo/logs?namespace=mine".into(),
        "/v1/instances/demo/why?namespace=mine".into(),
        "/v1/events".into(),
        "/v1/operations".into(),
        format!("/v1/operations/{own}"),
        "/v1/namespaces".into(),
    ] {
        let seen = viewer.get(&path).await.unwrap();
        assert_eq!(seen.status, 200, "{path}: {}", seen.text);
        assert!(!seen.text.contains(password), "{path} shows the password");
        assert!(!seen.text.contains("theirs") && !seen.text.contains("secret-project"), "{path}: {}", seen.text);
    }
    assert_eq!(viewer.items("/v1/instances").await.unwrap().len(), 1);

    for change in ["cancel", "retry"] {
        let path = format!("/v1/operations/{own}/{change}");
        viewer.send(Method::POST, &path, None).await.unwrap().expect_problem(403).unwrap();
        let path = format!("/v1/operations/{}/{change}", foreign["id"].as_str().unwrap());
        editor.send(Method::POST, &path, None).await.unwrap().expect_problem(404).unwrap();
    }

    // What isn't theirs is as what isn't there.
    let foreign = foreign["id"].as_str().unwrap();
    let nobodys = "00000000-0000-7000-8000-000000000000";
    for caller in [&viewer, &editor] {
        let [one, other] = [foreign, nobodys].map(|id| async move {
            let detail = caller.get(&format!("/v1/operations/{id}")).await.unwrap().expect_problem(404).unwrap();
            detail.replace(id, "ID")
        });
        assert_eq!(one.await, other.await);
    }
    for name in ["secret-project", "nobody"] {
        let path = format!("/v1/instances/{name}?namespace=theirs");
        let refused = editor.get(&path).await.unwrap().expect_problem(403).unwrap();
        assert!(!refused.contains(name), "it tells of the instance: {refused}");
    }

    // Who did it is on record.
    let deleted = editor.send(Method::DELETE, "/v1/instances/demo?namespace=mine", None).await.unwrap().expect(202).unwrap();
    assert_eq!((&deleted["actor"], &deleted["cause"]), (&json!("ann"), &json!("requested by ann")));
    editor.wait_success(deleted["id"].as_str().unwrap()).await.unwrap();
    let events = viewer.items("/v1/instances/demo/events?namespace=mine").await.unwrap();
    let by = |kind: &str| events.iter().find(|event| event["kind"] == kind).map(|event| event["actor"].clone());
    assert_eq!((by("create_requested"), by("delete_requested")), (Some(json!("root")), Some(json!("ann"))), "{events:#?}");
    drop(toygres);
}

#[tokio::test]
async fn a_token_ends_at_once_and_a_wrong_one_learns_nothing() {
    let (toygres, root) = server().await.unwrap();
    let (ann, secret) = token(&root, json!({ "name": "ann", "role": "admin", "ttl_seconds": 3600 })).await.unwrap();
    let me = ann.get("/v1/whoami").await.unwrap().expect(200).unwrap();
    assert_eq!((&me["name"], &me["role"], &me["namespaces"]), (&json!("ann"), &json!("admin"), &Value::Null));
    assert!(me["expires_at"].is_string());

    // Whatever is wrong with a token, the answer is the same.
    let (id, rest) = secret.strip_prefix("toygres_").unwrap().split_once('_').unwrap();
    let wrong = [
        format!("toygres_{id}_{}", rest.chars().rev().collect::<String>()),
        format!("toygres_{}_{rest}", "0".repeat(32)),
        format!("toygres_{id}_"),
        format!("toygres_{id}_{}", "x".repeat(6000)),
        "toygres_".into(),
        "' OR 1=1 --".into(),
        "../../etc/passwd".into(),
        "%00".into(),
        "root".into(),
        format!("{secret}x"),
    ];
    let mut said = BTreeSet::new();
    for sent in &wrong {
        let answer = root.with_token(Some(sent)).get("/v1/whoami").await.unwrap();
        said.insert(answer.expect_problem(401).unwrap());
        assert!(!answer.text.contains(rest), "{}", answer.text);
    }
    assert_eq!(said.len(), 1, "{said:?}");

    // Though it is in use all the while, it is refused from the answer on.
    for _ in 0..5 {
        let (bob, _) = token(&root, json!({ "name": "bob", "role": "viewer" })).await.unwrap();
        let user = tokio::spawn({
            let bob = bob.clone();
            async move { while bob.get("/v1/whoami").await.unwrap().status == 200 {} }
        });
        bob.get("/v1/whoami").await.unwrap().expect(200).unwrap();
        ann.send(Method::DELETE, "/v1/tokens/bob", None).await.unwrap().expect(200).unwrap();
        let refused = bob.get("/v1/whoami").await.unwrap().expect_problem(401).unwrap();
        assert!(refused.contains("revoked"), "{refused}");
        tokio::time::timeout(SOON, user).await.expect("the token still works").unwrap();
        ann.send(Method::DELETE, "/v1/tokens/bob", None).await.unwrap().expect_problem(404).unwrap();
    }

    // Nobody makes a token that outlives their own.
    for body in [json!({ "name": "eve", "role": "viewer" }), json!({ "name": "eve", "role": "viewer", "ttl_seconds": 7200 })] {
        let refused = ann.send(Method::POST, "/v1/tokens", Some(body.to_string())).await.unwrap();
        assert!(refused.expect_problem(403).unwrap().contains("longer than yours"), "{}", refused.text);
    }
    token(&ann, json!({ "name": "eve", "role": "viewer", "ttl_seconds": 60 })).await.unwrap();

    let control = toygres.control().await.unwrap();
    sqlx::query("UPDATE toygres.tokens SET expires_at = now() - interval '1 second' WHERE name = 'ann'")
        .execute(&control)
        .await
        .unwrap();
    eventually("the token to be refused", SOON, async || {
        let answer = ann.get("/v1/whoami").await?;
        Ok((answer.status == 401).then_some(()).filter(|()| answer.text.contains("expired at")))
    })
    .await
    .unwrap();
    let events: Vec<(String, String, String)> =
        sqlx::query_as("SELECT kind, actor, message FROM toygres.events WHERE kind LIKE 'token%' ORDER BY id LIMIT 3")
            .fetch_all(&control)
            .await
            .unwrap();
    assert_eq!((events[0].0.as_str(), events[0].1.as_str()), ("token_created", "root"));
    assert_eq!(events[2], ("token_revoked".into(), "ann".into(), "bob was viewer".into()));
    control.close().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let (toygres, root) = server().await.unwrap();
    let control = toygres.control().await.unwrap();
    control::hold_up(&control, "demo", "deploy-postgres", Moment::Begin).await.unwrap();
    let operation = root.begin_create("demo").await.unwrap();
    control::wait_held_up(&control, 1).await.unwrap();
    let path = format!("/v1/operations/{operation}");
    let (eve, _) = token(&root, json!({ "name": "eve", "role": "viewer" })).await.unwrap();
    let (bob, _) = token(&root, json!({ "name": "bob", "role": "viewer", "ttl_seconds": 3600 })).await.unwrap();
    let held = {
        let (eve, path) = (eve.clone(), format!("{path}?wait=60s&after_revision=1000000"));
        tokio::spawn(async move { eve.get(&path).await })
    };
    let mut streams = Vec::new();
    for person in [&eve, &bob, &root] {
        let mut stream = person.stream(&path, None).await.unwrap();
        stream.next().await.expect("the stream is empty").unwrap();
        streams.push(stream);
    }
    // Comments that keep it open are no events: the next thing is the end.
    let ended = async |stream: &mut SseStream<_>| tokio::time::timeout(SOON, stream.next()).await.map(|next| next.is_none());
    let began = Instant::now();
    root.send(Method::DELETE, "/v1/tokens/eve", None).await.unwrap().expect(200).unwrap();
    assert_eq!(ended(&mut streams[0]).await, Ok(true), "a revoked token's stream goes on");
    println!("the stream ended {:?} after the token was revoked", began.elapsed());
    let told = tokio::time::timeout(SOON / 2, held).await.expect("a request of a revoked token is held on");
    told.unwrap().unwrap().expect_problem(401).unwrap();
    sqlx::query("UPDATE toygres.tokens SET expires_at = now() + interval '1 second' WHERE name = 'bob'")
        .execute(&control)
        .await
        .unwrap();
    assert_eq!(ended(&mut streams[1]).await, Ok(true), "an expired token's stream goes on");
    // Another's isn't touched.
    control::let_go(&control).await.unwrap();
    let news = tokio::time::timeout(SOON, streams[2].next()).await.unwrap();
    assert!(news.is_some(), "the stream of a good token ended");
    root.wait_success(&operation).await.unwrap();
    control.close().await;
}

#[tokio::test]
async fn a_secret_is_shown_once_and_not_to_a_request_that_is_sent_again() {
    let (toygres, root) = server().await.unwrap();
    let body = json!({ "name": "ann", "role": "admin" }).to_string();
    let key = [("idempotency-key", "one")];
    let first = root.send_with(&key, Method::POST, "/v1/tokens", Some(body.clone())).await.unwrap().expect(201).unwrap();
    let secret = first["secret"].as_str().unwrap();
    let again = root.send_with(&key, Method::POST, "/v1/tokens", Some(body.clone())).await.unwrap();
    assert!(again.expect_problem(409).unwrap().contains("ann"), "carried out twice");
    assert!(!again.text.contains(secret), "{}", again.text);
    assert_eq!(root.items("/v1/tokens").await.unwrap().len(), 1);

    // A key is its sender's: with another token it is another request's.
    let ann = root.with_token(Some(secret));
    let demo = Some(json!({ "name": "demo" }).to_string());
    let first = root.send_with(&key, Method::POST, "/v1/instances", demo.clone()).await.unwrap();
    root.wait_success(first.expect(202).unwrap()["id"].as_str().unwrap()).await.unwrap();
    let others = ann.send_with(&key, Method::POST, "/v1/instances", demo).await.unwrap();
    assert!(others.headers.get("idempotency-replayed").is_none(), "{others:?}");
    assert_eq!(others.expect(200).unwrap()["id"], first.expect(202).unwrap()["id"]);

    for path in ["/v1/tokens", "/v1/tokens/ann"] {
        let text = root.get(path).await.unwrap().text;
        assert!(text.contains("ann") && !text.contains(secret) && !text.contains("sha256"), "{text}");
    }
    drop(toygres);
}

#[tokio::test]
async fn bad_tokens_and_quotas_are_refused_before_anything_is_written() {
    let (toygres, root) = server().await.unwrap();
    for (body, field) in [
        (json!({ "name": "Ann", "role": "viewer" }), "name"),
        (json!({ "name": "root", "role": "viewer" }), "name"),
        (json!({ "name": "toygres", "role": "viewer" }), "name"),
        (json!({ "name": "x'; DROP TABLE tokens; --", "role": "viewer" }), "name"),
        (json!({ "name": "../ann", "role": "viewer" }), "name"),
        (json!({ "name": "ann", "role": "owner" }), "role"),
        (json!({ "name": "ann" }), "role"),
        (json!({ "name": "ann", "role": "viewer", "namespaces": [] }), "namespaces"),
        (json!({ "name": "ann", "role": "viewer", "namespaces": ["Team"] }), "namespaces"),
        (json!({ "name": "ann", "role": "viewer", "namespaces": vec!["a"; 101] }), "namespaces"),
        (json!({ "name": "ann", "role": "viewer", "ttl_seconds": 0 }), "ttl_seconds"),
        (json!({ "name": "ann", "role": "viewer", "ttl_seconds": i64::MAX }), "ttl_seconds"),
        (json!({ "name": "ann", "role": "viewer", "secret": "mine" }), "secret"),
    ] {
        let answer = root.send(Method::POST, "/v1/tokens", Some(body.to_string())).await.unwrap();
        answer.expect_problem(422).unwrap();
        assert_eq!(answer.json().unwrap()["field"], field, "{body}");
    }
    for (body, field) in [
        (json!({ "max_instances": -1 }), "max_instances"),
        (json!({ "max_instances": 1_u64 << 40 }), "max_instances"),
        (json!({ "max_storage_gb": -5 }), "max_storage_gb"),
        (json!({ "max_storage_gb": "5" }), "max_storage_gb"),
        (json!({ "max_cpu": 5 }), "max_cpu"),
    ] {
        let answer = put(&root, "/v1/namespaces/team", &body).await.unwrap();
        answer.expect_problem(422).unwrap();
        assert_eq!(answer.json().unwrap()["field"], field, "{body}");
    }
    for (method, path) in [
        (Method::GET, "/v1/tokens/..%2F..%2Ftoken"),
        (Method::GET, "/v1/tokens/%00"),
        (Method::DELETE, "/v1/tokens/a'%20OR%20'1'='1"),
        (Method::GET, "/v1/namespaces/..%2F.."),
        (Method::PUT, "/v1/namespaces/Team"),
        (Method::GET, "/v1/tokens?cursor=..%2F"),
        (Method::GET, "/v1/tokens?limit=0"),
        (Method::GET, "/v1/namespaces?cursor=%27"),
        (Method::GET, "/v1/namespaces?order=name"),
    ] {
        let body = (method == Method::PUT).then(|| "{}".to_owned());
        root.send(method, path, body).await.unwrap().expect_problem(422).map_err(|error| error.context(path)).unwrap();
    }
    root.get("/v1/namespaces/team").await.unwrap().expect_problem(404).unwrap();
    let control = toygres.control().await.unwrap();
    let (rows,): (i64,) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM toygres.tokens) + (SELECT count(*) FROM toygres.namespaces)
            + (SELECT count(*) FROM toygres.events)",
    )
    .fetch_one(&control)
    .await
    .unwrap();
    control.close().await;
    assert_eq!(rows, 0, "something of it was written");
}

#[tokio::test]
async fn a_quota_holds_for_thirty_creates_at_once_and_says_what_it_is() {
    let (toygres, root) = server().await.unwrap();
    let set = put(&root, "/v1/namespaces/team", &json!({ "max_instances": 2, "max_storage_gb": 100 })).await.unwrap();
    let etag = set.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(set.expect(200).unwrap()["max_instances"], 2);
    let creates = (0..30).map(|number| {
        let root = root.clone();
        async move {
            let body = json!({ "name": format!("i{number}") }).to_string();
            root.send(Method::POST, "/v1/instances?namespace=team", Some(body)).await
        }
    });
    let (mut taken, mut refused) = (Vec::new(), 0);
    for answer in futures::future::join_all(creates).await {
        let answer = answer.unwrap();
        if answer.status == 202 {
            taken.push(answer.json().unwrap()["id"].as_str().unwrap().to_owned());
        } else {
            let detail = answer.expect_problem(409).unwrap();
            assert!(
                detail.contains("team") && detail.contains("2 instances") && detail.contains("nothing was changed"),
                "{detail}"
            );
            assert!(answer.json().unwrap()["type"].as_str().unwrap().ends_with(":quota_exceeded"));
            refused += 1;
        }
    }
    assert_eq!((taken.len(), refused), (2, 28));
    for id in &taken {
        root.wait_success(id).await.unwrap();
    }
    let used = root.get("/v1/namespaces/team").await.unwrap().expect(200).unwrap();
    assert_eq!((&used["instances"], &used["storage_gb"]), (&json!(2), &json!(20)));
    // No secret is kept for those that were refused.
    assert_eq!(std::fs::read_dir(toygres.state_dir().join("secrets/team")).unwrap().count(), 2);

    let lower = json!({ "max_instances": 1 });
    let path = "/v1/namespaces/team";
    let stale = root.send_with(&[("if-match", "\"99\"")], Method::PUT, path, Some(lower.to_string())).await.unwrap();
    stale.expect_problem(412).unwrap();
    let lowered = root.send_with(&[("if-match", &etag)], Method::PUT, path, Some(lower.to_string())).await.unwrap();
    assert_eq!(lowered.expect(200).unwrap()["max_storage_gb"], Value::Null);
    assert_eq!(root.items("/v1/instances?namespace=team").await.unwrap().len(), 2, "what was there stays");
}

#[tokio::test]
async fn a_second_server_refuses_a_revoked_token_too() {
    let (toygres, root) = server().await.unwrap();
    let socket = percent_encoding::utf8_percent_encode(
        toygres.state_dir().join("run").to_str().unwrap(),
        percent_encoding::NON_ALPHANUMERIC,
    )
    .to_string();
    let password = std::fs::read_to_string(toygres.state_dir().join("control/password")).unwrap();
    let database = format!("postgres://toygres:{password}@localhost:5432/postgres?host={socket}&sslmode=disable");
    let second = Toygres::new().unwrap().with("TOYGRES_DATABASE_URL", database).with("TOYGRES_PLATFORMS", "kubernetes");
    let second_root = second.serve().await.unwrap();
    for _ in 0..5 {
        let (_, secret) = token(&root, json!({ "name": "ann", "role": "viewer" })).await.unwrap();
        let ann = second_root.with_token(Some(&secret));
        ann.get("/v1/whoami").await.unwrap().expect(200).unwrap();
        root.send(Method::DELETE, "/v1/tokens/ann", None).await.unwrap().expect(200).unwrap();
        ann.get("/v1/whoami").await.unwrap().expect_problem(401).unwrap();
    }
    second.ok(&["server", "stop"]).await.unwrap();
}

#[tokio::test]
async fn labels_and_protection_are_asked_for_shown_and_kept() {
    let (toygres, root) = server().await.unwrap();
    toygres.ok(&["create", "demo", "--label", "team=a", "--label", "env=prod", "--delete-protection"]).await.unwrap();
    toygres.ok(&["create", "other", "--label", "team=b"]).await.unwrap();
    let shown = toygres.ok(&["get", "demo"]).await.unwrap().stdout;
    for part in ["env=prod, team=a", "from deletion", "Generation"] {
        assert!(shown.contains(part), "{part} is missing: {shown}");
    }
    for (arguments, expected) in [
        (&["-l", "team=a"][..], &["demo"][..]),
        (&["--selector", "team"], &["demo", "other"]),
        (&["-l", "team=b,env"], &[]),
        (&["--state", "running"], &["demo", "other"]),
        (&["--state", "failed"], &[]),
        (&["--platform", "kubernetes"], &[]),
        (&["--platform", "local", "-l", "env=prod"], &["demo"]),
    ] {
        let arguments: Vec<_> = ["list"].iter().chain(arguments).copied().collect();
        let listed = toygres.json(&arguments).await.unwrap();
        let names: Vec<_> = listed.as_array().unwrap().iter().map(|instance| instance["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{arguments:?}");
    }
    let refused = toygres.fails(1, &["delete", "demo", "--yes"]).await.unwrap();
    assert!(refused.stderr.contains("protected") && refused.stderr.contains("delete_protection: false"), "{refused}");
    let problem = root.send(Method::DELETE, "/v1/instances/demo", None).await.unwrap();
    problem.expect_problem(409).unwrap();
    assert!(problem.json().unwrap()["type"].as_str().unwrap().ends_with(":delete_protected"));
    assert_eq!(root.instance("demo").await.unwrap()["state"], "running");
    for bad in ["team", "=a", "a b=c", "a=b c"] {
        toygres.fails(2, &["create", "third", "--label", bad]).await.unwrap();
    }
    toygres.fails(2, &["list", "-l", "a b"]).await.unwrap();
    toygres.fails(2, &["list", "--state", "resting"]).await.unwrap();

    // One that failed is no trap: what it is told to do clears it away.
    let control = toygres.control().await.unwrap();
    for state in ["deleting", "failed"] {
        let set = "UPDATE toygres.instances SET state = $1 WHERE name = 'demo'";
        sqlx::query(set).bind(state).execute(&control).await.unwrap();
    }
    toygres.fails(1, &["delete", "demo", "--yes"]).await.unwrap();
    let off = toygres.run_with_input(&["apply", "-f", "-"], b"name: demo\ndelete_protection: false\n").await.unwrap();
    assert_eq!(off.stdout, "default/demo changed (delete_protection)\n", "{off}");
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    control.close().await;
}

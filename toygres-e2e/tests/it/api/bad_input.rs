//! What people and programs get wrong: each is refused with words that help, and nothing of it is
//! left anywhere.

use reqwest::Method;
use serde_json::{Value, json};
use toygres_e2e::{Api, Toygres};

const ODD_PASSWORD: &str = "p@/:?#%'\"\\ $";

/// Everything in which a refused request could have left something.
async fn traces(toygres: &Toygres) -> anyhow::Result<String> {
    let control = toygres.control().await?;
    let (rows, operations, ports): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM toygres.instances), (SELECT count(*) FROM toygres.operations), (SELECT count(*) FROM toygres.ports)",
    )
    .fetch_one(&control)
    .await?;
    control.close().await;
    let list = |folder: &str| -> Vec<_> {
        let namespaces = std::fs::read_dir(toygres.state_dir().join(folder)).into_iter().flatten().flatten();
        namespaces
            .flat_map(|namespace| std::fs::read_dir(namespace.path()).into_iter().flatten().flatten())
            .map(|entry| entry.path())
            .collect()
    };
    Ok(format!("{rows} rows, {operations} operations, {ports} ports, {:?}, {:?}", list("instances"), list("secrets")))
}

const NOTHING: &str = "0 rows, 0 operations, 0 ports, [], []";

#[tokio::test]
async fn wrong_arguments_are_refused_before_anything_starts() {
    let toygres = Toygres::new().unwrap();
    let long = "a".repeat(64);
    for (name, hint) in [
        ("Demo", "did you mean \"demo\""),
        (&long, "50"),
        ("..", "'.'"),
        ("a/../b", "'/'"),
        ("dëmo", "'ë'"),
        ("🐘", "lowercase"),
        ("", "empty"),
        ("null", "reserved"),
        ("1st", "letter"),
        ("demo-", "'-'"),
        ("a b", "' '"),
    ] {
        for command in ["create", "get", "connect", "delete", "events", "logs", "psql"] {
            let run = toygres.fails(2, &[command, name]).await.unwrap();
            assert!(run.stderr.contains(hint) || (name.is_empty() && run.stderr.contains("value")), "no hint {hint:?}: {run}");
        }
    }
    for (flag, value, hint) in [
        ("--version", "13", "14 to 18"),
        ("--version", "99", "14 to 18"),
        ("--version", "latest", "17"),
        ("--storage", "0", "65536"),
        ("--storage", "-1", "65536"),
        ("--storage", "1000000000", "65536"),
        ("--storage", "ten", "whole number"),
        ("--namespace", "Team", "team"),
        ("--output", "xml", "json"),
        ("--port-range", "9-1", "range"),
    ] {
        let run = toygres.fails(2, &["create", "demo", flag, value]).await.unwrap();
        assert!(run.stderr.contains(hint), "no hint {hint:?}: {run}");
    }
    let ten_kilobytes = "hunter2x".repeat(1280);
    for (password, hint) in [
        ("", "empty"),
        (ten_kilobytes.as_str(), "1024"),
        ("hunter2\nhunter2", "line break"),
        ("hunter2\u{a0}", "no-break space"),
        ("hunter2ü", "ASCII"),
        ("secret://hunter2", "secret://"),
    ] {
        let run = toygres.run_with_input(&["create", "demo", "--password-stdin"], password.as_bytes()).await.unwrap();
        let run = run.expect_code(2).unwrap().expect_humane().unwrap();
        assert!(run.stderr.contains(hint) && !run.text().contains("hunter2"), "{run}");
    }
    assert!(!toygres.state_dir().exists(), "a server was started for wrong arguments");
}

#[tokio::test]
async fn the_server_refuses_the_same_and_keeps_nothing_of_it() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    let api = toygres.serve().await.unwrap();
    let long = "a".repeat(64);
    for name in ["Demo", &long, "..", "dëmo", "🐘", "", "null", "a/b", "a\u{0}b"] {
        let answer = api.post_instance(&json!({ "name": name })).await.unwrap();
        answer.expect_problem(422).unwrap();
        assert_eq!(answer.json().unwrap()["field"], "name", "{name:?}");
    }
    for version in ["13", "99", "latest", "", "17.", "15.999999"] {
        let answer = api.post_instance(&json!({ "name": "demo", "postgres_version": version })).await.unwrap();
        answer.expect_problem(422).unwrap();
        assert_eq!(answer.json().unwrap()["field"], "postgres_version", "{version:?}");
    }
    for size in [json!(0), json!(-1), json!(1_000_000_000), json!(i64::MIN)] {
        let answer = api.post_instance(&json!({ "name": "demo", "storage_size_gb": size })).await.unwrap();
        answer.expect_problem(422).unwrap();
        assert_eq!(answer.json().unwrap()["field"], "storage_size_gb", "{size}");
    }
    for size in [json!("10"), json!(1.5), json!(1e300), Value::Bool(true)] {
        let detail =
            api.post_instance(&json!({ "name": "demo", "storage_size_gb": size })).await.unwrap().expect_problem(422).unwrap();
        assert!(detail.contains("storage_size_gb"), "{detail}");
    }
    for password in
        ["".to_owned(), "hunter2x".repeat(1280), "hunter2\u{0}".into(), "hunter2\u{ad}".into(), "secret://default/hunter2".into()]
    {
        let answer = api.post_instance(&json!({ "name": "demo", "password": password })).await.unwrap();
        answer.expect_problem(422).unwrap();
        assert_eq!(answer.json().unwrap()["field"], "password");
        assert!(!answer.text.contains("hunter2"), "{}", answer.text);
    }
    let namespace =
        api.send(Method::POST, "/v1/instances?namespace=Team", Some(json!({ "name": "demo" }).to_string())).await.unwrap();
    assert!(namespace.expect_problem(422).unwrap().contains("team"));
    assert_eq!(traces(&toygres).await.unwrap(), NOTHING);
}

#[tokio::test]
async fn an_unknown_full_version_is_refused_with_a_list_of_the_known() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    let api = toygres.serve().await.unwrap();
    let detail =
        api.post_instance(&json!({ "name": "demo", "postgres_version": "15.999" })).await.unwrap().expect_problem(422).unwrap();
    let known = toygres.json(&["versions"]).await.unwrap();
    let at_hand =
        known.as_array().unwrap().iter().find(|version| version["at_hand"] == true).unwrap()["postgres_version"].clone();
    assert!(detail.contains("15.999") && detail.contains(at_hand.as_str().unwrap()), "{detail}");
    let run = toygres.fails(2, &["create", "demo", "--version", "15.999"]).await.unwrap();
    assert!(run.stderr.contains(at_hand.as_str().unwrap()), "{run}");
    assert_eq!(traces(&toygres).await.unwrap(), NOTHING);
}

#[tokio::test]
async fn a_malformed_request_is_answered_with_what_is_wrong_in_it() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    let api = toygres.serve().await.unwrap();
    let post = async |body: &str| api.send(Method::POST, "/v1/instances", Some(body.to_owned())).await;

    let unknown = post(r#"{"name":"demo","pasword":"hunter2"}"#).await.unwrap();
    assert!(unknown.expect_problem(422).unwrap().contains("pasword") && !unknown.text.contains("hunter2"), "{}", unknown.text);
    for body in [
        "",
        "{",
        "[]",
        "null",
        "\"demo\"",
        r#"{"name":"demo"} x"#,
        r#"{"name":"demo","password":"hunter2""#,
        r#"{"name":7}"#,
        "\u{fffd}",
    ] {
        let answer = post(body).await.unwrap();
        answer.expect_problem(422).unwrap();
        assert!(!answer.text.contains("hunter2"), "{}", answer.text);
    }
    assert!(post(r#"{"password":"hunter2"}"#).await.unwrap().expect_problem(422).unwrap().contains("name"));
    let wrong_type = post(r#"{"name":"demo","password":["hunter2"]}"#).await.unwrap();
    assert!(wrong_type.expect_problem(422).unwrap().contains("password") && !wrong_type.text.contains("hunter2"));
    let huge = |bytes: usize| format!(r#"{{"name":"demo","password":"{}"}}"#, "x".repeat(bytes));
    post(&huge(100_000)).await.unwrap().expect_problem(413).unwrap();
    // Of one that doesn't fit into the socket's buffers the answer may get lost, nothing else.
    if let Ok(answer) = post(&huge(16 << 20)).await {
        answer.expect_problem(413).unwrap();
    }
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    post(&deep).await.unwrap().expect_problem(422).unwrap();

    for (method, path) in [
        (Method::PUT, "/v1/instances"),
        (Method::PATCH, "/v1/instances/demo"),
        (Method::POST, "/v1/operations"),
        (Method::DELETE, "/healthz"),
        (Method::GET, "/v1/instances/demo/restart"),
    ] {
        api.send(method, path, None).await.unwrap().expect_problem(405).unwrap();
    }
    for path in ["/", "/v2/instances", "/v1", "/v1/instances/demo/secrets/all", "/v1/instances/", "/../token"] {
        api.get(path).await.unwrap().expect_problem(404).unwrap();
    }
    for path in [
        "/v1/instances?limit=0",
        "/v1/instances?limit=-1",
        "/v1/instances?limit=1001",
        "/v1/instances?limit=many",
        "/v1/instances?cursor=nonsense",
        "/v1/instances?cursor=../..",
        "/v1/instances?cursor=%00/%00",
        "/v1/instances?page=2",
        "/v1/operations?cursor=1",
        "/v1/operations?limit=99999999999999999999",
        "/v1/operations/not-an-id",
        "/v1/operations/%00",
        "/v1/operations/00000000-0000-0000-0000-000000000000?wait=-1",
        "/v1/instances/demo/events?cursor=x",
        "/v1/instances/demo/logs?tail_lines=-1",
        "/v1/instances/demo/logs?tail_lines=100000000",
        "/v1/instances/demo/logs?since=yesterday",
        "/v1/instances/demo/logs?since=2026-01-31T12:00:00",
        "/v1/instances/demo/logs?follow=maybe",
        "/v1/instances/..%2F..%2Ftoken",
    ] {
        api.get(path).await.unwrap().expect_problem(422).map_err(|error| error.context(path)).unwrap();
    }
    assert_eq!(traces(&toygres).await.unwrap(), NOTHING);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    let api = toygres.serve().await.unwrap();
    for path in
        ["/v1/instances/nobody", "/v1/instances/nobody/connection", "/v1/instances/nobody/events", "/v1/instances/nobody/logs"]
    {
        let detail = api.get(path).await.unwrap().expect_problem(404).unwrap();
        assert!(detail.contains("nobody") && detail.contains("toygres list"), "{detail}");
    }
    api.send(Method::DELETE, "/v1/instances/nobody", None).await.unwrap().expect_problem(404).unwrap();
    api.get("/v1/operations/00000000-0000-7000-8000-000000000000").await.unwrap().expect_problem(404).unwrap();
    for arguments in [
        &["get", "nobody"][..],
        &["connect", "nobody"],
        &["psql", "nobody"],
        &["delete", "nobody", "--yes"],
        &["events", "nobody"],
        &["logs", "nobody"],
    ] {
        let run = toygres.fails(1, arguments).await.unwrap();
        assert!(run.stderr.contains("nobody") && run.stdout.is_empty(), "{run}");
    }
    let watch = toygres.fails(1, &["operations", "watch", "00000000-0000-7000-8000-000000000000"]).await.unwrap();
    assert!(watch.stderr.contains("there is no operation"), "{watch}");
}

#[tokio::test]
async fn nobody_gets_in_without_the_token() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    let api = toygres.serve().await.unwrap();
    let token = std::fs::read_to_string(toygres.state_dir().join("token")).unwrap();
    let strangers: [Api; 4] = [None, Some("wrong"), Some(""), Some(&token.trim()[1..])].map(|token| api.with_token(token));
    for stranger in strangers {
        for (method, path) in [
            (Method::GET, "/v1/instances"),
            (Method::POST, "/v1/instances"),
            (Method::GET, "/v1/instances/demo/connection"),
            (Method::DELETE, "/v1/instances/demo"),
            (Method::GET, "/v1/operations"),
            (Method::GET, "/v1/versions"),
        ] {
            let body = (method == Method::POST).then(|| json!({ "name": "demo", "password": "hunter2" }).to_string());
            let answer = stranger.send(method, path, body).await.unwrap();
            let detail = answer.expect_problem(401).unwrap();
            assert!(
                detail.contains("token") && !answer.text.contains("hunter2") && !answer.text.contains(token.trim()),
                "{detail}"
            );
            assert_eq!(answer.headers.get("www-authenticate").map(|kind| kind.as_bytes()), Some(&b"Bearer"[..]));
        }
    }
    let run = toygres.command(&["list"]).env("TOYGRES_TOKEN", "wrong-token").output().await.unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.code() == Some(1) && said.contains("TOYGRES_TOKEN") && !said.contains("wrong-token"), "{said}");
    for file in ["token", "server.log", "ca.key"] {
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(toygres.state_dir().join(file)).unwrap().permissions());
        assert_eq!(mode & 0o077, 0, "others can read {file}");
    }
    assert_eq!(traces(&toygres).await.unwrap(), NOTHING);
}

#[tokio::test]
async fn any_character_that_a_password_may_have_logs_in() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    let longest = "x".repeat(1024);
    let psql = std::process::Command::new("psql").arg("--version").output().is_ok();
    for (name, password) in [("odd", ODD_PASSWORD), ("longest", &longest), ("blanks", "  two words  ")] {
        let run =
            toygres.run_with_input(&["create", name, "--password-stdin"], format!("{password}\n").as_bytes()).await.unwrap();
        let run = run.expect_code(0).unwrap();
        assert!(!run.text().contains(password), "{run}");
        let uri = toygres.ok(&["connect", name]).await.unwrap().stdout;
        toygres_e2e::api::log_in(uri.trim_end()).await.unwrap();
        let connection = toygres.ok(&["connect", name, "--format", "json"]).await.unwrap().json().unwrap();
        assert_eq!(connection["password"], password);
        if psql {
            let run = toygres.ok(&["psql", name, "-XAtc", "select 1"]).await.unwrap();
            assert_eq!(run.stdout, "1\n", "{run}");
            let by_uri = std::process::Command::new("psql").args([uri.trim_end(), "-XAtc", "select 1"]).output().unwrap();
            assert_eq!(by_uri.stdout, b"1\n", "{}", String::from_utf8_lossy(&by_uri.stderr));
        }
        // The same again is the same instance; a password that differs by one character isn't.
        let again = toygres.run_with_input(&["create", name, "--password-stdin"], password.as_bytes()).await.unwrap();
        again.expect_code(0).unwrap();
    }
}

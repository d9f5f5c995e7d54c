//! What a stranger does first: create, look, connect, delete, with nothing set up.

use serde_json::Value;
use toygres_e2e::{Api, Toygres, process, required_or_skip};

fn psql_is_there() -> bool {
    std::process::Command::new("psql").arg("--version").output().is_ok()
}

#[tokio::test]
async fn from_an_empty_directory_to_an_instance_that_answers_and_back() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "1");

    let run = toygres.ok(&["create", "demo"]).await.unwrap().expect_humane().unwrap();
    assert!(run.stdout.contains("demo") && run.stdout.contains("is ready"), "{run}");
    for next_step in ["toygres psql demo", "toygres connect demo", "server"] {
        assert!(run.stderr.contains(next_step), "no word of {next_step:?}: {run}");
    }
    assert!(!run.text().contains('\u{1b}'), "colours in a pipe: {run}");
    toygres.only_postmaster("demo").await.unwrap();

    let list = toygres.ok(&["list"]).await.unwrap();
    assert!(list.stdout.contains("demo") && list.stdout.contains("running"), "{list}");
    let listed = toygres.json(&["list"]).await.unwrap();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    let instance = toygres.json(&["get", "demo"]).await.unwrap();
    assert_eq!((instance["name"].as_str(), instance["state"].as_str()), (Some("demo"), Some("running")), "{instance}");
    assert_eq!(instance["status"]["health_status"], "healthy", "{instance}");
    assert!(toygres.ok(&["get", "demo"]).await.unwrap().stdout.contains("not enforced"), "the storage is no limit here");
    let yaml = toygres.ok(&["get", "demo", "-o", "yaml"]).await.unwrap();
    assert!(yaml.stdout.contains("name: demo\n") && yaml.stdout.contains("storage_size_gb: 10\n"), "{yaml}");

    let events = toygres.json(&["events", "demo"]).await.unwrap();
    let kinds: Vec<_> = events.as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["create_requested", "instance_running"], "{events}");
    assert!(events.as_array().unwrap().iter().all(|event| event["cause"].as_str().is_some_and(|cause| !cause.is_empty())));
    let piped = toygres.ok(&["events", "demo"]).await.unwrap().stdout;
    assert!(piped.contains("create_requested") && piped.lines().count() == 2, "{piped}");
    assert!(piped.lines().all(|line| !line.ends_with(' ')), "a table's padding: {piped}");

    let operations = toygres.json(&["operations"]).await.unwrap();
    let create = &operations[0];
    assert_eq!((create["kind"].as_str(), create["state"].as_str()), (Some("create"), Some("succeeded")), "{operations}");
    let steps: Vec<_> = create["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(steps, ["deploy-postgres", "wait-for-ready", "get-connection-strings", "test-connection", "update-metadata"]);
    let watched = toygres.ok(&["operations", "watch", create["id"].as_str().unwrap()]).await.unwrap();
    assert!(watched.text().contains("deploy-postgres"), "{watched}");

    let logs = toygres.ok(&["logs", "demo", "--tail", "5"]).await.unwrap();
    assert!(logs.stdout.lines().count() <= 5 && logs.stdout.contains("LOG:"), "{logs}");
    let versions = toygres.ok(&["versions"]).await.unwrap();
    assert!(versions.stdout.contains(instance["spec"]["postgres_version"].as_str().unwrap()), "{versions}");

    let late = toygres.ok(&["list", "--pool-size", "1"]).await.unwrap();
    assert!(late.stderr.contains("--pool-size has no effect"), "{late}");

    // Without a terminal and without --yes nothing is deleted.
    let refused = toygres.fails(2, &["delete", "demo"]).await.unwrap();
    assert!(refused.stderr.contains("--yes"), "{refused}");
    toygres.only_postmaster("demo").await.unwrap();
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap().expect_humane().unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();
    assert_eq!(toygres.json(&["list"]).await.unwrap(), Value::Array(Vec::new()));
    assert!(toygres.json(&["events", "demo"]).await.unwrap().as_array().unwrap().len() >= 4, "the past is kept");
    toygres.fails(1, &["get", "demo"]).await.unwrap();

    // The name is free again.
    let again = toygres.json(&["create", "demo"]).await.unwrap();
    assert_ne!(again["id"], instance["id"]);
    let events = toygres.json(&["events", "demo"]).await.unwrap();
    assert_eq!(events.as_array().unwrap().len(), 2, "the new one's only: {events}");
}

#[tokio::test]
async fn every_form_of_connect_logs_in() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    let uri = toygres.ok(&["connect", "demo"]).await.unwrap().stdout.trim_end().to_owned();
    assert_eq!(uri.lines().count(), 1);
    toygres_e2e::api::log_in(&uri).await.unwrap();
    let plain = uri.replace("sslmode=verify-full", "sslmode=disable");
    let refused = sqlx::Connection::connect(&plain).await.map(|_: sqlx::PgConnection| ()).unwrap_err();
    assert!(refused.to_string().contains("no encryption"), "plaintext was not refused: {refused}");
    let wrong = uri.replacen("app:", "app:x", 1);
    let refused = toygres_e2e::api::log_in(&wrong).await.unwrap_err();
    assert!(format!("{refused:#}").contains("password authentication failed"), "{refused:#}");

    let connection: Value = toygres.ok(&["connect", "demo", "--format", "json"]).await.unwrap().json().unwrap();
    assert_eq!(connection["uri"].as_str(), Some(uri.as_str()));
    let jdbc = toygres.ok(&["connect", "demo", "--format", "jdbc"]).await.unwrap().stdout;
    let address = format!("jdbc:postgresql://127.0.0.1:{}/app?", connection["port"]);
    assert!(jdbc.starts_with(&address) && jdbc.contains("sslmode=verify-full"), "{jdbc}");

    if !psql_is_there() {
        return required_or_skip("there is no psql on this machine").unwrap();
    }
    let version = toygres.ok(&["psql", "demo", "-c", "select version()"]).await.unwrap();
    assert!(version.stdout.contains("PostgreSQL"), "{version}");
    let status = toygres.run(&["psql", "demo", "-v", "ON_ERROR_STOP=1", "-c", "select 1/0"]).await.unwrap();
    assert_eq!(status.code, Some(1), "psql's own exit status: {status}");
    let script = "create table t as select 7 as n; select n from t;\n";
    let piped = toygres.run_with_input(&["psql", "demo", "-XAtq"], script.as_bytes()).await.unwrap();
    assert_eq!(piped.stdout, "7\n", "{piped}");
    let dump = toygres.run(&["dump", "demo", "--table=t"]).await.unwrap();
    match dump.code {
        Some(0) => assert!(dump.stdout.contains("CREATE TABLE public.t"), "{dump}"),
        // The newest server may have come without it.
        _ => assert!(dump.stderr.contains("there is no pg_dump of PostgreSQL"), "{dump}"),
    }
    for (format, script) in
        [("env", "eval \"$connection\"; psql -XAtc 'select n from t'"), ("psql", "eval \"$connection -XAtc 'select n from t'\"")]
    {
        let connection = toygres.ok(&["connect", "demo", "--format", format]).await.unwrap().stdout;
        let output =
            std::process::Command::new("sh").args(["-euc", script]).env("connection", connection.trim_end()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "7\n", "{format}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn a_create_can_be_repeated_and_another_one_under_its_name_is_a_conflict() {
    let toygres = Toygres::new().unwrap();
    let first = toygres.json(&["create", "demo", "--storage", "5"]).await.unwrap();
    let pid = toygres.only_postmaster("demo").await.unwrap();
    for again in [&["create", "demo"][..], &["create", "demo", "--storage", "5"]] {
        assert_eq!(toygres.json(again).await.unwrap()["id"], first["id"]);
    }
    assert!(toygres.ok(&["create", "demo"]).await.unwrap().text().contains("already"));
    for (flag, value) in [("--version", "16"), ("--storage", "6")] {
        let run = toygres.fails(1, &["create", "demo", flag, value]).await.unwrap();
        assert!(run.stderr.contains("there already") && run.stderr.contains("Nothing was changed"), "{run}");
    }
    let other = toygres.run_with_input(&["create", "demo", "--password-stdin"], b"another-password").await.unwrap();
    assert_eq!(other.code, Some(1), "{other}");
    assert_eq!(toygres.only_postmaster("demo").await.unwrap(), pid);
    toygres.api().unwrap().log_in("demo").await.unwrap();

    // The same name in another namespace is another instance.
    let elsewhere = toygres.json(&["create", "demo", "-n", "team"]).await.unwrap();
    assert_ne!(elsewhere["id"], first["id"]);
    assert_eq!(toygres.json(&["list"]).await.unwrap().as_array().unwrap().len(), 2);
    assert_eq!(toygres.json(&["list", "-n", "team"]).await.unwrap().as_array().unwrap().len(), 1);
    toygres.ok(&["delete", "demo", "--yes", "-n", "team"]).await.unwrap();
    assert_eq!(toygres.only_postmaster("demo").await.unwrap(), pid);
}

#[tokio::test]
async fn instances_outlive_the_server_and_are_found_again() {
    let toygres = Toygres::new().unwrap();
    assert_eq!(toygres.run(&["server", "status"]).await.unwrap().code, Some(1), "nothing runs yet");
    toygres.ok(&["create", "demo"]).await.unwrap();
    let (server, postmaster) = (toygres.server_pid().unwrap(), toygres.only_postmaster("demo").await.unwrap());
    let uri = toygres.api().unwrap().uri("demo").await.unwrap();
    let started = toygres.ok(&["server", "start"]).await.unwrap();
    assert!(started.stdout.contains("already"), "{started}");
    assert_eq!(toygres.server_pid().unwrap(), server, "a second start changes nothing");
    let status = toygres.json(&["server", "status"]).await.unwrap();
    assert_eq!((&status["running"], &status["ready"]), (&Value::Bool(true), &Value::from("ok")), "{status}");

    toygres.ok(&["server", "stop"]).await.unwrap();
    assert!(!process::is_alive(server), "stop returned before its end");
    assert_eq!(toygres.all_postmasters(), [postmaster], "the control database stops, the instance doesn't");
    toygres_e2e::api::log_in(&uri).await.unwrap();
    assert_eq!(toygres.run(&["server", "status"]).await.unwrap().code, Some(1));
    toygres.ok(&["server", "stop"]).await.unwrap();

    // The next command that needs the server starts one, which finds the instance.
    assert_eq!(toygres.json(&["get", "demo"]).await.unwrap()["state"], "running");
    assert_ne!(toygres.server_pid().unwrap(), server);
    assert_eq!(toygres.only_postmaster("demo").await.unwrap(), postmaster);
    toygres_e2e::api::log_in(&uri).await.unwrap();
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();
}

#[tokio::test]
async fn it_tells_about_itself_without_a_server() {
    let toygres = Toygres::new().unwrap();
    let doctor = toygres.run(&["doctor"]).await.unwrap().expect_humane().unwrap();
    assert!(matches!(doctor.code, Some(0 | 1)) && doctor.stdout.contains("postgresql"), "{doctor}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(toygres.ok(&["completions", shell]).await.unwrap().stdout.contains("toygres"));
    }
    for (arguments, code) in [(&["--help"][..], 0), (&["--version"], 0), (&["frobnicate"], 2), (&["create"], 2), (&[], 2)] {
        let run = toygres.run(arguments).await.unwrap();
        assert_eq!(run.code, Some(code), "{run}");
    }
    assert!(!toygres.state_dir().exists(), "help and doctor change nothing");
}

#[tokio::test]
async fn a_named_server_is_used_and_none_is_started() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap().create("demo").await.unwrap();
    let url = toygres.url().unwrap();
    let token = std::fs::read_to_string(toygres.state_dir().join("token")).unwrap();
    let client = Toygres::new().unwrap().with("TOYGRES_URL", &url).with("TOYGRES_TOKEN", token.trim());
    assert_eq!(client.json(&["get", "demo"]).await.unwrap()["name"], "demo");
    assert!(!client.state_dir().exists());
    let nobody = client.with("TOYGRES_URL", "http://127.0.0.1:9").fails(1, &["list"]).await.unwrap();
    assert!(nobody.stderr.contains("TOYGRES_URL"), "no hint where the address comes from: {nobody}");
    let stranger = Api::new(&url, None).unwrap();
    stranger.get("/healthz").await.unwrap().expect(200).unwrap();
    stranger.get("/readyz").await.unwrap().expect(200).unwrap();
}

//! A password is in its secret file and nowhere else: no table, file, log, argument, environment
//! or output has it, in no form.

use anyhow::Result;
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;
use toygres_e2e::search::Needles;
use toygres_e2e::{Toygres, required_or_skip};

const GIVEN: &str = "Zx9 distinctive:p@ss/w\"rd%u-7731";

/// Looks everywhere, and names what was looked at.
async fn search_everywhere(toygres: &Toygres, needles: &Needles, uris: &[String]) -> Result<()> {
    let control = toygres.control().await?;
    let tables = needles.absent_from_tables(&control).await?;
    anyhow::ensure!(tables > 60, "only {tables} tables were looked at");
    control.close().await;
    for uri in uris {
        let pool = PgPoolOptions::new().max_connections(1).connect(uri).await?;
        needles.absent_from_tables(&pool).await?;
        pool.close().await;
    }
    // What the servers still hold in memory goes to files now.
    for path in ["/v1/instances", "/v1/operations", "/v1/instances/given/events", "/v1/instances/generated/events"] {
        needles.absent_from(path, &toygres.api()?.get(path).await?.text)?;
    }
    needles.absent_from_files(toygres.folder())
}

#[tokio::test]
async fn a_password_is_nowhere_but_in_its_secret_file() {
    if !std::path::Path::new("/proc/self/environ").exists() {
        return required_or_skip("this system has no /proc").unwrap();
    }
    // With every detail in the log, the workflow engine's and the database driver's too.
    let toygres = Toygres::new().unwrap().with("TOYGRES_LOG", "trace");
    toygres.serve().await.unwrap();
    let given = Needles::of(GIVEN);
    let watch = given.watch_processes();
    let mut outputs = Vec::new();
    outputs.push(
        toygres.run_with_input(&["create", "given", "--password-stdin"], GIVEN.as_bytes()).await.unwrap().expect_code(0).unwrap(),
    );
    outputs.push(toygres.ok(&["create", "generated"]).await.unwrap());
    // Who sees everything, in both databases.
    let mut uris = Vec::new();
    for name in ["given", "generated"] {
        let uri = toygres.api().unwrap().superuser_uri(name).await.unwrap();
        uris.extend([uri.replace("/postgres?", "/app?"), uri]);
    }
    let superuser = uris[0].split_once("postgres:").and_then(|(_, rest)| rest.split_once('@')).unwrap().0;
    let superuser = Needles::of(superuser);
    let generated = std::fs::read_to_string(toygres.secret_file("generated")).unwrap();
    assert!(generated.len() >= 20, "a short password was generated");
    let generated = Needles::of(generated.trim_end());
    let watch_generated = generated.watch_processes();
    for arguments in [
        &["-o", "json", "get", "given"][..],
        &["-o", "json", "get", "generated"],
        &["-o", "json", "operations"],
        &["operations"],
        &["-o", "yaml", "list"],
        &["events", "given"],
        &["events", "generated"],
        &["logs", "given", "--tail", "10000"],
        &["logs", "generated", "--tail", "10000"],
        &["server", "status"],
        &["doctor"],
        &["psql", "given", "-c", "select pg_sleep(0.2)"],
        &["psql", "generated", "-c", "select nonsense"],
        &["psql", "given", "-c", "\\conninfo"],
    ] {
        outputs.push(toygres.run(arguments).await.unwrap());
    }
    // Requests that are refused with the right password in them.
    let again =
        toygres.run_with_input(&["create", "given", "--password-stdin", "--storage", "7"], GIVEN.as_bytes()).await.unwrap();
    outputs.push(again.expect_code(1).unwrap());
    let other = toygres.run_with_input(&["create", "generated", "--password-stdin"], GIVEN.as_bytes()).await.unwrap();
    outputs.push(other.expect_code(1).unwrap());
    assert!(watch.end().unwrap() > 0 && watch_generated.end().unwrap() > 0, "no process was looked at");
    for needles in [&given, &generated, &superuser] {
        for run in &outputs {
            needles.absent_from("an output", &run.to_string()).unwrap();
        }
        search_everywhere(&toygres, needles, &uris).await.unwrap();
    }
    // The search would have found it.
    given.absent_from_files(&toygres.state_dir().join("secrets/default")).unwrap_err();
    assert_eq!(std::fs::read_to_string(toygres.secret_file("given")).unwrap().trim_end(), GIVEN);

    for name in ["given", "generated"] {
        toygres.ok(&["delete", name, "--yes"]).await.unwrap();
        toygres.expect_nothing_of(name).await.unwrap();
    }
    search_everywhere(&toygres, &given, &[]).await.unwrap();
}

#[tokio::test]
async fn a_token_is_shown_once_and_only_its_holder_keeps_it() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_LOG", "trace");
    let api = toygres.serve().await.unwrap();
    let minted = toygres.ok(&["token", "create", "ann", "--role", "admin"]).await.unwrap();
    let by_command = minted.stdout.trim_end().to_owned();
    // Also where the answer is kept for the request's repeats.
    let body = serde_json::json!({ "name": "bob", "role": "editor" }).to_string();
    let key = [("idempotency-key", "one")];
    let answer = api.send_with(&key, reqwest::Method::POST, "/v1/tokens", Some(body.clone())).await.unwrap().expect(201).unwrap();
    let by_api = answer["secret"].as_str().unwrap().to_owned();
    let mut texts = vec![
        minted.stderr,
        api.send_with(&key, reqwest::Method::POST, "/v1/tokens", Some(body)).await.unwrap().text,
        api.get("/v1/tokens").await.unwrap().text,
        toygres.ok(&["-o", "json", "token", "list"]).await.unwrap().text(),
    ];
    // In use: right, with a character too many, and twice.
    for token in [&by_command, &by_api] {
        for sent in [token.clone(), format!("{token}x"), format!("{token} {token}")] {
            texts.push(api.with_token(Some(&sent)).get("/v1/whoami").await.unwrap().text);
        }
    }
    let secrets = toygres.folder().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    std::fs::write(secrets.join("config.toml"), "").unwrap();
    let needles: Vec<Needles> =
        [&by_command, &by_api].map(|token| Needles::of(token.rsplit('_').next().unwrap())).into_iter().collect();
    let watch = needles[0].watch_processes();
    let (url, config) = (toygres.url().unwrap(), secrets.join("config.toml"));
    let words = ["login", &url, "--token-stdin", "--config", config.to_str().unwrap()];
    texts.push(toygres.run_with_input(&words, by_command.as_bytes()).await.unwrap().expect_code(0).unwrap().text());
    watch.end().unwrap();
    // The search would have found it where it may be.
    needles[0].absent_from_files(&secrets.join("contexts.toml")).unwrap_err();
    toygres.ok(&["token", "revoke", "ann"]).await.unwrap();
    let control = toygres.control().await.unwrap();
    for needles in &needles {
        for text in &texts {
            needles.absent_from("an output", text).unwrap();
        }
        needles.absent_from_tables(&control).await.unwrap();
        needles.absent_from_files(toygres.folder()).unwrap();
    }
    control.close().await;
}

#[tokio::test]
async fn what_a_failed_create_leaves_has_no_password_either() {
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = stranger.local_addr().unwrap().port();
    let toygres = Toygres::new().unwrap().with("TOYGRES_LOG", "trace").with("TOYGRES_PORT_RANGE", format!("{port}-{port}"));
    let failed = toygres.run_with_input(&["create", "given", "--password-stdin"], GIVEN.as_bytes()).await.unwrap();
    let failed = failed.expect_code(1).unwrap();
    let needles = Needles::of(GIVEN);
    needles.absent_from("the error", &failed.to_string()).unwrap();
    let instance: Value = toygres.json(&["get", "given"]).await.unwrap();
    needles.absent_from("the record", &instance.to_string()).unwrap();
    let control = toygres.control().await.unwrap();
    needles.absent_from_tables(&control).await.unwrap();
    needles.absent_from_files(toygres.folder()).unwrap();
    toygres.ok(&["delete", "given", "--yes"]).await.unwrap();
    assert!(!toygres.secret_file("given").exists(), "the secret of a failed instance outlives it");
}

#[tokio::test]
async fn every_file_and_folder_is_private_that_should_be() {
    use std::os::unix::fs::PermissionsExt;
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    let log = toygres.log_files("demo").unwrap().remove(0);
    let mode = |path: &str| std::fs::metadata(toygres.state_dir().join(path)).map(|found| found.permissions().mode() & 0o777);
    for (path, expected) in [
        ("secrets", 0o700),
        ("secrets/default/demo", 0o600),
        ("token", 0o600),
        ("api", 0o700),
        ("api/socket", 0o600),
        ("server.lock", 0o600),
        ("server.log", 0o600),
        ("ca.key", 0o600),
        ("run", 0o700),
        ("instances/default/demo/data", 0o700),
        ("instances/default/demo/log", 0o700),
        (log.to_str().unwrap(), 0o600),
        ("instances/default/demo/server.key", if nix::unistd::Uid::effective().is_root() { 0o640 } else { 0o600 }),
        ("client-ca.key", 0o600),
        ("api-ca.key", 0o600),
        ("control/password", 0o600),
    ] {
        assert_eq!(mode(path).map_err(|error| format!("{path}: {error}")).unwrap(), expected, "{path}");
    }
    assert_eq!(mode("ca.crt").unwrap() & 0o444, 0o444, "clients need the CA's certificate");
}

#[tokio::test]
async fn the_search_would_find_it() {
    let needles = Needles::of("planted for the search");
    let folder = toygres_e2e::place::temporary_folder().unwrap();
    std::fs::write(folder.path().join("a.log"), "\0planted%20for%20the%20search\0").unwrap();
    needles.absent_from_files(folder.path()).unwrap_err();

    let watch = needles.watch_processes();
    let mut process = std::process::Command::new("sleep").arg("60").env("PLANTED", "planted for the search").spawn().unwrap();
    while !watch.has_ended() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    process.kill().unwrap();
    process.wait().unwrap();
    let found = watch.end().unwrap_err().to_string();
    assert!(found.contains("environ"), "{found}");

    let Some(database) = toygres_e2e::store_database::database().await.unwrap() else { return };
    needles.absent_from_tables(database.store.pool()).await.unwrap();
    sqlx::raw_sql("CREATE TABLE public.planted AS SELECT 'planted for the search'::bytea")
        .execute(database.store.pool())
        .await
        .unwrap();
    let found = needles.absent_from_tables(database.store.pool()).await.unwrap_err().to_string();
    assert!(found.contains("public.planted"), "{found}");
}

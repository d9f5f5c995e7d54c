//! Working with a server elsewhere: tokens, logins and contexts on the command line.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use toygres_e2e::{Run, Toygres};

/// A server, and somebody else's home without one.
async fn server_and_person() -> Result<(Toygres, Toygres, String)> {
    let server = Toygres::new()?.with("TOYGRES_POOL_SIZE", "0");
    let url = serve(&server).await?;
    Ok((server, Toygres::new()?, url))
}

/// Starts the server; its address.
async fn serve(server: &Toygres) -> Result<String> {
    server.ok(&["server", "start"]).await?;
    server.url()
}

/// Makes a token on the server's machine; it alone is on standard output.
async fn mint(server: &Toygres, arguments: &[&str]) -> Result<String> {
    let words: Vec<&str> = ["token", "create"].iter().chain(arguments).copied().collect();
    let run = server.ok(&words).await?;
    let token = run.stdout.trim_end().to_owned();
    ensure!(token.starts_with("toygres_") && token.len() == "toygres_".len() + 32 + 1 + 43, "not a token: {token}");
    ensure!(!run.stderr.contains(&token) && run.stderr.contains("shown this once"), "{run}");
    Ok(token)
}

async fn log_in(person: &Toygres, arguments: &[&str], token: &str, code: i32) -> Result<Run> {
    let words: Vec<&str> = ["login"].iter().chain(arguments).chain(&["--token-stdin"]).copied().collect();
    person.run_with_input(&words, format!("{token}\n").as_bytes()).await?.expect_code(code)?.expect_humane()
}

#[tokio::test]
async fn a_person_logs_in_works_elsewhere_and_logs_out() {
    let (server, person, url) = server_and_person().await.unwrap();
    let token = mint(&server, &["ann", "--role", "editor", "--namespaces", "shop,blog", "--expires", "90d"]).await.unwrap();
    let run = log_in(&person, &[&url, "--name", "prod"], &token, 0).await.unwrap();
    assert!(run.stdout.contains("as ann: editor in blog, shop") && !run.text().contains(&token), "{run}");
    let file = person.folder().join("contexts.toml");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let created = person.ok(&["create", "demo", "-n", "shop"]).await.unwrap();
    assert!(!person.state_dir().exists(), "a server was started here: {created}");
    assert_eq!(server.json(&["get", "demo", "-n", "shop"]).await.unwrap()["state"], "running");
    let refused = person.fails(1, &["create", "demo", "-n", "bank"]).await.unwrap();
    assert!(refused.stderr.contains("limited to the namespaces blog, shop"), "{refused}");
    let refused = person.fails(1, &["token", "list"]).await.unwrap();
    assert!(refused.stderr.contains("ann"), "{refused}");

    let listed = person.ok(&["context", "list"]).await.unwrap();
    let star = listed.stdout.lines().find(|line| line.trim_start().starts_with('*')).unwrap();
    assert!(star.contains("prod") && star.contains(&url) && !listed.text().contains(&token), "{listed}");
    let contexts = person.json(&["context", "list"]).await.unwrap();
    assert!(contexts.as_array().unwrap().len() == 2 && !contexts.to_string().contains(&token), "{contexts}");

    // Nearer words win: a URL, then a context that is named, then the current one.
    let elsewhere = person.command(&["list"]).env("TOYGRES_URL", "http://127.0.0.1:1").output().await.unwrap();
    assert!(String::from_utf8_lossy(&elsewhere.stderr).contains("127.0.0.1:1"), "{elsewhere:?}");
    let elsewhere = person.fails(1, &["list", "--context", "nowhere"]).await.unwrap();
    assert!(elsewhere.stderr.contains("there is no context nowhere"), "{elsewhere}");
    let wrong = person.command(&["list"]).env("TOYGRES_TOKEN", "wrong").output().await.unwrap();
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("token is wrong"), "{wrong:?}");
    person.fails(2, &["list", "--context", "prod", "--url", &url]).await.unwrap();

    person.ok(&["context", "use", "local"]).await.unwrap();
    let status = person.json(&["context", "list"]).await.unwrap();
    assert_eq!(status[1]["current"], true, "{status}");
    // By its name it is there still.
    let named = person.command(&["-o", "json", "list"]).env("TOYGRES_CONTEXT", "prod").output().await.unwrap();
    assert!(named.status.success() && String::from_utf8_lossy(&named.stdout).contains("demo"), "{named:?}");
    person.ok(&["context", "use", "prod"]).await.unwrap();

    let revoked = server.ok(&["token", "revoke", "ann"]).await.unwrap();
    assert!(revoked.stdout.contains("ann is revoked"), "{revoked}");
    let refused = person.fails(1, &["list"]).await.unwrap();
    assert!(refused.stderr.contains("revoked") && refused.stderr.contains("context"), "{refused}");

    person.ok(&["logout"]).await.unwrap();
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&token), "the token is kept");
    let nobody = person.fails(1, &["logout"]).await.unwrap();
    assert!(nobody.stderr.contains("not logged in"), "{nobody}");
    assert!(!person.state_dir().exists(), "a server was started here");
}

#[tokio::test]
async fn a_login_that_does_not_work_leaves_nothing() {
    let (server, person, url) = server_and_person().await.unwrap();
    let file = person.folder().join("contexts.toml");
    let token = mint(&server, &["eve", "--role", "viewer"]).await.unwrap();
    let wrong = format!("{}{}", &token[..token.len() - 1], if token.ends_with('x') { 'y' } else { 'x' });
    let run = log_in(&person, &[&url], &wrong, 1).await.unwrap();
    assert!(run.stderr.contains("refuses the token") && !run.text().contains(&wrong), "{run}");
    let run = log_in(&person, &["http://127.0.0.1:1"], &token, 1).await.unwrap();
    assert!(run.stderr.contains("can't be reached") && !run.text().contains(&token), "{run}");
    for (arguments, token, hint) in [
        (&["http://toygres.example.org"][..], token.as_str(), "plain HTTP"),
        (&["ftp://h"], &token, "ftp"),
        (&[&url, "--name", "local"], &token, "local"),
        (&[&url, "--name", "a b"], &token, "can't be a context's name"),
        (&[&url, "--ca-certificate", "/nowhere.pem"], &token, "/nowhere.pem"),
        (&[&url], "", "not a token"),
        (&[&url], "two words", "not a token"),
        (&[&url], "t\u{f6}ken", "not a token"),
    ] {
        let run = log_in(&person, arguments, token, 2).await.unwrap();
        assert!(run.stderr.contains(hint), "no hint {hint:?}: {run}");
        assert!(token.is_empty() || !run.text().contains(token), "{run}");
    }
    let token_file = server.state_dir().join("token");
    let in_the_clear = ["list", "--url", "http://toygres.example.org", "--token-file", token_file.to_str().unwrap()];
    let run = person.fails(2, &in_the_clear).await.unwrap();
    assert!(run.stderr.contains("plain HTTP") && run.stderr.contains("--allow-plaintext"), "{run}");
    let run = person.fails(2, &["login", &url]).await.unwrap();
    assert!(run.stderr.contains("--token-stdin"), "{run}");
    assert!(!file.exists(), "something was kept");
}

#[tokio::test]
async fn tokens_are_not_taken_from_a_file_that_others_can_read_or_made() {
    let (server, person, url) = server_and_person().await.unwrap();
    let token = mint(&server, &["eve", "--role", "viewer"]).await.unwrap();
    log_in(&person, &[&url, "--name", "prod"], &token, 0).await.unwrap();
    let file = person.folder().join("contexts.toml");
    person.ok(&["list"]).await.unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    for arguments in [&["list"][..], &["context", "list"], &["context", "use", "local"], &["logout"]] {
        let run = person.fails(1, arguments).await.unwrap();
        assert!(run.stderr.contains("0644") && run.stderr.contains("chmod 600") && !run.text().contains(&token), "{run}");
    }
    // What needs none of them works.
    person.ok(&["list", "--url", &url, "--token-file", server.state_dir().join("token").to_str().unwrap()]).await.unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let elsewhere = person.folder().join("elsewhere.toml");
    std::fs::rename(&file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    let run = person.fails(1, &["list"]).await.unwrap();
    assert!(run.stderr.contains("symbolic link"), "{run}");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, format!("[contexts.prod]\ntoken = '{token}'\nurl = 7")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let run = person.fails(1, &["list"]).await.unwrap();
    assert!(run.stderr.contains("not valid") && !run.text().contains(&token), "{run}");
}

#[tokio::test]
async fn quotas_are_set_and_shown() {
    let server = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    server.serve().await.unwrap();
    server.ok(&["namespaces", "set-quota", "shop", "--max-instances", "1", "--max-storage", "50"]).await.unwrap();
    server.ok(&["create", "one", "-n", "shop"]).await.unwrap();
    let table = server.ok(&["namespaces"]).await.unwrap().stdout;
    assert_eq!(table, "NAMESPACE   INSTANCES   STORAGE\nshop        1 of 1      10 of 50 GB\n");
    let refused = server.fails(1, &["create", "two", "-n", "shop"]).await.unwrap();
    assert!(refused.stderr.contains("may have 1 instances, and has 1") && refused.stderr.contains("larger quota"), "{refused}");
    // What isn't named stays.
    server.ok(&["namespaces", "set-quota", "shop", "--max-instances", "none"]).await.unwrap();
    let namespace = server.json(&["namespaces", "get", "shop"]).await.unwrap();
    assert_eq!((&namespace["max_instances"], &namespace["max_storage_gb"]), (&Value::Null, &50.into()));
    server.fails(2, &["namespaces", "set-quota", "shop"]).await.unwrap();
    server.fails(2, &["namespaces", "set-quota", "shop", "--max-storage", "lots"]).await.unwrap();
    server.fails(1, &["namespaces", "get", "nowhere"]).await.unwrap();
}

#[tokio::test]
async fn a_login_keeps_the_ca_that_the_server_is_known_by() {
    let server = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0").with("TOYGRES_TLS", "1");
    let url = serve(&server).await.unwrap();
    assert!(url.starts_with("https://"), "{url}");
    let person = Toygres::new().unwrap();
    let token = mint(&server, &["ann", "--role", "viewer"]).await.unwrap();
    let run = log_in(&person, &[&url], &token, 1).await.unwrap();
    assert!(run.stderr.contains("no TLS connection") && run.stderr.contains("--ca-certificate"), "{run}");
    let copy = person.folder().join("ca.crt");
    std::fs::copy(server.state_dir().join("api-ca.crt"), &copy).unwrap();
    log_in(&person, &[&url, "--ca-certificate", copy.to_str().unwrap()], &token, 0).await.unwrap();
    // It is in the context: the file isn't needed any more.
    std::fs::remove_file(&copy).unwrap();
    person.ok(&["list"]).await.unwrap();
    let missing = person.fails(2, &["list", "--ca-certificate", copy.to_str().unwrap()]).await.unwrap();
    assert!(missing.stderr.contains("can't be read"), "{missing}");
}

#[tokio::test]
async fn the_own_servers_token_is_shown_to_no_other_server() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    let api = toygres.serve().await.unwrap();
    let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", stranger.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let (mut connection, _) = stranger.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let length = connection.read(&mut head).await.unwrap();
        let answer = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        connection.write_all(answer).await.unwrap();
        String::from_utf8_lossy(&head[..length]).to_lowercase()
    });
    toygres.fails(1, &["--url", &url, "list"]).await.unwrap();
    let head = asked.await.unwrap();
    assert!(head.starts_with("get /v1/instances") && !head.contains("authorization"), "{head}");
    toygres.ok(&["--url", api.url(), "list"]).await.unwrap();
}

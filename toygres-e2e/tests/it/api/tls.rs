//! The API over TLS: with toygres's own CA, with a given certificate, and not at all.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use toygres_e2e::wait::{SOON, eventually};
use toygres_e2e::{Toygres, required_or_skip};

/// Whether there is an openssl to make and look at certificates with.
fn has_openssl() -> Result<bool> {
    if Command::new("openssl").arg("version").output().is_ok_and(|run| run.status.success()) {
        return Ok(true);
    }
    required_or_skip("openssl is not installed")?;
    Ok(false)
}

/// A certificate for a name, signed by itself, with its key.
fn certify(folder: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test",
        ])
        .args(["-addext", &format!("subjectAltName=DNS:{name}")])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok((certificate, key))
}

/// What `/healthz` answers over TLS to who asks for that name and trusts that CA.
fn health(url: &str, name: &str, ca: &Path) -> Result<String> {
    let address = url.strip_prefix("https://").context("not over TLS")?;
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-servername", name, "-verify_hostname", name, "-connect", address])
        .arg("-CAfile")
        .arg(ca)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(client.stdin.as_mut().context("no input")?, request.as_bytes())?;
    let run = client.wait_with_output()?;
    let answer = String::from_utf8_lossy(&run.stdout).into_owned();
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}{}", String::from_utf8_lossy(&run.stderr));
    Ok(answer)
}

#[tokio::test]
async fn commands_trust_the_own_ca_by_themselves_and_elsewhere_by_its_certificate() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0").with("TOYGRES_TLS", "1");
    toygres.ok(&["server", "start"]).await.unwrap();
    let url = toygres.url().unwrap();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    toygres.ok(&["list"]).await.unwrap();
    let status = toygres.json(&["server", "status"]).await.unwrap();
    assert_eq!((&status["ready"], &status["url"]), (&"ok".into(), &url.clone().into()));

    // Named, it is a server like any other, which nobody vouches for.
    let token = toygres.state_dir().join("token").to_string_lossy().into_owned();
    let ca = toygres.state_dir().join("api-ca.crt").to_string_lossy().into_owned();
    let elsewhere = ["--url", &url, "--token-file", &token, "list"];
    let run = toygres.fails(1, &elsewhere).await.unwrap();
    assert!(run.stderr.contains("no TLS connection") && run.stderr.contains("--ca-certificate"), "{run}");
    toygres.ok(&[&["--ca-certificate", &ca][..], &elsewhere].concat()).await.unwrap();
    let missing = toygres.fails(2, &[&["--ca-certificate", "/nonexistent"][..], &elsewhere].concat()).await.unwrap();
    assert!(missing.stderr.contains("/nonexistent"), "{missing}");

    // The wrong scheme is told from a broken server.
    let plain = url.replace("https://", "http://");
    let run = toygres.fails(1, &["--url", &plain, "--token-file", &token, "list"]).await.unwrap();
    println!("{run}");
    assert!(run.stderr.contains("https://"), "{run}");
    toygres.ok(&["server", "stop"]).await.unwrap();
}

#[tokio::test]
async fn https_to_a_server_without_tls_says_so() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    toygres.ok(&["server", "start"]).await.unwrap();
    let url = toygres.url().unwrap().replace("http://", "https://");
    let run = toygres.fails(1, &["--url", &url, "list"]).await.unwrap();
    assert!(run.stderr.contains("no TLS connection") && run.stderr.contains("http://"), "{run}");
}

#[tokio::test]
async fn nothing_is_served_in_the_clear_beyond_this_machine_unless_it_is_told_so() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0").with("TOYGRES_LISTEN", "0.0.0.0:0");
    let run = toygres.fails(1, &["server", "start"]).await.unwrap();
    for way in ["--tls", "--tls-certificate", "--allow-plaintext", "127.0.0.1"] {
        assert!(run.stderr.contains(way), "{way} is not offered: {run}");
    }
    toygres.ok(&["--tls", "server", "start"]).await.unwrap();
    assert!(toygres.url().unwrap().starts_with("https://127.0.0.1:"));
    toygres.ok(&["list"]).await.unwrap();
    toygres.ok(&["server", "stop"]).await.unwrap();
}

#[tokio::test]
async fn a_given_certificate_is_shown_to_others_and_its_successor_is_taken_up() {
    if !has_openssl().unwrap() {
        return;
    }
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    let (certificate, key) = certify(toygres.folder(), "toygres.test").unwrap();
    let toygres = toygres.with("TOYGRES_TLS_CERTIFICATE", &certificate).with("TOYGRES_TLS_KEY", &key);
    toygres.ok(&["server", "start"]).await.unwrap();
    let url = toygres.url().unwrap();
    health(&url, "toygres.test", &certificate).unwrap();
    // Commands here need no name of it.
    toygres.ok(&["list"]).await.unwrap();

    // Half of a new pair changes nothing; the whole of it does, for new connections.
    let old = toygres.folder().join("old.crt");
    std::fs::copy(&certificate, &old).unwrap();
    std::fs::write(&certificate, "nothing").unwrap();
    let log = toygres.state_dir().join("server.log");
    eventually("the log to tell of half a pair", SOON, async || {
        Ok(std::fs::read_to_string(&log)?.contains("was not loaded").then_some(()))
    })
    .await
    .unwrap();
    health(&url, "toygres.test", &old).unwrap();
    let (successor, _) = certify(toygres.folder(), "toygres.test").unwrap();
    eventually("the successor to be shown", Duration::from_secs(20), async || Ok(health(&url, "toygres.test", &successor).ok()))
        .await
        .unwrap();
    assert!(health(&url, "toygres.test", &old).is_err());
    toygres.ok(&["server", "stop"]).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_refused_before_anything_starts() {
    if !has_openssl().unwrap() {
        return;
    }
    let toygres = Toygres::new().unwrap().with("TOYGRES_POOL_SIZE", "0");
    let folder = toygres.folder().to_owned();
    let (certificate, key) = certify(&folder, "toygres.test").unwrap();
    let other = folder.join("other");
    std::fs::create_dir(&other).unwrap();
    let (_, other_key) = certify(&other, "toygres.test").unwrap();
    let open = folder.join("open.key");
    std::fs::copy(&key, &open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let no_key = folder.join("no.key");
    std::fs::write(&no_key, "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n").unwrap();
    std::fs::set_permissions(&no_key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    for (certificate, key, words) in [
        (text(&certificate), text(&other_key), "not that of the certificate"),
        (text(&key), text(&key), "no certificate"),
        (text(&certificate), text(&no_key), "no private key"),
        (text(&certificate), text(&open), "chmod 600"),
        (text(&certificate), "/nonexistent".to_owned(), "/nonexistent"),
    ] {
        let run = toygres.fails(1, &["--tls-certificate", &certificate, "--tls-key", &key, "server", "start"]).await.unwrap();
        assert!(run.stderr.contains(words) && !run.text().contains("hunter2"), "no {words:?}: {run}");
    }
    for arguments in
        [&["--tls-certificate", "x"][..], &["--tls-key", "x"], &["--tls-names", "x"], &["--tls", "--tls-names", "a b"]]
    {
        toygres.fails(2, &[arguments, &["server", "start"]].concat()).await.unwrap();
    }
    assert!(!toygres.state_dir().join("control").exists(), "a database was started for a certificate that can't be used");
}

//! The same first steps on Kubernetes: create, look, connect, delete, on each image, from outside
//! the cluster.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sysinfo::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use toygres_e2e::kubernetes::kubectl;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Cluster, process, required_or_skip};

fn words<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    list.as_array().into_iter().flatten().filter_map(|item| item[field].as_str()).collect()
}

#[tokio::test]
async fn from_an_empty_directory_to_a_pod_that_answers_and_back() {
    let Some(cluster) = Cluster::new("first-use").await.unwrap() else { return };
    let namespace = cluster.namespace.name.as_str();

    let run = cluster.create("demo", &["--version", "17"]).await.unwrap().expect_humane().unwrap();
    let host = format!("demo.{namespace}.svc.cluster.local");
    assert!(run.stdout.contains("demo is ready: PostgreSQL 17") && run.stdout.contains(&host), "{run}");
    assert!(run.stderr.contains(&format!("toygres psql -n {namespace} demo")), "no word of the next step: {run}");
    assert!(cluster.sql("demo", "show server_version").await.unwrap().starts_with("17."));
    assert_eq!(cluster.sql("demo", "select ssl from pg_stat_ssl where pid = pg_backend_pid()").await.unwrap(), "t");
    assert_eq!(cluster.sql("demo", "show data_checksums").await.unwrap(), "on");

    let uri = cluster.ok(&["connect", "demo"]).await.unwrap();
    assert!(uri.stdout.contains(&format!("@{host}:5432/")) && uri.stdout.contains("sslmode=verify-full"), "{uri}");
    assert!(uri.stderr.contains("inside the cluster only") && uri.stderr.contains("--forward"), "{uri}");

    // Another one beside it, as a process on this machine, by the same server.
    cluster.toygres.ok(&["create", "near"]).await.unwrap();
    let list = cluster.toygres.ok(&["list"]).await.unwrap();
    let row = |name: &str| list.stdout.lines().find(|line| line.split_whitespace().any(|word| word == name)).unwrap_or_default();
    assert!(list.stdout.contains("PLATFORM"), "{list}");
    assert!(row("demo").contains("kubernetes") && row("demo").contains("running") && row("demo").contains(&host), "{list}");
    assert!(row("near").contains("local") && row("near").contains("127.0.0.1:"), "{list}");
    cluster.toygres.ok(&["delete", "near", "--yes"]).await.unwrap();

    let instance = cluster.json(&["get", "demo"]).await.unwrap();
    assert_eq!(
        (&instance["spec"]["platform"], &instance["status"]["health_status"]),
        (&"kubernetes".into(), &"healthy".into()),
        "{instance:#}"
    );
    let shown = cluster.ok(&["get", "demo"]).await.unwrap().stdout;
    assert!(shown.contains("inside the cluster") && !shown.contains("not enforced"), "{shown}");
    let events = cluster.json(&["events", "demo"]).await.unwrap();
    assert_eq!(words(&events, "kind"), ["create_requested", "instance_running"], "{events:#}");
    let logs = cluster.ok(&["logs", "demo", "--tail", "5"]).await.unwrap().stdout;
    assert!(logs.lines().count() <= 5 && logs.contains("ready to accept connections"), "{logs}");
    let versions = cluster.ok(&["versions", "--platform", "kubernetes"]).await.unwrap().stdout;
    assert!(versions.contains("postgres:17") && versions.contains("default"), "{versions}");
    let doctor = cluster.ok(&["doctor"]).await.unwrap().expect_humane().unwrap().stdout;
    for looked_at in ["cluster", "rights", "storage class", &format!("{namespace} is there")] {
        assert!(doctor.contains(looked_at), "no word of {looked_at:?}: {doctor}");
    }

    cluster.delete("demo").await.unwrap().expect_humane().unwrap();
    cluster.namespace.expect_empty().await.unwrap();
    cluster.fails(1, &["get", "demo"]).await.unwrap();
    let events = cluster.json(&["events", "demo"]).await.unwrap();
    let expected = ["create_requested", "instance_running", "delete_requested", "instance_deleted"];
    assert_eq!(words(&events, "kind"), expected, "the past is kept, and nothing else happened: {events:#}");
}

#[tokio::test]
async fn the_oldest_and_the_newest_image_work_alike() {
    let Some(cluster) = Cluster::new("images").await.unwrap() else { return };
    cluster.serve().await.unwrap();
    let (oldest, newest) = tokio::join!(cluster.create("v15", &["--version", "15"]), cluster.create("v18", &[]));
    assert!(oldest.unwrap().stdout.contains("PostgreSQL 15"));
    let newest = newest.unwrap();
    assert!(newest.stdout.contains("PostgreSQL 18"), "the newest is the default: {newest}");
    for (name, version) in [("v15", "15."), ("v18", "18.")] {
        assert!(cluster.sql(name, "show server_version").await.unwrap().starts_with(version));
        assert_eq!(cluster.sql(name, "show data_checksums").await.unwrap(), "on");
        cluster.expect_made(name).await.unwrap();
    }
    cluster.delete("v15").await.unwrap();
    cluster.delete("v18").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

/// A port that is free at this moment.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// `toygres connect demo --forward` until Ctrl-C: logs in by what it prints; the port.
async fn forward(cluster: &Cluster, more: &[&str]) -> Result<u16> {
    let mut command = cluster.command(&[&["connect", "demo", "--forward"], more].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let (screen, notes) = (child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
    let (mut screen, mut notes) = (BufReader::new(screen).lines(), BufReader::new(notes).lines());
    let uri = tokio::time::timeout(SOON, screen.next_line()).await??.context("it ended")?;
    let note = tokio::time::timeout(SOON, notes.next_line()).await??.context("it says nothing")?;
    ensure!(note.contains("Ctrl-C"), "no word of how to end it: {note}");
    let mut first = toygres_e2e::api::log_in(&uri).await?;
    // A second session beside the first.
    toygres_e2e::api::log_in(&uri).await?;
    sqlx::query("SELECT 1").execute(&mut first).await?;
    process::send(child.id().context("it ended")?, Signal::Interrupt)?;
    let status = tokio::time::timeout(SOON, child.wait()).await??;
    ensure!(status.code() == Some(0), "it ended with {status}");
    ensure!(toygres_e2e::api::log_in(&uri).await.is_err(), "the port still answers");
    let address = uri.split_once("@127.0.0.1:").context("another address than this machine's")?.1;
    Ok(address.split('/').next().unwrap_or_default().parse()?)
}

#[tokio::test]
async fn a_private_instance_is_reached_by_a_port_of_this_machine() {
    let Some(cluster) = Cluster::new("forward").await.unwrap() else { return };
    cluster.create("demo", &[]).await.unwrap();
    let port = free_port().unwrap();
    assert_eq!(forward(&cluster, &["--port", &port.to_string()]).await.unwrap(), port);
    forward(&cluster, &[]).await.unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused = cluster.fails(1, &["connect", "demo", "--forward", "--port", &port]).await.unwrap();
    assert!(refused.stderr.contains(&port), "{refused}");

    // psql by a forward of its own: its input, its exit status.
    let script = "create table t as select 7 as n; select n from t;\n";
    let piped = cluster.run_with_input(&["psql", "demo", "-XAtq"], script.as_bytes()).await.unwrap();
    assert_eq!((piped.code, piped.stdout.as_str()), (Some(0), "7\n"), "{piped}");
    let failed = cluster.run(&["psql", "demo", "-v", "ON_ERROR_STOP=1", "-c", "select 1/0"]).await.unwrap();
    assert_eq!(failed.code, Some(1), "psql's own exit status: {failed}");

    let local = cluster.toygres.ok(&["create", "near"]).await.unwrap();
    assert_eq!(local.code, Some(0));
    let refused = cluster.toygres.fails(1, &["connect", "near", "--forward"]).await.unwrap();
    assert!(refused.stderr.contains("local") && refused.stderr.contains("toygres connect near"), "{refused}");
}

/// Whether the cluster is one with load balancers and Azure's regions, as its nodes say.
async fn region() -> Result<Option<String>> {
    let label = "jsonpath={.items[0].metadata.labels.topology\\.kubernetes\\.io/region}";
    Ok(Some(kubectl(&["get", "nodes", "-o", label]).await?).filter(|region| !region.is_empty()))
}

#[tokio::test]
async fn a_public_instance_has_an_address_a_name_and_a_certificate_for_both() {
    let Some(cluster) = Cluster::new("public").await.unwrap() else { return };
    let Some(region) = region().await.unwrap() else {
        return required_or_skip("the cluster's nodes name no region, so it has no load balancers").unwrap();
    };
    // A name of its own, as Azure wants it.
    let label = cluster.namespace.name.as_str();
    let run = cluster.create("open", &["--public", "--dns-label", label]).await.unwrap();
    let name = format!("{label}.{region}.cloudapp.azure.com");
    assert!(run.stdout.contains(&name), "{run}");

    let instance = cluster.json(&["get", "open"]).await.unwrap();
    assert_eq!(
        (&instance["spec"]["use_load_balancer"], &instance["spec"]["dns_label"]),
        (&true.into(), &label.into()),
        "{instance:#}"
    );
    let by_name = instance["status"]["dns_connection_string"].as_str().unwrap();
    assert!(by_name.contains(&format!("@{name}:5432/")), "{instance:#}");
    let service = cluster.namespace.object("service/open").await.unwrap();
    assert_eq!(service["metadata"]["annotations"]["service.beta.kubernetes.io/azure-dns-label-name"], label, "{service:#}");
    let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().unwrap().to_owned();
    assert!(instance["status"]["ip_connection_string"].as_str().unwrap().contains(&format!("@{address}:5432/")), "{instance:#}");

    // Straight to the address, with the certificate checked for it.
    let run = cluster.ok(&["connect", "open"]).await.unwrap();
    assert!(run.stdout.contains(&format!("@{address}:5432/")) && !run.stderr.contains("--forward"), "{run}");
    toygres_e2e::api::log_in(run.stdout.trim_end()).await.unwrap();
    assert_eq!(cluster.sql("open", "select inet_server_port()").await.unwrap(), "5432");

    // And for its name, which only Azure would resolve: psql is told the address beside the name.
    let environment = cluster.ok(&["connect", "open", "--format", "env"]).await.unwrap().stdout;
    for (host, is_in_the_certificate) in [(name.as_str(), true), ("other.westus3.cloudapp.azure.com", false)] {
        let script = "eval \"$environment\"; PGHOSTADDR=$PGHOST PGHOST=$1 psql -XAtc 'select 7'";
        let mut psql = std::process::Command::new("sh");
        let output = psql.args(["-euc", script, "sh", host]).env("environment", &environment).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), is_in_the_certificate, "{host}: {words}");
        assert!(is_in_the_certificate || words.contains("does not match host name"), "{host}: {words}");
    }
    cluster.delete("open").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_create_can_be_repeated_and_what_was_asked_for_reaches_the_pod() {
    let Some(cluster) = Cluster::new("again").await.unwrap() else { return };
    let asked = ["--cpu", "300m", "--memory", "300Mi", "--storage-class", "standard", "--storage", "2"];
    cluster.create("demo", &asked).await.unwrap();
    let first = cluster.json(&["get", "demo"]).await.unwrap();
    let pod = cluster.namespace.object("pod/demo-0").await.unwrap();
    let claim = cluster.namespace.object("persistentvolumeclaim/demo-data").await.unwrap();
    for bound in ["requests", "limits"] {
        let resources = &pod["spec"]["containers"][0]["resources"][bound];
        assert_eq!((&resources["cpu"], &resources["memory"]), (&"300m".into(), &"300Mi".into()), "{resources}");
    }
    // The server is sized by what it may use, and says so.
    let derived = &first["status"]["members"][0]["derived"];
    for (setting, value) in [("shared_buffers", "75MB"), ("effective_cache_size", "225MB"), ("max_connections", "29")] {
        assert_eq!(cluster.sql("demo", &format!("show {setting}")).await.unwrap(), value, "{setting}");
        assert_eq!(derived[setting], value, "{derived:#}");
    }
    let shared_memory =
        cluster.namespace.kubectl(&["exec", "demo-0", "--", "df", "-h", "--output=size", "/dev/shm"]).await.unwrap();
    assert!(shared_memory.contains("150M"), "{shared_memory}");
    assert_eq!(claim["spec"]["storageClassName"], "standard", "{claim:#}");
    assert!(claim["spec"]["resources"]["requests"]["storage"].as_str().unwrap().starts_with("2G"), "{claim:#}");

    for again in [&[][..], &asked, &["--cpu", "300m"]] {
        let run = cluster.create("demo", again).await.unwrap();
        assert!(run.text().contains("already"), "{run}");
    }
    for other in [
        &["--platform", "local"][..],
        &["--platform", "kubernetes", "--cpu", "400m"],
        &["--platform", "kubernetes", "--memory", "1Gi"],
        &["--platform", "kubernetes", "--storage-class", "other"],
        &["--platform", "kubernetes", "--storage", "3"],
        &["--platform", "kubernetes", "--version", "15"],
        &["--platform", "kubernetes", "--public"],
    ] {
        let run = cluster.fails(1, &[&["create", "demo"], other].concat()).await.unwrap();
        assert!(run.stderr.contains("there already") && run.stderr.contains("Nothing was changed"), "{run}");
    }
    assert_eq!(cluster.json(&["get", "demo"]).await.unwrap()["id"], first["id"]);
    let now = cluster.namespace.uid("pod/demo-0").await.unwrap();
    assert_eq!(now.as_deref(), pod["metadata"]["uid"].as_str(), "the pod was made anew");
    cluster.expect_made("demo").await.unwrap();
}

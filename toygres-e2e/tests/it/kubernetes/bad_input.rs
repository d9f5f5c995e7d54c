//! What can't be done on Kubernetes is refused at the edge, with the reason, and nothing is written;
//! without a cluster, everything else goes on.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use toygres_e2e::Cluster;
use toygres_e2e::kubernetes::{IN_SECONDS, kubectl};
use toygres_e2e::search::Needles;

#[tokio::test]
async fn what_can_not_be_made_is_refused_and_nothing_is_written() {
    let Some(cluster) = Cluster::new("bad-input").await.unwrap() else { return };
    cluster.serve().await.unwrap();
    let kubernetes = ["--platform", "kubernetes"];
    for (code, arguments, words) in [
        (2, &["--platform", "docker"][..], "local and kubernetes"),
        (2, &["--platform", "kubernetes", "--dns-label", "demo-label"], "--public"),
        (2, &["--platform", "kubernetes", "--public", "--dns-label", "No"], "lowercase"),
        (2, &["--platform", "kubernetes", "--cpu", "lots"], "--cpu"),
        (2, &["--platform", "kubernetes", "--memory", "2"], "--memory"),
        (2, &["--platform", "kubernetes", "--storage-class", "a b"], "--storage-class"),
        (2, &["--platform", "kubernetes", "--version", "17.4"], "no image for PostgreSQL 17.4"),
        (2, &["--platform", "local", "--cpu", "1"], "local platform"),
        (2, &["--platform", "local", "--memory", "1Gi"], "local platform"),
        (2, &["--platform", "local", "--storage-class", "standard"], "local platform"),
        (2, &["--platform", "local", "--public"], "local platform"),
        // The server was started without a word about a context.
        (1, &["--platform", "kubernetes", "--kube-context", "nowhere"], "nowhere"),
    ] {
        let run = cluster.fails(code, &[&["create", "demo"], arguments].concat()).await.unwrap();
        assert!(run.stderr.contains(words), "no word of {words:?}: {run}");
    }
    let missing = cluster.toygres.fails(1, &[&["-n", "e2e-no-such-namespace", "create", "demo"], &kubernetes[..]].concat()).await;
    let missing = missing.unwrap();
    assert!(missing.stderr.contains("kubectl create namespace e2e-no-such-namespace"), "{missing}");

    // By HTTP, past the command line's own checks.
    let api = cluster.api().unwrap();
    for (body, words) in [
        (json!({ "platform": "docker" }), "docker"),
        (json!({ "platform": "kubernetes", "dns_label": "demo-label" }), "use_load_balancer"),
        (json!({ "platform": "kubernetes", "cpu": "1 --privileged" }), "cpu"),
        (json!({ "platform": "kubernetes", "storage_class": "x\n  y: z" }), "storage_class"),
        (json!({ "platform": "local", "memory": "1Gi" }), "local platform"),
    ] {
        let mut body: Value = body;
        body["name"] = "demo".into();
        let detail = api.post_instance(&body).await.unwrap().expect_problem(422).unwrap();
        assert!(detail.contains(words), "no word of {words:?}: {detail}");
    }

    assert_eq!(cluster.toygres.json(&["list"]).await.unwrap(), json!([]));
    assert_eq!(cluster.toygres.json(&["operations"]).await.unwrap(), json!([]));
    let left = cluster.namespace.objects().await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_server_serves_the_context_that_it_was_started_with() {
    let Some(cluster) = Cluster::new("context").await.unwrap() else { return };
    let current = kubectl(&["config", "current-context"]).await.unwrap();
    // None runs yet: the first command starts it with that context.
    cluster.create("demo", &["--kube-context", current.trim()]).await.unwrap();
    cluster.create("demo", &[]).await.unwrap();
    // Whoever names another one means another cluster's instances.
    for command in [&["create", "two", "--platform", "kubernetes"][..], &["delete", "demo", "--yes"], &["list"], &["get", "demo"]]
    {
        let words: Vec<&str> = ["--kube-context", "other"].iter().chain(command).copied().collect();
        let refused = cluster.fails(1, &words).await.unwrap();
        assert!(refused.stderr.contains(current.trim()) && refused.stderr.contains("server stop"), "{refused}");
    }
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

/// Writes a copy of the kubeconfig, its one cluster and one user changed.
async fn write_kubeconfig(path: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let text = kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]).await?;
    let mut config: Value = serde_json::from_str(&text)?;
    change(&mut config);
    Ok(std::fs::write(path, config.to_string())?)
}

/// Nobody listens there.
fn point_nowhere(config: &mut Value) {
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9".into();
}

/// Nobody is who they say they are.
fn forget_the_ca(config: &mut Value) {
    config["clusters"][0]["cluster"]["certificate-authority-data"] = Value::Null;
}

/// A server whose kubeconfig is a file that isn't there yet.
async fn with_kubeconfig_of_its_own(purpose: &str) -> Result<Option<(Cluster, PathBuf)>> {
    let cluster = Cluster::with(purpose, |toygres| {
        let file = toygres.folder().join("kubeconfig");
        toygres.with("KUBECONFIG", file)
    });
    Ok(cluster.await?.map(|cluster| {
        let file = cluster.toygres.folder().join("kubeconfig");
        (cluster, file)
    }))
}

#[tokio::test]
async fn without_a_usable_cluster_a_create_says_why_and_the_rest_goes_on() {
    let Some((cluster, file)) = with_kubeconfig_of_its_own("no-cluster").await.unwrap() else { return };
    cluster.toygres.ok(&["create", "near"]).await.unwrap();
    for (trouble, words) in [
        ("missing", &["can't be used", "No such file"][..]),
        ("broken", &["can't be used"]),
        ("nowhere", &["127.0.0.1:9", "Connection refused"]),
        ("refused", &["refuses the credentials", "expired"]),
        ("mistrusted", &["certificate"]),
    ] {
        match trouble {
            "missing" => {}
            "broken" => std::fs::write(&file, "users: [{name: me}").unwrap(),
            "nowhere" => write_kubeconfig(&file, point_nowhere).await.unwrap(),
            "refused" => write_kubeconfig(&file, |config| config["users"][0]["user"] = json!({ "token": "old" })).await.unwrap(),
            _ => write_kubeconfig(&file, forget_the_ca).await.unwrap(),
        }
        // A new server, which has no client from before.
        cluster.toygres.ok(&["server", "stop"]).await.unwrap();
        let run = cluster.fails(1, &["create", "demo", "--platform", "kubernetes"]).await.unwrap();
        for word in words.iter().chain([&file.to_str().unwrap()]) {
            assert!(run.stderr.contains(word), "{trouble}: no word of {word:?}: {run}");
        }
        assert!(run.took < IN_SECONDS, "{trouble}: {run}");
        cluster.fails(1, &["get", "demo"]).await.unwrap();
        let doctor = cluster.run(&["doctor"]).await.unwrap().expect_humane().unwrap();
        assert!(doctor.stdout.contains("! cluster") && doctor.code == Some(0), "{trouble}: the cluster isn't needed: {doctor}");
        // Instances on this machine have nothing to do with it.
        let list = cluster.toygres.json(&["list"]).await.unwrap();
        assert_eq!((list.as_array().unwrap().len(), &list[0]["status"]["health_status"]), (1, &"healthy".into()), "{list:#}");
        cluster.toygres.api().unwrap().log_in("near").await.unwrap();
    }
    // An instance that is there is listed, and its deletion waits for the cluster.
    write_kubeconfig(&file, |_| ()).await.unwrap();
    cluster.toygres.ok(&["server", "stop"]).await.unwrap();
    cluster.create("demo", &[]).await.unwrap();
    write_kubeconfig(&file, point_nowhere).await.unwrap();
    cluster.toygres.ok(&["server", "stop"]).await.unwrap();
    assert_eq!(cluster.toygres.json(&["list"]).await.unwrap().as_array().unwrap().len(), 2);
    assert_eq!(cluster.json(&["get", "demo"]).await.unwrap()["status"]["health_status"], "unknown");
    let lost = cluster.fails(1, &["psql", "demo", "-c", "select 1"]).await.unwrap();
    assert!(lost.stderr.contains("127.0.0.1:9"), "{lost}");
    let begun = cluster.json(&["delete", "demo", "--yes", "--no-wait"]).await.unwrap();
    write_kubeconfig(&file, |_| ()).await.unwrap();
    cluster.toygres.ok(&["server", "stop"]).await.unwrap();
    cluster.ok(&["operations", "watch", begun["id"].as_str().unwrap()]).await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_kubeconfig_that_can_not_be_read_is_not_repeated() {
    let Some(cluster) = Cluster::with("broken", |toygres| {
        let file = toygres.folder().join("kubeconfig");
        toygres.with("KUBECONFIG", file)
    })
    .await
    .unwrap() else {
        return;
    };
    // A slip of the pen in the line with the token.
    let token = "e2e-token-that-opens-everything";
    let text = format!("users: [{{name: me, user: {{token: {token}}}]");
    std::fs::write(cluster.toygres.folder().join("kubeconfig"), text).unwrap();
    let needles = Needles::of(token);
    for arguments in [
        &["create", "demo", "--platform", "kubernetes"][..],
        &["versions", "--platform", "kubernetes"],
        &["doctor"],
        &["logs", "demo"],
    ] {
        needles.absent_from("what is shown", &cluster.run(arguments).await.unwrap().to_string()).unwrap();
    }
    needles.absent_from_files(cluster.toygres.state_dir()).unwrap();
}

#[tokio::test]
async fn a_kubeconfig_that_was_mended_is_used_by_the_server_that_runs() {
    let Some((cluster, file)) = with_kubeconfig_of_its_own("mended").await.unwrap() else { return };
    cluster.fails(1, &["create", "demo", "--platform", "kubernetes"]).await.unwrap();
    let pid = cluster.toygres.server_pid().unwrap();
    write_kubeconfig(&file, |config| config["users"][0]["user"] = json!({ "token": "expired" })).await.unwrap();
    cluster.fails(1, &["create", "demo", "--platform", "kubernetes"]).await.unwrap();
    // As after a new log-in.
    write_kubeconfig(&file, |_| ()).await.unwrap();
    cluster.create("demo", &[]).await.unwrap();
    assert_eq!(cluster.toygres.server_pid().unwrap(), pid, "another server");
}

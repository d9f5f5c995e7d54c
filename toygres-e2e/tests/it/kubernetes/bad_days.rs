//! Bad days on Kubernetes: pods that can't come up, objects that somebody deletes. Each ends in the
//! wanted state, or as failed with the true reason and in seconds, and a delete leaves nothing.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::Value;
use toygres_e2e::control::{Moment, hold_up, let_go, wait_held_up};
use toygres_e2e::kubernetes::{IN_SECONDS, Namespace, kubectl_with_input};
use toygres_e2e::run::humane;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Cluster, eventually};

/// Creates what can't come up. All words have to be in what is said of it, then and later.
async fn expect_failure(cluster: &Cluster, name: &str, flags: &[&str], words: &[&str]) -> Result<()> {
    let create = [&["create", name, "--platform", "kubernetes"], flags].concat();
    let run = cluster.fails(1, &create).await?;
    ensure!(run.took < IN_SECONDS, "it took too long: {run}");
    let reason = cluster.reason(name).await?;
    let operations = cluster.json(&["operations", name]).await?;
    let failure = operations[0]["error"].to_string();
    ensure!(operations[0]["state"] == "failed", "{operations:#}");
    for word in words {
        ensure!(run.stderr.contains(word), "create doesn't say {word:?}: {run}");
        ensure!(reason.contains(word), "get doesn't say {word:?}: {reason}");
        ensure!(failure.contains(&word.replace('"', "\\\"")), "operations don't say {word:?}: {operations:#}");
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_that_can_not_come_up_fails_in_seconds_with_the_clusters_words() {
    let images = "18=18,17=no-such-tag,16=localhost/pause:1";
    let Some(cluster) = Cluster::with("unable", |toygres| toygres.with("TOYGRES_IMAGES", images)).await.unwrap() else { return };
    cluster.serve().await.unwrap();
    let cases: BTreeMap<&str, (&[&str], &[&str])> = BTreeMap::from([
        ("image", (&["--version", "17"][..], &["postgres:no-such-tag", "can't be pulled"][..])),
        ("program", (&["--version", "16"], &["/bin/sh", "no such file"])),
        ("room", (&["--cpu", "5000"], &["no node can take the pod", "Insufficient cpu"])),
        ("class", (&["--storage-class", "no-such-class"], &["storageclass", "\"no-such-class\" not found"])),
        ("memory", (&["--memory", "16Mi"], &["more memory than its limit", "bootstrap"])),
    ]);
    let runs = cases.iter().map(|(name, (flags, words))| expect_failure(&cluster, name, flags, words));
    let mut failures = Vec::new();
    for (name, run) in cases.keys().zip(join_all(runs).await) {
        failures.extend(run.err().map(|error| format!("{name}: {error:#}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    // What is there of it is kept to be looked at, and the name is taken.
    let logs = cluster.ok(&["logs", "memory"]).await.unwrap();
    assert!(logs.stdout.contains("bootstrap"), "{logs}");
    let again = cluster.fails(1, &["create", "room", "--platform", "kubernetes"]).await.unwrap();
    assert!(again.stderr.contains("toygres start room") && !again.stderr.contains("toygres delete"), "{again}");
    for name in cases.keys() {
        cluster.delete(name).await.unwrap();
    }
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_server_that_ends_at_its_start_shows_its_own_last_words() {
    // Alpine's user id, which Debian's image doesn't know: an ordinary mistake.
    let Some(cluster) = Cluster::with("crash", |toygres| toygres.with("TOYGRES_IMAGE_USER_ID", "70")).await.unwrap() else {
        return;
    };
    expect_failure(&cluster, "demo", &[], &["ends whenever it is started", "effective user ID 70"]).await.unwrap();
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_quota_is_named_and_once_it_is_raised_the_create_works() {
    let Some(cluster) = Cluster::new("quota").await.unwrap() else { return };
    let manifest =
        r#"{"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}"#;
    kubectl_with_input(&["-n", &cluster.namespace.name, "apply", "-f", "-"], manifest).await.unwrap();
    // Enforced as soon as it has been counted.
    let counted = ["wait", "resourcequota/none", "--for=jsonpath={.status.hard.pods}=0", "--timeout=30s"];
    cluster.namespace.kubectl(&counted).await.unwrap();
    expect_failure(&cluster, "demo", &[], &["can't be made", "exceeded quota", "pods=0"]).await.unwrap();
    cluster.delete("demo").await.unwrap();
    cluster.namespace.kubectl(&["delete", "resourcequota", "none"]).await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
    cluster.create("demo", &[]).await.unwrap();
    cluster.expect_made("demo").await.unwrap();
}

/// A create that somebody disturbed works nevertheless, or says what is missing.
async fn expect_an_honest_end(cluster: &Cluster, name: &str, operation: &Value, words: &[&str]) -> Result<()> {
    if operation["state"] == "succeeded" {
        return cluster.expect_made(name).await;
    }
    let failure = operation["error"].to_string();
    ensure!(words.iter().any(|word| failure.contains(word)), "it doesn't say what is missing: {operation:#}");
    humane(operation["error"]["message"].as_str().context("it says nothing")?)
}

#[tokio::test]
async fn what_somebody_deletes_during_a_create_is_made_again_or_named() {
    let Some(cluster) = Cluster::new("disturbed").await.unwrap() else { return };
    let api = cluster.serve().await.unwrap();
    let control = cluster.toygres.control().await.unwrap();
    let mut begun = Vec::new();
    // Deployed and about to be waited for, or ready and about to be connected to.
    for (name, object, step) in [
        ("set", "statefulset/set", "wait-for-ready"),
        ("service", "service/service", "wait-for-ready"),
        ("claim", "persistentvolumeclaim/claim-data", "wait-for-ready"),
        ("password", "secret/password-connection", "get-connection-strings"),
    ] {
        hold_up(&control, name, step, Moment::Begin).await.unwrap();
        begun.push((name, object, api.begin_create(name).await.unwrap()));
    }
    wait_held_up(&control, i64::try_from(begun.len()).unwrap()).await.unwrap();
    for (_, object, _) in &begun {
        // A claim stays until its pod ends.
        cluster.namespace.kubectl(&["delete", object, "--wait=false"]).await.unwrap();
    }
    let_go(&control).await.unwrap();
    for (name, object, operation) in &begun {
        let ended = api.wait(operation).await.unwrap();
        let kind = object.split('/').next().unwrap();
        let words = [object.rsplit('/').next().unwrap(), kind, "StatefulSet", "Service", "PersistentVolumeClaim", "Secret"];
        expect_an_honest_end(&cluster, name, &ended, &words).await.with_context(|| (*object).to_owned()).unwrap();
    }
    for (name, ..) in &begun {
        cluster.delete(name).await.unwrap();
    }
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn what_somebody_deletes_of_a_running_instance_is_noticed_and_its_delete_ends_well() {
    let Some(cluster) = Cluster::new("robbed").await.unwrap() else { return };
    cluster.serve().await.unwrap();
    let names = ["set", "service", "secrets"];
    for created in join_all(names.iter().map(|name| cluster.create(name, &[]))).await {
        created.unwrap();
    }
    for objects in ["statefulset/set", "service/service", "secret/secrets-connection", "secret/secrets-tls"] {
        cluster.namespace.kubectl(&["delete", objects]).await.unwrap();
    }
    // Around data that is intact, what is missing is made again and told of, a password as a new one.
    for (name, part) in [("set", "the StatefulSet"), ("service", "the Service"), ("secrets", "the Secret with the password")] {
        let repaired = async || {
            let operations = cluster.json(&["operations", name]).await?;
            let cause = operations[0]["cause"].as_str().unwrap_or_default();
            Ok((cause.contains(part) && operations[0]["state"] == "succeeded").then_some(()))
        };
        eventually("a repair to be done", 2 * SOON, repaired).await.unwrap();
    }
    for name in names {
        eventually("it to be repaired", 2 * SOON, async || cluster.sql(name, "select 1").await.map(Some)).await.unwrap();
    }
    for name in names {
        cluster.delete(name).await.unwrap();
    }
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_namespace_that_somebody_deletes_takes_its_instances_along() {
    let Some(cluster) = Cluster::new("vanished").await.unwrap() else { return };
    let namespace = cluster.namespace.name.clone();
    let api = cluster.serve().await.unwrap();
    let control = cluster.toygres.control().await.unwrap();
    cluster.create("old", &[]).await.unwrap();
    hold_up(&control, "fresh", "wait-for-ready", Moment::Begin).await.unwrap();
    let create = api.begin_create("fresh").await.unwrap();
    wait_held_up(&control, 1).await.unwrap();
    toygres_e2e::kubernetes::kubectl(&["delete", "namespace", &namespace, "--timeout=60s"]).await.unwrap();
    let_go(&control).await.unwrap();

    let ended = api.wait(&create).await.unwrap();
    assert_eq!(ended["state"], "failed", "{ended:#}");
    let reason = cluster.reason("fresh").await.unwrap();
    assert!(reason.contains("fresh"), "{reason}");
    let fresh = cluster.fails(1, &["create", "third", "--platform", "kubernetes"]).await.unwrap();
    assert!(fresh.stderr.contains(&format!("kubectl create namespace {namespace}")), "{fresh}");
    let unhealthy = async || Ok((cluster.json(&["get", "old"]).await?["status"]["health_status"] == "unhealthy").then_some(()));
    eventually("an instance without its namespace to be unhealthy", SOON, unhealthy).await.unwrap();
    for name in ["old", "fresh"] {
        cluster.delete(name).await.unwrap();
    }
    assert_eq!(cluster.json(&["list"]).await.unwrap(), Value::Array(Vec::new()));

    // While it is being deleted nothing can be made in it.
    let ending = Namespace::new("ending").await.unwrap();
    let held = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["e2e.test/held"]}}"#;
    kubectl_with_input(&["-n", &ending.name, "apply", "-f", "-"], held).await.unwrap();
    toygres_e2e::kubernetes::kubectl(&["delete", "namespace", &ending.name, "--wait=false"]).await.unwrap();
    let refused = cluster.toygres.run(&["-n", &ending.name, "create", "demo", "--platform", "kubernetes"]).await.unwrap();
    ending.kubectl(&["patch", "configmap", "held", "--type=merge", "-p", r#"{"metadata": {"finalizers": null}}"#]).await.unwrap();
    let refused = refused.expect_code(1).unwrap().expect_humane().unwrap();
    assert!(refused.stderr.contains("being terminated") && refused.took < IN_SECONDS, "{refused}");
}

#[tokio::test]
async fn a_drain_waits_for_a_person_unless_the_spec_says_otherwise() {
    let Some(cluster) = Cluster::new("drained").await.unwrap() else { return };
    cluster.create("demo", &[]).await.unwrap();
    let eviction = r#"{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "demo-0"}}"#;
    let path = format!("/api/v1/namespaces/{}/pods/demo-0/eviction", cluster.namespace.name);
    // As `kubectl drain` asks.
    let evict = async || kubectl_with_input(&["create", "--raw", &path, "-f", "-"], eviction).await;
    let before = cluster.namespace.uid("pod/demo-0").await.unwrap();
    eventually("an eviction to be refused", SOON, async || {
        let refused = evict().await.err().context("it is evicted")?;
        ensure!(refused.to_string().contains("disruption budget"), "{refused:#}");
        Ok(Some(()))
    })
    .await
    .unwrap();
    let document = "name: demo\nplatform: kubernetes\ndisruption_budget: false\n";
    cluster.run_with_input(&["apply", "-f", "-"], document.as_bytes()).await.unwrap().expect_code(0).unwrap();
    // The cluster counts anew after a moment.
    eventually("an eviction", SOON, async || Ok(evict().await.map(Some).unwrap_or_default())).await.unwrap();
    eventually("another pod", SOON, async || {
        let there = cluster.namespace.uid("pod/demo-0").await?;
        Ok(there.filter(|there| Some(there) != before.as_ref()).map(drop))
    })
    .await
    .unwrap();
    cluster.delete("demo").await.unwrap();
}

#[tokio::test]
async fn a_pod_that_is_killed_comes_back_with_its_data_and_is_told_once() {
    let Some(cluster) = Cluster::new("killed").await.unwrap() else { return };
    cluster.create("demo", &[]).await.unwrap();
    cluster.sql("demo", "create table kept as select 42 as answer").await.unwrap();
    for (round, kill) in [&["delete", "pod", "demo-0"][..], &["delete", "pod", "demo-0", "--now"]].into_iter().enumerate() {
        let before = cluster.namespace.uid("pod/demo-0").await.unwrap();
        cluster.namespace.kubectl(kill).await.unwrap();
        let told = async || {
            let events = cluster.json(&["events", "demo"]).await?;
            let kinds: Vec<_> = events.as_array().into_iter().flatten().filter_map(|event| event["kind"].as_str()).collect();
            let expected: Vec<_> = [&["create_requested", "instance_running"][..]]
                .into_iter()
                .chain((0..=round).map(|_| &["server_exited", "server_restarted"][..]))
                .flatten()
                .collect();
            ensure!(kinds.iter().collect::<Vec<_>>() == expected, "{events:#}");
            Ok(Some(()))
        };
        eventually("the end and the return of the server among the events", SOON, told).await.unwrap();
        assert_ne!(cluster.namespace.uid("pod/demo-0").await.unwrap(), before);
        let list = cluster.json(&["list"]).await.unwrap();
        assert_eq!(list[0]["status"]["health_status"], "healthy", "{list:#}");
        assert_eq!(cluster.sql("demo", "select answer from kept").await.unwrap(), "42");
    }
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

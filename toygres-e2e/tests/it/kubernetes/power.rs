//! Pods that are stopped, started and restarted; adopted after the metadata store was lost; and put back where somebody
//! deleted what is around their data.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Cluster, eventually};

async fn keep_42(cluster: &Cluster, name: &str) {
    cluster.sql(name, "create table kept as select 42 as answer").await.unwrap();
}

async fn expect_42(cluster: &Cluster, name: &str) -> Result<()> {
    let instance = cluster.json(&["get", name]).await?;
    ensure!(instance["state"] == "running" && instance["status"]["health_status"] == "healthy", "{instance:#}");
    ensure!(instance["generation"] == instance["observed_generation"], "{instance:#}");
    ensure!(cluster.sql(name, "select answer from kept").await? == "42");
    Ok(())
}

async fn expect_stopped(cluster: &Cluster, name: &str) -> Result<()> {
    let instance = cluster.json(&["get", name]).await?;
    ensure!(instance["state"] == "stopped" && instance["status"]["health_status"].is_null(), "{instance:#}");
    ensure!(instance["generation"] == instance["observed_generation"], "{instance:#}");
    ensure!(cluster.namespace.uid(&format!("pod/{name}-0")).await?.is_none(), "its pod is there");
    ensure!(cluster.namespace.uid(&format!("service/{name}")).await?.is_some(), "its Service is gone");
    Ok(())
}

/// The connection's URI, with the password.
async fn uri(cluster: &Cluster, name: &str) -> String {
    cluster.api().unwrap().uri(name).await.unwrap()
}

#[tokio::test]
async fn a_stopped_instance_has_no_pod_and_keeps_its_data_its_address_and_its_password() {
    let Some(cluster) = Cluster::new("power").await.unwrap() else { return };
    let api = cluster.serve().await.unwrap().on_kubernetes(&cluster.namespace.name);
    cluster.create("demo", &[]).await.unwrap();
    keep_42(&cluster, "demo").await;
    let before = (uri(&cluster, "demo").await, cluster.namespace.uid("service/demo").await.unwrap());
    let claim = cluster.namespace.uid("persistentvolumeclaim/demo-data").await.unwrap();
    for _ in 0..2 {
        let stopped = cluster.ok(&["stop", "demo"]).await.unwrap();
        assert!(stopped.stdout.starts_with("demo is stopped ("), "{stopped}");
        expect_stopped(&cluster, "demo").await.unwrap();
        let again = cluster.ok(&["stop", "demo"]).await.unwrap();
        assert_eq!(again.stdout, "demo is stopped already\n");
        let refused = cluster.fails(1, &["connect", "demo"]).await.unwrap();
        assert!(refused.stderr.contains("toygres start demo"), "{refused}");
        let why = cluster.ok(&["why", "demo"]).await.unwrap();
        assert!(why.stdout.contains("toygres start demo") && !why.stdout.contains("toygres delete"), "{why}");
        // A server that starts leaves it as it is.
        cluster.toygres.kill_server().await.unwrap();
        cluster.ok(&["list"]).await.unwrap();
        expect_stopped(&cluster, "demo").await.unwrap();
        let started = cluster.ok(&["start", "demo"]).await.unwrap();
        assert!(started.stdout.starts_with("demo is started ("), "{started}");
        expect_42(&cluster, "demo").await.unwrap();
    }
    let after = (uri(&cluster, "demo").await, cluster.namespace.uid("service/demo").await.unwrap());
    assert_eq!((after, cluster.namespace.uid("persistentvolumeclaim/demo-data").await.unwrap()), (before, claim));

    let pod = cluster.namespace.uid("pod/demo-0").await.unwrap();
    let restarted = cluster.ok(&["restart", "demo"]).await.unwrap();
    assert!(restarted.stdout.starts_with("demo is restarted ("), "{restarted}");
    assert_ne!(cluster.namespace.uid("pod/demo-0").await.unwrap(), pod);
    expect_42(&cluster, "demo").await.unwrap();

    // Killed in the middle of each.
    for (verb, end) in [("stop", "stopped"), ("start", "running"), ("restart", "running")] {
        let api = cluster.api().unwrap();
        drop(cluster.ok(&[verb, "demo", "--no-wait"]).await.unwrap());
        cluster.toygres.kill_server().await.unwrap();
        cluster.ok(&["list"]).await.unwrap();
        drop(api);
        let operation = cluster.json(&["operations", "demo"]).await.unwrap()[0]["id"].as_str().unwrap().to_owned();
        cluster.api().unwrap().wait_success(&operation).await.unwrap();
        assert_eq!(cluster.json(&["get", "demo"]).await.unwrap()["state"], end);
        if end == "stopped" {
            expect_stopped(&cluster, "demo").await.unwrap();
        } else {
            expect_42(&cluster, "demo").await.unwrap();
        }
    }
    drop(api);
    cluster.ok(&["stop", "demo"]).await.unwrap();
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn instances_are_adopted_after_the_metadata_store_was_lost() {
    let Some(cluster) = Cluster::new("adopt").await.unwrap() else { return };
    cluster.serve().await.unwrap();
    for name in ["runs", "rests"] {
        cluster.create(name, &["--label", "team=a"]).await.unwrap();
        keep_42(&cluster, name).await;
    }
    let before = (uri(&cluster, "runs").await, cluster.json(&["get", "runs"]).await.unwrap());
    let rests = uri(&cluster, "rests").await;
    cluster.ok(&["stop", "rests"]).await.unwrap();
    let pod = cluster.namespace.uid("pod/runs-0").await.unwrap();

    cluster.toygres.ok(&["server", "stop"]).await.unwrap();
    std::fs::remove_dir_all(cluster.toygres.state_dir().join("control")).unwrap();
    cluster.serve().await.unwrap();
    assert_eq!(cluster.json(&["list"]).await.unwrap(), json!([]));
    let listed = cluster.json(&["adopt"]).await.unwrap();
    // Others' instances may be on the cluster too.
    let ours = listed.as_array().unwrap().iter().filter(|found| found["namespace"] == *cluster.namespace.name);
    let mut names: Vec<_> = ours.map(|found| found["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["rests", "runs"], "{listed:#}");
    let refused = cluster.fails(1, &["create", "runs", "--platform", "kubernetes"]).await.unwrap();
    assert!(refused.stderr.contains("toygres adopt runs"), "{refused}");

    let adopted = cluster.ok(&["adopt", "runs"]).await.unwrap();
    assert!(adopted.stdout.starts_with("runs is adopted ("), "{adopted}");
    let after = (uri(&cluster, "runs").await, cluster.json(&["get", "runs"]).await.unwrap());
    assert_eq!(after.0, before.0);
    for field in ["id", "spec", "state", "cluster_id"] {
        assert_eq!(after.1[field], before.1[field], "{field}");
    }
    expect_42(&cluster, "runs").await.unwrap();
    assert_eq!(cluster.namespace.uid("pod/runs-0").await.unwrap(), pod, "its server was restarted");
    cluster.ok(&["adopt", "rests"]).await.unwrap();
    expect_stopped(&cluster, "rests").await.unwrap();
    cluster.ok(&["start", "rests"]).await.unwrap();
    assert_eq!(uri(&cluster, "rests").await, rests);
    expect_42(&cluster, "rests").await.unwrap();
    let again = cluster.fails(1, &["adopt", "runs"]).await.unwrap();
    assert!(again.stderr.contains("on record already"), "{again}");
    for name in ["runs", "rests"] {
        cluster.delete(name).await.unwrap();
    }
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn what_somebody_deletes_around_the_data_is_put_back_and_no_delete_is_advised() {
    let Some(cluster) = Cluster::new("putback").await.unwrap() else { return };
    cluster.serve().await.unwrap();
    cluster.create("demo", &[]).await.unwrap();
    keep_42(&cluster, "demo").await;
    let before = uri(&cluster, "demo").await;
    let document = format!("name: demo\nnamespace: {}\nplatform: kubernetes\n", cluster.namespace.name);
    // By toygres itself, in a while.
    cluster.namespace.kubectl(&["delete", "statefulset", "demo"]).await.unwrap();
    let repaired = async || expect_42(&cluster, "demo").await.map(Some);
    let gone = async || Ok((cluster.json(&["get", "demo"]).await?["status"]["health_status"] == "unhealthy").then_some(()));
    eventually("an instance without its StatefulSet to be unhealthy", SOON, gone).await.unwrap();
    eventually("it to be repaired", 2 * SOON, repaired).await.unwrap();
    let operations = cluster.json(&["operations", "demo"]).await.unwrap();
    assert!(operations[0]["kind"] == "update" && operations[0]["actor"] == "toygres", "{operations:#}");
    assert!(operations[0]["cause"].to_string().contains("StatefulSet"), "{operations:#}");
    assert_eq!(uri(&cluster, "demo").await, before);
    for way in ["apply", "start"] {
        // As after a repair that failed, which isn't tried again at once: it is left to those who ask for it.
        let control = cluster.toygres.control().await.unwrap();
        let failed = "UPDATE toygres.operations SET state = 'failed', finished_at = now() WHERE kind = 'update'";
        sqlx::query(failed).execute(&control).await.unwrap();
        control.close().await;
        cluster.namespace.kubectl(&["delete", "statefulset", "demo"]).await.unwrap();
        eventually("an instance without its StatefulSet to be unhealthy", SOON, gone).await.unwrap();
        let why = cluster.ok(&["why", "demo"]).await.unwrap().expect_humane().unwrap();
        println!("{why}");
        assert!(why.stdout.contains("toygres start demo"), "it doesn't say what to do: {why}");
        assert!(!why.stdout.contains("toygres delete"), "it advises to delete intact data: {why}");
        match way {
            "apply" => {
                let dry =
                    cluster.run_with_input(&["apply", "-f", "-", "--dry-run", "-o", "json"], document.as_bytes()).await.unwrap();
                let plans: Value = dry.expect_code(0).unwrap().json().unwrap();
                assert_eq!((&plans[0]["action"], &plans[0]["changes"]), (&json!("update"), &json!([])), "{plans:#}");
                let applied = cluster.run_with_input(&["apply", "-f", "-"], document.as_bytes()).await.unwrap();
                let applied = applied.expect_code(0).unwrap();
                assert!(applied.stdout.contains("/demo changed ("), "{applied}");
            }
            _ => drop(cluster.ok(&["start", "demo"]).await.unwrap()),
        }
        expect_42(&cluster, "demo").await.unwrap();
        assert_eq!(uri(&cluster, "demo").await, before);
    }
    let unchanged = cluster.run_with_input(&["apply", "-f", "-"], document.as_bytes()).await.unwrap();
    assert!(unchanged.expect_code(0).unwrap().stdout.contains("unchanged"));
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

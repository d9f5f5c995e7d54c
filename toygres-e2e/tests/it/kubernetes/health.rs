//! How pods are: seen by a probe over toygres's own way in.

use anyhow::{Context, ensure};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Cluster, eventually};

#[tokio::test]
async fn a_pod_is_looked_at_by_itself_with_its_volume_and_what_it_owes() {
    let Some(cluster) = Cluster::new("health").await.unwrap() else { return };
    let api = cluster.serve().await.unwrap().on_kubernetes(&cluster.namespace.name);
    cluster.create("demo", &[]).await.unwrap();
    let expect = async |status: &str, kinds: &[&str]| {
        eventually(&format!("the health {status}"), SOON, async || {
            let all = cluster.json(&["health"]).await?;
            let found = &all[0];
            let reasons = found["health_reasons"].as_array().context("no reasons")?;
            let seen: Vec<_> = reasons.iter().filter_map(|reason| reason["kind"].as_str()).collect();
            ensure!(found["health_status"] == status && seen == kinds, "{all:#}");
            ensure!(found["health_check_orchestration_id"].as_str().is_some_and(|id| id.starts_with("health-")), "{all:#}");
            Ok(Some(()))
        })
        .await
    };
    expect("healthy", &[]).await.unwrap();
    // The kubelet has the pod write down how full its volume is.
    eventually("its volume to be known", SOON, async || {
        let page = api.get(&format!("/v1/instances/demo/metrics?namespace={}", cluster.namespace.name)).await?.text;
        ensure!(page.contains("toygres_volume_size_bytes ") && page.contains("\npg_up 1\n"), "{page}");
        Ok(Some(()))
    })
    .await
    .unwrap();
    for statement in ["ALTER SYSTEM SET max_connections = 77", "SELECT pg_reload_conf()"] {
        cluster.ok(&["psql", "--superuser", "demo", "-XAtqc", statement]).await.unwrap();
    }
    expect("degraded", &["restart_pending"]).await.unwrap();
    let why = cluster.ok(&["why", "demo"]).await.unwrap();
    assert!(why.stdout.contains("max_connections"), "{why}");
    cluster.ok(&["restart", "demo"]).await.unwrap();
    expect("healthy", &[]).await.unwrap();
}

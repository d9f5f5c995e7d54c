//! Operations on Kubernetes: a create that gets nowhere is cancelled and leaves nothing, one that failed
//! is tried again once its cause is gone, a change of who may reach an instance is cancelled.

use std::time::Instant;

use serde_json::Value;
use sqlx::types::chrono::DateTime;
use toygres_e2e::control::{Moment, hold_up, let_go, wait_blocked, wait_held_up};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Cluster, eventually};

#[tokio::test]
async fn a_create_that_waits_for_an_image_that_can_not_be_pulled_is_cancelled_and_leaves_nothing() {
    // Nobody answers there, so the pull goes on and on.
    let images = "18=18,17=192.0.2.1:5000/postgres:17";
    let Some(cluster) = Cluster::with("cancel", |toygres| toygres.with("TOYGRES_IMAGES", images)).await.unwrap() else { return };
    let api = cluster.serve().await.unwrap();
    let create = cluster.json(&["create", "demo", "--platform", "kubernetes", "--version", "17", "--no-wait"]).await.unwrap();
    let id = create["id"].as_str().unwrap();
    eventually("the pod to wait for its image, and its operation for the pod", SOON, async || {
        let pod = cluster.namespace.kubectl(&["get", "pod", "demo-0", "--no-headers"]).await?;
        let operation = api.get(&format!("/v1/operations/{id}")).await?.expect(200)?;
        Ok((pod.contains("ContainerCreating") && operation["steps"][1]["state"] == "running").then_some(()))
    })
    .await
    .unwrap();
    let asked = Instant::now();
    let cancelled = cluster.ok(&["operations", "cancel", id]).await.unwrap();
    println!("cancelled in {:.1?}: {}", asked.elapsed(), cancelled.stdout.trim());
    let operation = api.wait(id).await.unwrap();
    assert_eq!(operation["state"], "cancelled", "{operation:#}");
    // Given up at once. The pod's removal takes longer: a kubelet doesn't let go of a pull that hangs
    // before its own limit of half a minute.
    let moment = |value: &Value| DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap();
    let noticed = moment(&operation["steps"][1]["finished_at"]) - moment(&operation["cancel_requested_at"]);
    assert!(operation["steps"][1]["error"]["kind"] == "cancelled" && noticed.num_seconds() < 25, "{operation:#}");
    cluster.namespace.expect_empty().await.unwrap();
    assert_eq!(cluster.json(&["list"]).await.unwrap(), Value::Array(Vec::new()));
    // The name is as good as new.
    cluster.create("demo", &["--version", "18"]).await.unwrap();
    cluster.expect_made("demo").await.unwrap();
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_failed_create_works_when_it_is_tried_again_after_its_cause_is_gone() {
    let Some(mut cluster) = Cluster::with("retry", |toygres| toygres.with("TOYGRES_IMAGES", "17=no-such-tag")).await.unwrap()
    else {
        return;
    };
    cluster.serve().await.unwrap();
    cluster.fails(1, &["create", "demo", "--platform", "kubernetes"]).await.unwrap();
    let failed = cluster.json(&["operations", "demo"]).await.unwrap()[0]["id"].as_str().unwrap().to_owned();
    cluster.toygres.ok(&["server", "stop"]).await.unwrap();
    cluster.toygres = cluster.toygres.with("TOYGRES_IMAGES", "17=17");
    cluster.serve().await.unwrap();
    let retried = cluster.ok(&["operations", "retry", &failed]).await.unwrap();
    println!("{}", retried.stdout.trim());
    cluster.expect_made("demo").await.unwrap();
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_change_that_is_cancelled_leaves_the_instance_as_private_as_it_was() {
    let Some(cluster) = Cluster::new("private").await.unwrap() else { return };
    let api = cluster.serve().await.unwrap();
    let control = cluster.toygres.control().await.unwrap();
    cluster.create("demo", &[]).await.unwrap();
    let (before, pod) = (api.instance("demo").await.unwrap(), cluster.namespace.uid("pod/demo-0").await.unwrap());
    hold_up(&control, "demo", "get-connection-strings", Moment::End).await.unwrap();
    let update = begin_update(&control).await.unwrap();
    wait_held_up(&control, 1).await.unwrap();
    let service = cluster.namespace.object("service/demo").await.unwrap();
    assert_eq!(service["spec"]["type"], "LoadBalancer", "it is public by now: {service:#}");
    let asked = tokio::spawn({
        let (api, path) = (api.clone(), format!("/v1/operations/{update}/cancel"));
        async move { api.post(&path).await.unwrap().expect(202) }
    });
    wait_blocked(&control, "FOR NO KEY UPDATE").await.unwrap();
    let_go(&control).await.unwrap();
    asked.await.unwrap().unwrap();
    let ended = api.wait(&update).await.unwrap();
    assert_eq!(ended["state"], "cancelled", "{ended:#}");
    let service = cluster.namespace.object("service/demo").await.unwrap();
    assert_eq!(service["spec"]["type"], "ClusterIP", "{service:#}");
    assert_eq!(service["status"]["loadBalancer"]["ingress"], Value::Null, "{service:#}");
    let after = api.instance("demo").await.unwrap();
    for field in ["state", "spec"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    assert_eq!(before["status"]["ip_connection_string"], after["status"]["ip_connection_string"]);
    assert_eq!(after["generation"], after["observed_generation"], "{after:#}");
    assert_eq!(cluster.namespace.uid("pod/demo-0").await.unwrap(), pod, "its server was restarted");
    cluster.expect_made("demo").await.unwrap();
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

/// An update whose row was written by a server that was killed then: the sweep begins it.
async fn begin_update(control: &sqlx::PgPool) -> anyhow::Result<String> {
    let (id,): (sqlx::types::Uuid,) = sqlx::query_as(
        "WITH before AS (SELECT * FROM toygres.instances WHERE name = 'demo' AND state <> 'deleted'),
            changed AS (UPDATE toygres.instances i SET spec = i.spec || $1, generation = i.generation + 1
                FROM before WHERE i.id = before.id RETURNING i.*)
         INSERT INTO toygres.operations (id, kind, instance_id, namespace, instance_name, cause, place, summary, spec_before, spec,
            generation, state_before)
         SELECT gen_random_uuid(), 'update', changed.id, changed.namespace, 'demo', 'a test', changed.cluster_id, 'a test',
            before.spec, changed.spec, changed.generation, changed.state
         FROM changed, before RETURNING id",
    )
    .bind(serde_json::json!({ "use_load_balancer": true }))
    .fetch_one(control)
    .await?;
    Ok(id.to_string())
}

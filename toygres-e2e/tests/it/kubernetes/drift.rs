//! What others change of pods' objects: told at once by `diff`, put right by the server, and left alone where somebody fights.

use anyhow::ensure;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Cluster, eventually};

#[tokio::test]
async fn what_others_change_is_put_right_and_told_and_a_fight_is_left_to_people() {
    let Some(cluster) = Cluster::new("drift").await.unwrap() else { return };
    cluster.serve().await.unwrap();
    cluster.create("demo", &[]).await.unwrap();
    let before = cluster.namespace.uid("pod/demo-0").await.unwrap();
    let same = cluster.ok(&["diff", "demo"]).await.unwrap();
    assert!(same.stdout.is_empty() && same.stderr.contains("as its spec has it"), "{same}");
    // Of the StatefulSet, too, whose image was pinned when its pod ran.
    cluster.namespace.kubectl(&["set", "image", "statefulset/demo", "postgres=example.com/another:1"]).await.unwrap();
    let told = cluster.fails(1, &["diff", "demo"]).await.unwrap();
    assert!(told.stdout.contains(".image of the StatefulSet is example.com/another:1, not "), "{told}");
    eventually("the image to be put right", 3 * SOON, async || {
        Ok((cluster.run(&["diff", "demo"]).await?.code == Some(0)).then_some(()))
    })
    .await
    .unwrap();
    let patch = async |kind: &str| {
        let patch = format!(r#"{{"spec":{{"type":"{kind}"}}}}"#);
        cluster.namespace.kubectl(&["patch", "service/demo", "--field-manager=rival", "--type=merge", "-p", &patch]).await
    };
    let repaired = async |times: usize| {
        eventually("the Service to be put right", 3 * SOON, async || {
            let operations = cluster.json(&["operations", "demo"]).await?;
            let repairs = operations.as_array().into_iter().flatten().filter(|operation| {
                operation["cause"].as_str().is_some_and(|cause| cause.contains("changed by rival"))
                    && operation["state"] == "succeeded"
            });
            Ok((repairs.count() == times).then_some(()))
        })
        .await
    };
    for times in 1..=2 {
        patch("NodePort").await.unwrap();
        if times == 1 {
            let told = cluster.fails(1, &["diff", "demo"]).await.unwrap();
            assert!(told.stdout.contains("spec.type of the Service is NodePort, not ClusterIP (changed by rival)"), "{told}");
        }
        repaired(times).await.unwrap();
        let kind = cluster.namespace.kubectl(&["get", "service/demo", "-o", "jsonpath={.spec.type}"]).await.unwrap();
        assert_eq!(kind, "ClusterIP");
    }
    patch("NodePort").await.unwrap();
    eventually("the fight to be told", 3 * SOON, async || {
        let events = cluster.ok(&["events", "demo"]).await?;
        ensure!(events.stdout.contains("drift_fought") && events.stdout.contains("rival"), "{events}");
        Ok(Some(()))
    })
    .await
    .unwrap();
    let kind = cluster.namespace.kubectl(&["get", "service/demo", "-o", "jsonpath={.spec.type}"]).await.unwrap();
    assert_eq!((kind.as_str(), cluster.namespace.uid("pod/demo-0").await.unwrap()), ("NodePort", before));
    // Whoever asks for it has it put right now.
    let document = "name: demo\nplatform: kubernetes\n";
    cluster.run_with_input(&["apply", "-f", "-"], document.as_bytes()).await.unwrap().expect_code(0).unwrap();
    cluster.ok(&["diff", "demo"]).await.unwrap();

    // A volume that somebody has grown stays as it is.
    let grown = r#"{"spec":{"resources":{"requests":{"storage":"2000G"}}}}"#;
    if cluster.namespace.kubectl(&["patch", "pvc/demo-data", "--type=merge", "-p", grown]).await.is_ok() {
        let told = cluster.fails(1, &["diff", "demo"]).await.unwrap();
        assert!(told.stdout.contains("PersistentVolumeClaim is 2"), "{told}");
    }
    cluster.delete("demo").await.unwrap();
}

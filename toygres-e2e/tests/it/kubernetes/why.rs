//! `toygres why` on Kubernetes: pods that can't come up, each for real.

use anyhow::{Result, ensure};
use futures::future::join_all;
use serde_json::Value;
use toygres_e2e::kubernetes::IN_SECONDS;
use toygres_e2e::run::humane;
use toygres_e2e::{Cluster, eventually};

/// Waits until that is told to be the cause, with those words among the evidence or the timeline.
async fn expect_cause(cluster: &Cluster, name: &str, cause: &str, words: &str) -> Result<Value> {
    let told = eventually(&format!("{cause} of {name} to be told"), IN_SECONDS, async || {
        let told = cluster.json(&["why", name]).await?;
        ensure!(told["verdict"]["likely_cause"] == cause, "{told:#}");
        Ok(Some(told))
    })
    .await?;
    let text = cluster.ok(&["why", name]).await?.stdout;
    println!("$ toygres why {name}\n{text}");
    humane(&text)?;
    ensure!(text.contains(words) && text.contains("What to do"), "no word of {words:?}: {text}");
    ensure!(text.contains(&format!("-n {}", cluster.namespace.name)), "a command without its namespace: {text}");
    Ok(told)
}

#[tokio::test]
async fn a_bad_image_and_no_room() {
    let Some(cluster) = Cluster::with("why", |toygres| toygres.with("TOYGRES_IMAGES", "18=18,17=no-such-tag")).await.unwrap()
    else {
        return;
    };
    cluster.serve().await.unwrap();
    let create = async |name: &str, flags: &[&str]| {
        cluster.fails(1, &[&["create", name, "--platform", "kubernetes"], flags].concat()).await
    };
    let cases = [("image", &["--version", "17"][..]), ("room", &["--cpu", "4000"])];
    for failed in join_all(cases.map(|(name, flags)| create(name, flags))).await {
        failed.unwrap();
    }
    let told = expect_cause(&cluster, "image", "bad_image", "no-such-tag").await.unwrap();
    assert!(told["timeline"].to_string().contains("wait-for-ready"), "{told:#}");
    expect_cause(&cluster, "room", "no_room", "Insufficient cpu").await.unwrap();
    for (name, _) in cases {
        cluster.delete(name).await.unwrap();
    }
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_server_that_crashes_at_its_start_and_one_that_crashes_later() {
    let Some(cluster) = Cluster::new("why-crash").await.unwrap() else { return };
    cluster.create("demo", &[]).await.unwrap();
    let well = cluster.json(&["why", "demo"]).await.unwrap();
    assert!(well["verdict"]["likely_cause"].is_null(), "{well:#}");
    // Its data breaks, and it ends.
    let breaking = "truncate -s 0 \"$PGDATA/global/pg_control\" && kill -QUIT 1";
    cluster.namespace.kubectl(&["exec", "demo-0", "--", "bash", "-c", breaking]).await.unwrap();
    let told = expect_cause(&cluster, "demo", "crash_loop", "pg_control").await.unwrap();
    assert!(told["timeline"].to_string().contains("server_exited"), "{told:#}");
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

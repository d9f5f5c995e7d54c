//! `toygres logs --follow` of an instance on Kubernetes, while its pod is deleted and the server killed.

use std::time::Duration;

use anyhow::{Context, Result};
use toygres_e2e::{Cluster, Follower, eventually, wait_until};

/// How long a pod may take to be there again.
const RETRY_TIMEOUT: Duration = Duration::from_secs(90);

/// Has the server log a line, as soon as it answers.
async fn say(cluster: &Cluster, words: &str) -> Result<()> {
    let query = format!("do $$ begin raise log 'said {words}'; end $$");
    eventually(words, RETRY_TIMEOUT, async || cluster.sql("demo", &query).await.map(Some)).await.map(drop)
}

#[tokio::test]
async fn following_goes_on_over_pods_and_servers() {
    let Some(cluster) = Cluster::new("logs").await.unwrap() else { return };
    cluster.create("demo", &[]).await.unwrap();
    let follower = Follower::start(cluster.command(&["logs", "demo", "--follow", "--since", "1h"])).unwrap();
    let said = || -> Vec<String> {
        let lines = follower.lines();
        lines.iter().filter_map(|line| Some(line.split_once("LOG:  said ")?.1.to_owned())).collect()
    };
    let mut expected = Vec::new();
    for event in ["nothing", "server", "crash", "pod", "pod and server"] {
        match event {
            "crash" => drop(cluster.namespace.kubectl(&["exec", "demo-0", "--", "sh", "-c", "kill -QUIT 1"]).await.unwrap()),
            "server" => cluster.toygres.kill_server().await.unwrap(),
            "pod" => drop(cluster.namespace.kubectl(&["delete", "pod", "demo-0"]).await.unwrap()),
            "pod and server" => {
                cluster.namespace.kubectl(&["delete", "pod", "demo-0"]).await.unwrap();
                cluster.toygres.kill_server().await.unwrap();
            }
            _ => {}
        }
        for number in 0..3 {
            expected.push(format!("{event} {number}"));
            say(&cluster, expected.last().unwrap()).await.unwrap();
        }
        let all_seen = wait_until(event, RETRY_TIMEOUT, || said().len() >= expected.len()).await;
        all_seen.with_context(|| format!("{:#?}", follower.lines())).unwrap();
        assert_eq!(said(), expected, "after {event}");
    }
    assert!(follower.lines().iter().any(|line| line.contains("starting PostgreSQL")));
    cluster.delete("demo").await.unwrap();
    let (code, words) = follower.end().await.unwrap();
    assert_eq!(code, Some(0), "{words}");
    cluster.namespace.expect_empty().await.unwrap();
}

//! The server killed while it works on Kubernetes: the next one finishes what was begun, with one
//! set of objects, or none. And two servers on one database, of which one goes on for both.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::Value;
use sqlx::PgPool;
use toygres_e2e::by_hand::{Programs, Server};
use toygres_e2e::control::{Moment, hold_up, let_go, wait_held_up};
use toygres_e2e::wait::{SOON, wait_until};
use toygres_e2e::{Cluster, Toygres, eventually, place, process, required_or_skip};

/// The names of an instance's objects that hold what it is; all others come and go with them.
fn set_of(name: &str) -> [String; 5] {
    ["statefulset.apps/%", "service/%", "persistentvolumeclaim/%-data", "secret/%-connection", "secret/%-tls"]
        .map(|object| object.replace('%', name))
}

/// Selects an instance's objects.
fn labelled(name: &str) -> String {
    format!("app.kubernetes.io/instance={name}")
}

/// The uids of what there is of an instance.
async fn uids(cluster: &Cluster, name: &str) -> Result<BTreeSet<String>> {
    let objects = set_of(name);
    let found = join_all(objects.iter().map(|object| cluster.namespace.uid(object))).await;
    found.into_iter().filter_map(Result::transpose).collect()
}

/// Exactly one instance, in a pod that was started once.
async fn expect_one(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.expect_made(name).await?;
    ensure!(uids(cluster, name).await?.len() == set_of(name).len(), "not all of {name} is there");
    let pods = cluster.namespace.kubectl(&["get", "pods", "-l", &labelled(name), "-o", "name"]).await?;
    ensure!(pods.lines().count() == 1, "{pods}");
    let pod = cluster.namespace.object(&format!("pod/{name}-0")).await?;
    ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == 0, "it was started more than once: {pod:#}");
    Ok(())
}

/// Objects of which there is none any more, and rows that say so.
async fn expect_none(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.fails(1, &["get", name]).await?;
    let left = cluster.namespace.kubectl(&["get", "all,secrets,pvc,cm,sa", "-l", &labelled(name), "-o", "name"]).await?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

#[tokio::test]
async fn creates_and_deletes_are_finished_at_whichever_step_the_server_was_killed() {
    let Some(cluster) = Cluster::new("kill-steps").await.unwrap() else { return };
    let api = cluster.serve().await.unwrap();
    let control = cluster.toygres.control().await.unwrap();
    let creates = [
        ("c-undeployed", "deploy-postgres", Moment::Begin),
        ("c-deployed", "deploy-postgres", Moment::End),
        ("c-ready", "wait-for-ready", Moment::End),
        ("c-recorded", "running", Moment::Record),
    ];
    let deletes = [
        ("d-undone", "delete-postgres", Moment::Begin),
        ("d-done", "delete-postgres", Moment::End),
        ("d-recorded", "deleted", Moment::Record),
    ];
    for made in join_all(deletes.iter().map(|(name, ..)| cluster.create(name, &[]))).await {
        made.unwrap();
    }
    let mut begun = Vec::new();
    for (name, step, moment) in creates.iter().chain(&deletes) {
        hold_up(&control, name, step, *moment).await.unwrap();
        let is_create = name.starts_with('c');
        begun.push(if is_create { api.begin_create(name).await.unwrap() } else { api.begin_delete(name).await.unwrap() });
    }
    wait_held_up(&control, i64::try_from(begun.len()).unwrap()).await.unwrap();
    let before = uids(&cluster, "c-ready").await.unwrap();
    cluster.toygres.kill_server().await.unwrap();
    let_go(&control).await.unwrap();
    // Any command that needs the server starts the next one.
    cluster.json(&["list"]).await.unwrap();
    let api = cluster.api().unwrap();
    for id in &begun {
        api.wait_success(id).await.unwrap();
    }
    for (name, ..) in &creates {
        expect_one(&cluster, name).await.with_context(|| (*name).to_owned()).unwrap();
    }
    assert_eq!(uids(&cluster, "c-ready").await.unwrap(), before, "what was ready was made anew");
    for (name, ..) in &deletes {
        expect_none(&cluster, name).await.with_context(|| (*name).to_owned()).unwrap();
    }
    for deleted in join_all(creates.iter().map(|(name, ..)| cluster.delete(name))).await {
        deleted.unwrap();
    }
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_kill_in_the_middle_of_the_objects_themselves_leaves_no_half() {
    let Some(cluster) = Cluster::new("kill-objects").await.unwrap() else { return };
    let api = cluster.serve().await.unwrap();
    // The first thing that is made, and the last.
    for (number, sign) in ["secret/%-connection", "pod/%-0"].into_iter().enumerate() {
        let name = format!("demo-{number}");
        let api = if number == 0 { api.clone() } else { cluster.api().unwrap() };
        let create = api.begin_create(&name).await.unwrap();
        let sign = sign.replace('%', &name);
        eventually(&sign, SOON, async || cluster.namespace.uid(&sign).await).await.unwrap();
        cluster.toygres.kill_server().await.unwrap();
        cluster.ok(&["operations", "watch", &create]).await.unwrap();
        expect_one(&cluster, &name).await.with_context(|| sign.clone()).unwrap();
    }
    for (number, object) in ["statefulset/%", "secret/%-tls"].into_iter().enumerate() {
        let name = format!("demo-{number}");
        let delete = cluster.api().unwrap().begin_delete(&name).await.unwrap();
        let gone = object.replace('%', &name);
        let is_going = async || {
            let jsonpath = "jsonpath={.metadata.name} {.metadata.deletionTimestamp}";
            let seen = cluster.namespace.kubectl(&["get", &gone, "--ignore-not-found", "-o", jsonpath]).await?;
            Ok((seen.split_whitespace().count() != 1).then_some(()))
        };
        eventually(&format!("{gone} to go"), SOON, is_going).await.unwrap();
        cluster.toygres.kill_server().await.unwrap();
        cluster.ok(&["operations", "watch", &delete]).await.unwrap();
    }
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_kill_while_the_password_is_settled_leaves_one_secret_with_it() {
    let point = |toygres: Toygres| toygres.with("TOYGRES_KILL_AT", "password-settled");
    let Some(mut cluster) = Cluster::with("kill-password", point).await.unwrap() else { return };
    let create = cluster.serve().await.unwrap().begin_create("demo").await.unwrap();
    let killed = cluster.toygres.server_pid().unwrap();
    wait_until("the server to be killed", SOON, || !process::is_alive(killed)).await.unwrap();
    let passwords = async || cluster.namespace.kubectl(&["get", "secrets", "-o", "name"]).await.unwrap();
    let secrets = passwords().await;
    assert!(secrets.contains("secret/toygres-new-") && secrets.contains("secret/demo-connection"), "{secrets}");
    cluster.toygres = cluster.toygres.without("TOYGRES_KILL_AT");
    cluster.ok(&["operations", "watch", &create]).await.unwrap();
    assert_eq!(cluster.sql("demo", "select 7").await.unwrap(), "7");
    let secrets = cluster.namespace.kubectl(&["get", "secrets", "-o", "name"]).await.unwrap();
    assert!(!secrets.contains("secret/toygres-new-"), "{secrets}");
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

#[tokio::test]
async fn a_delete_overtakes_a_create_wherever_it_is() {
    let Some(cluster) = Cluster::new("overtaken").await.unwrap() else { return };
    let api = cluster.serve().await.unwrap();
    let control = cluster.toygres.control().await.unwrap();
    let (create, delete) = (api.begin_create("demo").await.unwrap(), api.begin_delete("demo").await.unwrap());
    let mut pairs = vec![("right behind it", create, delete)];
    for (name, step) in [("set", "deploy-postgres"), ("pod", "wait-for-ready"), ("end", "update-metadata")] {
        hold_up(&control, name, step, Moment::Begin).await.unwrap();
        let create = api.begin_create(name).await.unwrap();
        wait_held_up(&control, 1).await.unwrap();
        let delete = api.begin_delete(name).await.unwrap();
        let_go(&control).await.unwrap();
        pairs.push((step, create, delete));
    }
    for (moment, create, delete) in pairs {
        api.wait_success(&delete).await.context(moment).unwrap();
        let create = api.wait(&create).await.unwrap();
        assert_eq!(create["state"], "failed", "{moment}: an overtaken create did not fail: {create:#}");
    }
    cluster.namespace.expect_empty().await.unwrap();
    cluster.create("demo", &[]).await.unwrap();
    expect_one(&cluster, "demo").await.unwrap();
}

/// A second installation on the first one's database and with its CA.
fn twin(of: &Toygres, database: &Server) -> Result<Toygres> {
    let twin = Toygres::new()?.with("TOYGRES_DATABASE_URL", database.url());
    let twin = twin.with("KUBECONFIG", std::env::var_os("KUBECONFIG").context("no KUBECONFIG")?);
    std::fs::create_dir(twin.state_dir())?;
    for file in ["ca.crt", "ca.key", "client-ca.crt", "client-ca.key"] {
        std::fs::copy(of.state_dir().join(file), twin.state_dir().join(file))?;
    }
    Ok(twin)
}

fn kinds(events: &Value) -> Vec<&str> {
    events.as_array().into_iter().flatten().filter_map(|event| event["kind"].as_str()).collect()
}

#[tokio::test]
async fn of_two_servers_on_one_database_one_goes_on_for_both() {
    let Some(programs) = Programs::installed() else {
        return required_or_skip("no PostgreSQL is installed on this machine").unwrap();
    };
    let database = Server::create(&programs, place::temporary_folder().unwrap()).await.unwrap();
    let url = database.url();
    let Some(first) = Cluster::with("two-servers", |toygres| toygres.with("TOYGRES_DATABASE_URL", url)).await.unwrap() else {
        return;
    };
    let namespace = first.namespace.name.as_str();
    let api = first.serve().await.unwrap();
    let control = PgPool::connect_with(database.options()).await.unwrap();
    first.create("old", &[]).await.unwrap();
    let mut begun = Vec::new();
    for (name, step, moment) in [("fresh", "deploy-postgres", Moment::End), ("other", "wait-for-ready", Moment::Begin)] {
        hold_up(&control, name, step, moment).await.unwrap();
        begun.push(api.begin_create(name).await.unwrap());
    }
    wait_held_up(&control, 2).await.unwrap();

    // The second one comes, and the first one goes in the middle of its work.
    let second = twin(&first.toygres, &database).unwrap();
    let elsewhere = second.serve().await.unwrap().on_kubernetes(namespace);
    assert_eq!(second.json(&["-n", namespace, "list"]).await.unwrap().as_array().unwrap().len(), 3);
    first.toygres.kill_server().await.unwrap();
    let_go(&control).await.unwrap();
    for id in &begun {
        elsewhere.wait_success(id).await.unwrap();
    }
    for name in ["fresh", "other"] {
        let answer = second.ok(&["-n", namespace, "psql", name, "-XAtc", "select 7"]).await.unwrap();
        assert_eq!(answer.stdout, "7\n", "{answer}");
    }
    // With the first one back, each does what the other one began.
    first.json(&["list"]).await.unwrap();
    for name in ["old", "fresh", "other"] {
        expect_one(&first, name).await.unwrap();
    }
    let delete = first.api().unwrap().begin_delete("other").await.unwrap();
    elsewhere.wait_success(&delete).await.unwrap();
    expect_none(&first, "other").await.unwrap();

    // Both see what happens to a pod, and it is written down once. A second time, so that a late
    // second word about the first would be there by then.
    let mut expected = vec!["create_requested", "instance_running"];
    for _ in 0..2 {
        expected.extend(["server_exited", "server_restarted"]);
        first.namespace.kubectl(&["delete", "pod", "old-0"]).await.unwrap();
        let told = async || {
            let events = first.json(&["events", "old"]).await?;
            ensure!(kinds(&events).len() >= expected.len(), "{events:#}");
            Ok(Some(events))
        };
        let events = eventually("the pod's end and return among the events", Duration::from_secs(60), told).await.unwrap();
        assert_eq!(kinds(&events), expected, "{events:#}");
    }
    for name in ["old", "fresh"] {
        second.ok(&["-n", namespace, "delete", name, "--yes"]).await.unwrap();
    }
    first.namespace.expect_empty().await.unwrap();
}

//! On Kubernetes a password is in its Secret and nowhere else: no other object, event, log,
//! environment, argument, table, file or output has it, in no form.

use anyhow::{Result, ensure};
use serde_json::Value;
use toygres_e2e::Cluster;
use toygres_e2e::kubernetes::kinds;
use toygres_e2e::search::Needles;

const GIVEN: &str = "Kx7 distinctive:p@ss/w\"rd%u-2264";

/// Looks into everything that Kubernetes keeps, shows and runs for the instances.
async fn search_the_cluster(cluster: &Cluster, name: &str, needles: &Needles) -> Result<()> {
    let kinds = format!("{},events", kinds().await?);
    let text = cluster.namespace.kubectl(&["get", &kinds, "--show-managed-fields", "-o", "json"]).await?;
    let list: Value = serde_json::from_str(&text)?;
    let objects = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_its_place =
        |object: &Value| object["kind"] == "Secret" && object["metadata"]["name"] == format!("{name}-connection").as_str();
    ensure!(objects.iter().filter(|object| is_its_place(object)).count() == 1, "its Secret is missing");
    ensure!(objects.iter().any(|object| object["kind"] == "Event"), "no events were looked at");
    for object in objects {
        let (kind, object_name) = (&object["kind"], &object["metadata"]["name"]);
        if is_its_place(object) {
            ensure!(needles.absent_from("", &object.to_string()).is_err(), "the search doesn't find it in its own place");
            needles.absent_from("the Secret but its data", &object["metadata"].to_string())?;
        } else {
            needles.absent_from(&format!("{kind} {object_name}"), &object.to_string())?;
        }
    }
    let pod = format!("{name}-0");
    needles.absent_from("the pod's log", &cluster.namespace.kubectl(&["logs", &pod, "--all-containers"]).await?)?;
    // Of every process in the container, not the first alone; and in files, but where it is mounted.
    let look = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'";
    let processes = cluster.namespace.kubectl(&["exec", &pod, "--", "sh", "-c", look]).await?;
    ensure!(processes.contains("PGDATA="), "no environment was looked at: {processes}");
    needles.absent_from("a process's environment or arguments", &processes)?;
    let read = "cat /etc/toygres/config/* /tmp/* \"$PGDATA\"/*.conf \"$PGDATA\"/log/* 2>/dev/null || true";
    let files = cluster.namespace.kubectl(&["exec", &pod, "--", "sh", "-c", read]).await?;
    ensure!(files.contains("ssl"), "no settings were looked at: {files}");
    needles.absent_from("the server's settings", &files)
}

#[tokio::test]
async fn a_password_is_nowhere_but_in_its_secret() {
    // With every detail in the log, the Kubernetes client's and the workflow engine's too.
    let Some(cluster) = Cluster::with("secrets", |toygres| toygres.with("TOYGRES_LOG", "trace")).await.unwrap() else { return };
    cluster.serve().await.unwrap();
    let given = Needles::of(GIVEN);
    let watch = given.watch_processes();
    let create = ["create", "given", "--platform", "kubernetes", "--password-stdin"];
    let mut outputs = vec![cluster.run_with_input(&create, GIVEN.as_bytes()).await.unwrap().expect_code(0).unwrap()];
    outputs.push(cluster.create("generated", &[]).await.unwrap());
    let connection = cluster.json(&["connect", "generated", "--format", "json"]).await.unwrap();
    let generated = connection["password"].as_str().unwrap();
    assert!(generated.len() >= 20, "a short password was generated");
    let generated = Needles::of(generated);

    assert_eq!(cluster.sql("given", "select 7").await.unwrap(), "7", "it opens the server with that password");
    for arguments in [
        &["-o", "json", "get", "given"][..],
        &["-o", "json", "operations"],
        &["events", "given"],
        &["logs", "given", "--tail", "10000"],
        &["logs", "generated", "--tail", "10000"],
        &["doctor"],
        &["psql", "given", "-c", "\\conninfo"],
        &["psql", "generated", "-c", "select nonsense"],
    ] {
        outputs.push(cluster.run(arguments).await.unwrap());
    }
    let again = cluster.run_with_input(&create, format!("{GIVEN}x").as_bytes()).await.unwrap();
    outputs.push(again.expect_code(1).unwrap());

    assert!(watch.end().unwrap() > 3, "the processes were looked at too seldom");
    for needles in [&given, &generated] {
        for output in &outputs {
            needles.absent_from("an output", &output.to_string()).unwrap();
        }
        let control = cluster.toygres.control().await.unwrap();
        assert!(needles.absent_from_tables(&control).await.unwrap() > 60, "too few tables were looked at");
        control.close().await;
        needles.absent_from_files(cluster.toygres.folder()).unwrap();
    }
    search_the_cluster(&cluster, "given", &given).await.unwrap();
    search_the_cluster(&cluster, "generated", &generated).await.unwrap();

    for name in ["given", "generated"] {
        cluster.delete(name).await.unwrap();
    }
    cluster.namespace.expect_empty().await.unwrap();
    // Nor afterwards, the Secret and all the rest gone.
    given.absent_from_files(cluster.toygres.folder()).unwrap();
}

#[tokio::test]
async fn the_password_of_a_create_that_failed_goes_with_it() {
    let Some(cluster) = Cluster::new("lost-secret").await.unwrap() else { return };
    let create = ["create", "demo", "--platform", "kubernetes", "--password-stdin", "--storage-class", "no-such-class"];
    let failed = cluster.run_with_input(&create, GIVEN.as_bytes()).await.unwrap().expect_code(1).unwrap();
    let needles = Needles::of(GIVEN);
    needles.absent_from("the error", &failed.to_string()).unwrap();
    needles.absent_from("the record", &cluster.json(&["get", "demo"]).await.unwrap().to_string()).unwrap();
    needles.absent_from_files(cluster.toygres.folder()).unwrap();
    cluster.delete("demo").await.unwrap();
    cluster.namespace.expect_empty().await.unwrap();
}

//! Instances by document: `apply`, `diff`, `get -o yaml` and the PUT behind them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::process::Stdio;

use anyhow::Result;
use serde_json::{Value, json};
use toygres_e2e::control::{Moment, hold_up, let_go, wait_held_up};
use toygres_e2e::{Run, Toygres};

const FIVE: &str = "\
# Two teams' databases.
name: a
storage_size_gb: 1
labels: {team: a}
---
name: b
namespace: team
delete_protection: true
---
- name: c
- name: d
  labels: {}
---
name: e
password: p@/:?#%'
";

const KEYS: [&str; 5] = ["default/a", "team/b", "default/c", "default/d", "default/e"];

fn write(toygres: &Toygres, text: &str) -> String {
    let path = toygres.folder().join("instances.yaml");
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

/// The result of each instance by its name, in order of the documents.
fn results(run: &Run) -> Vec<(String, String)> {
    let records = run.json().unwrap();
    let text = |record: &Value, field: &str| record[field].as_str().unwrap_or_default().to_owned();
    records.as_array().unwrap().iter().map(|record| (text(record, "name"), text(record, "result"))).collect()
}

/// How much was ever asked for.
async fn operations(toygres: &Toygres) -> Result<i64> {
    let control = toygres.control().await?;
    let (count,) = sqlx::query_as("SELECT count(*) FROM toygres.operations").fetch_one(&control).await?;
    control.close().await;
    Ok(count)
}

#[tokio::test]
async fn five_instances_from_one_file_and_nothing_the_second_time() {
    let toygres = Toygres::new().unwrap();
    let file = write(&toygres, FIVE);
    let dry = toygres.ok(&["apply", "-f", &file, "--dry-run"]).await.unwrap();
    assert_eq!(dry.stdout.lines().collect::<Vec<_>>(), KEYS.map(|key| format!("{key} would be created")), "{dry}");
    assert_eq!(operations(&toygres).await.unwrap(), 0, "a dry run wrote something");
    let diff = toygres.run(&["diff", "-f", &file]).await.unwrap().expect_code(1).unwrap().expect_humane().unwrap();
    assert!(diff.stdout.contains("--- /dev/null\n+++ team/b (") && diff.stdout.contains("+delete_protection: true"), "{diff}");
    assert!(diff.stdout.contains("+password: (hidden)") && !diff.text().contains("p@/"), "{diff}");

    let first = toygres.ok(&["apply", "-f", &file]).await.unwrap().expect_humane().unwrap();
    println!("{first}");
    for key in KEYS {
        assert!(first.stdout.lines().any(|line| line.starts_with(&format!("{key} created ("))), "{key}: {first}");
    }
    let again = toygres.ok(&["apply", "-f", &file]).await.unwrap();
    println!("{again}");
    let mut lines: Vec<_> = again.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["a", "c", "d", "e"]
            .map(|name| format!("default/{name} unchanged"))
            .iter()
            .chain([&"team/b unchanged".into()])
            .collect::<Vec<_>>(),
        "{again}"
    );
    assert_eq!(operations(&toygres).await.unwrap(), 5);
    let same = toygres.ok(&["diff", "-f", &file]).await.unwrap();
    assert!(same.stdout.is_empty(), "{same}");
    let api = toygres.api().unwrap();
    assert!(api.uri("e").await.unwrap().contains("p%40%2F%3A%3F%23%25%27"), "the document's password isn't the instance's");
    api.log_in("e").await.unwrap();

    // What is printed can be applied again: one of them, all of them, and as JSON in an array.
    let one = toygres.ok(&["get", "a", "-o", "yaml"]).await.unwrap().stdout;
    let all = toygres.ok(&["list", "-A", "-o", "yaml"]).await.unwrap().stdout;
    assert_eq!(all.matches("---\n").count(), 4, "{all}");
    let list = json!([{ "name": "c" }, { "name": "b", "namespace": "team", "labels": {} }]).to_string();
    for (input, count) in [(&one, 1), (&all, 5), (&list, 2)] {
        let run = toygres.run_with_input(&["apply", "-f", "-", "-o", "json"], input.as_bytes()).await.unwrap();
        let results = results(&run.expect_code(0).unwrap());
        assert!(results.len() == count && results.iter().all(|(_, result)| result == "unchanged"), "{results:?}");
    }
    assert_eq!(operations(&toygres).await.unwrap(), 5);
}

#[tokio::test]
async fn what_can_change_changes_and_what_cannot_stops_all_before_it_starts() {
    let toygres = Toygres::new().unwrap();
    let file = write(&toygres, "name: a\nlabels: {team: a}\n---\nname: b\n");
    toygres.ok(&["apply", "-f", &file]).await.unwrap();
    let before = toygres.json(&["get", "a"]).await.unwrap();

    // A label, a new instance, and another size and version: nothing of it.
    let file = write(
        &toygres,
        "name: a\nlabels: {team: b}\n---\nname: fresh\n---\nname: b\nstorage_size_gb: 11\npostgres_version: \"14.0\"\npassword: other\n",
    );
    let refused = toygres.fails(1, &["apply", "-f", &file]).await.unwrap();
    println!("{refused}");
    for told in
        [":7:18 (document 3, storage_size_gb)", "storage_size_gb of default/b is 10", "postgres_version", "another password"]
    {
        assert!(refused.stderr.contains(told), "no word of {told:?}: {refused}");
    }
    assert!(refused.stderr.contains("nothing was changed") && !refused.text().contains("other\n"), "{refused}");
    assert_eq!(toygres.json(&["get", "a"]).await.unwrap()["generation"], before["generation"]);
    toygres.fails(1, &["get", "fresh"]).await.unwrap();
    let diff = toygres.run(&["diff", "-f", &file]).await.unwrap().expect_code(1).unwrap();
    println!("{diff}");
    for shown in ["-  team: a\n", "+  team: b\n", "-storage_size_gb: 10\n", "+storage_size_gb: 11\n", "+++ default/fresh"] {
        assert!(diff.stdout.contains(shown), "{shown:?} isn't in {diff}");
    }

    // Without what can't change, the rest goes.
    let file = write(&toygres, "name: a\nlabels: {team: b}\n---\nname: fresh\n---\nname: b\ndelete_protection: true\n");
    let applied = toygres.ok(&["apply", "-f", &file]).await.unwrap();
    println!("{applied}");
    let lines: Vec<_> = applied.stdout.lines().collect();
    assert!(
        lines.contains(&"default/a changed (labels)") && lines.contains(&"default/b changed (delete_protection)"),
        "{applied}"
    );
    assert!(lines.iter().any(|line| line.starts_with("default/fresh created (")), "{applied}");
    let after = toygres.json(&["get", "a"]).await.unwrap();
    assert_eq!(after["spec"]["labels"], json!({ "team": "b" }));
    assert_eq!((&after["id"], &after["spec"]["storage_size_gb"]), (&before["id"], &before["spec"]["storage_size_gb"]));
    let events = toygres.json(&["events", "a"]).await.unwrap();
    let updated = events.as_array().unwrap().iter().find(|event| event["kind"] == "instance_updated").unwrap();
    assert!(updated["message"].as_str().unwrap().contains("team"), "{events}");

    // Protected until that is taken back.
    let protected = toygres.fails(1, &["delete", "b", "--yes"]).await.unwrap();
    assert!(protected.stderr.contains("delete_protection: false"), "{protected}");
    let off = toygres.run_with_input(&["apply", "-f", "-"], b"name: b\ndelete_protection: false\n").await.unwrap();
    assert_eq!(off.stdout, "default/b changed (delete_protection)\n", "{off}");
    toygres.ok(&["delete", "b", "--yes"]).await.unwrap();
    toygres.expect_nothing_of("b").await.unwrap();

    // This platform has no public addresses: refused before anything starts, too.
    let public =
        toygres.run_with_input(&["apply", "-f", "-"], b"name: a\nuse_load_balancer: true\n---\nname: f\n").await.unwrap();
    let public = public.expect_code(2).unwrap().expect_humane().unwrap();
    assert!(
        public.stderr.contains("load balancer") && public.stderr.contains("-:2:20 (document 1, use_load_balancer)"),
        "{public}"
    );
    toygres.fails(1, &["get", "f"]).await.unwrap();
}

#[tokio::test]
async fn bad_documents_are_refused_before_a_server_is_started() {
    let toygres = Toygres::new().unwrap();
    for (text, told) in [
        ("nmae: a\n", "(document 1, nmae): is no field of an instance"),
        ("name: a\n---\nname: Demo\n", "(document 2, name)"),
        ("name: a\n---\nname: a\n", "default/a is there twice"),
        ("name: a\nstorage_size_gb: lots\n", "whole number"),
        ("name: a\npassword: {hunter2: x}\n", "(document 1, password)"),
        ("name: a\nlabels:\n  team: 1\n", "in quotes"),
        ("name: a\n\tstorage_size_gb: 1\n", "tab"),
        ("name: [a\n", "-:"),
        ("", "no document"),
        ("# nothing\n", "no document"),
        ("hunter2", "an instance"),
        ("name: a\npostgres_version: 13\n", "14 to 18"),
    ] {
        for command in ["apply", "diff"] {
            let run = toygres.run_with_input(&[command, "-f", "-"], text.as_bytes()).await.unwrap();
            let run = run.expect_code(2).unwrap().expect_humane().unwrap();
            assert!(run.stderr.contains(told) && !run.text().contains("hunter2"), "{text:?} isn't told by {told:?}: {run}");
        }
    }
    let run = toygres.run_with_input(&["apply", "-f", "-"], &[b'n', 0xff, b'\n']).await.unwrap().expect_code(2).unwrap();
    assert!(run.stderr.contains("UTF-8"), "{run}");
    for arguments in [&["apply"][..], &["apply", "-f", "/nowhere.yaml"], &["diff", "-f", "/"], &["apply", "-f", "-", "-f", "-"]] {
        toygres.fails(2, arguments).await.unwrap();
    }
    let schema = toygres.ok(&["schema"]).await.unwrap().json().unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(!toygres.state_dir().exists(), "a server was started for bad documents");

    let api = toygres.serve().await.unwrap();
    let served = api.with_token(None).get("/v1/schemas/instance.json").await.unwrap();
    assert_eq!(served.expect(200).unwrap(), schema, "the server's schema is another one");
    assert_eq!(served.headers["content-type"], "application/schema+json");
}

#[tokio::test]
async fn put_makes_changes_and_refuses_as_its_conditions_say() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let put = async |document: Value, headers: &[(&str, &str)]| api.put("/v1/instances/a", &document, headers).await.unwrap();
    let label = |team: &str| json!({ "name": "a", "labels": { "team": team } });
    let power = |power: &str| json!({ "name": "a", "power": power });

    put(label("a"), &[("if-match", "*")]).await.expect_problem(412).unwrap();
    put(label("a"), &[("if-match", "\"1\"")]).await.expect_problem(412).unwrap();
    put(json!({ "name": "b" }), &[]).await.expect_problem(422).unwrap();
    put(json!({ "name": "a", "size": 1 }), &[]).await.expect_problem(422).unwrap();
    put(json!({ "name": "a", "postgres_version": 17.4 }), &[]).await.expect_problem(422).unwrap();
    let elsewhere = api.put("/v1/instances/a?namespace=team", &json!({ "name": "a", "namespace": "other" }), &[]).await.unwrap();
    elsewhere.expect_problem(422).unwrap();
    let plan = api.put("/v1/instances/a?dry_run=true", &label("a"), &[]).await.unwrap().expect(200).unwrap();
    assert_eq!((&plan["action"], &plan["changes"][0]["field"]), (&json!("create"), &json!("labels")), "{plan}");

    // The same while it is being made is the same operation.
    let control = toygres.control().await.unwrap();
    hold_up(&control, "a", "wait-for-ready", Moment::Begin).await.unwrap();
    let begun = put(label("a"), &[("if-none-match", "*")]).await.expect(202).unwrap();
    wait_held_up(&control, 1).await.unwrap();
    assert_eq!(put(label("a"), &[]).await.expect(202).unwrap()["id"], begun["id"]);
    let early = put(power("stopped"), &[]).await.expect_problem(409).unwrap();
    assert!(early.contains("has the create operation") && early.contains("wait for its end"), "{early}");
    let_go(&control).await.unwrap();
    api.wait_success(begun["id"].as_str().unwrap()).await.unwrap();
    put(label("a"), &[("if-none-match", "*")]).await.expect_problem(412).unwrap();

    // Two people: the second one's look is out of date.
    let seen = put(label("a"), &[]).await;
    seen.expect(200).unwrap();
    let etag = seen.headers["etag"].to_str().unwrap().to_owned();
    let first = put(label("b"), &[("if-match", &etag)]).await;
    assert_eq!(first.expect(200).unwrap()["spec"]["labels"], json!({ "team": "b" }));
    assert_ne!(first.headers["etag"].to_str().unwrap(), etag);
    put(label("c"), &[("if-match", &etag)]).await.expect_problem(412).unwrap();
    // What is made already needs no change: a repeat, say, whose first answer was lost.
    put(label("b"), &[("if-match", &etag)]).await.expect(200).unwrap();
    assert_eq!(api.instance("a").await.unwrap()["spec"]["labels"], json!({ "team": "b" }));

    // Every field that can't be changed is named, and nothing is changed.
    let much = json!({ "name": "a", "labels": { "team": "d" }, "platform": "kubernetes", "storage_size_gb": 99, "cpu": "2",
        "memory": "1Gi", "storage_class": "fast", "postgres_version": "14.0", "password": "hunter2" });
    let refused = put(much, &[]).await;
    let detail = refused.expect_problem(409).unwrap();
    for field in ["platform", "storage_size_gb", "cpu", "memory", "storage_class", "postgres_version", "password"] {
        assert!(detail.contains(field), "{field} isn't named: {detail}");
    }
    assert!(!detail.contains("hunter2"), "{detail}");
    assert_eq!(api.instance("a").await.unwrap()["spec"]["labels"], json!({ "team": "b" }));
    let public = put(json!({ "name": "a", "use_load_balancer": true }), &[]).await;
    assert!(public.expect_problem(422).unwrap().contains("load balancer"));

    // The same request again, by its key: one operation, also after that has ended.
    let keyed = put(power("stopped"), &[("idempotency-key", "k1")]).await.expect(202).unwrap();
    for _ in 0..2 {
        let again = put(power("stopped"), &[("idempotency-key", "k1")]).await;
        assert_eq!(again.headers["idempotency-replayed"], "true");
        assert_eq!(again.headers["location"], *format!("/v1/operations/{}", keyed["id"].as_str().unwrap()));
        assert_eq!(again.expect(202).unwrap()["id"], keyed["id"]);
        api.wait_success(keyed["id"].as_str().unwrap()).await.unwrap();
    }
    put(power("running"), &[("idempotency-key", "k1")]).await.expect_problem(422).unwrap();
    // What begins no operation leads to the same state when it is carried out again.
    let keyed = put(label("e"), &[("idempotency-key", "k2")]).await;
    let again = put(label("e"), &[("idempotency-key", "k2")]).await;
    assert_eq!(keyed.expect(200).unwrap()["generation"], again.expect(200).unwrap()["generation"]);
    let started = put(power("running"), &[]).await.expect(202).unwrap();
    api.wait_success(started["id"].as_str().unwrap()).await.unwrap();

    // One that is going away is let be.
    hold_up(&control, "a", "delete-postgres", Moment::Begin).await.unwrap();
    let delete = api.begin_delete("a").await.unwrap();
    wait_held_up(&control, 1).await.unwrap();
    assert!(put(label("e"), &[]).await.expect_problem(409).unwrap().contains("being deleted"));
    let_go(&control).await.unwrap();
    api.wait_success(&delete).await.unwrap();

    // Another instance of that name is never taken for the one that was there.
    api.create("a").await.unwrap();
    put(label("b"), &[("if-match", &etag)]).await.expect_problem(412).unwrap();
    let generation = api.instance("a").await.unwrap()["generation"].as_i64().unwrap();
    for old in 1..generation {
        put(label("b"), &[("if-match", &format!("\"{old}\""))]).await.expect_problem(412).unwrap();
    }
}

#[tokio::test]
async fn two_people_apply_the_same_file_at_once() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    let file = write(&toygres, "name: a\nlabels: {team: a}\n---\nname: b\n---\nname: c\n");
    let arguments = ["apply", "-f", &file];
    let (first, second) = tokio::join!(toygres.ok(&arguments), toygres.ok(&arguments));
    println!("{}\n{}", first.as_ref().unwrap(), second.as_ref().unwrap());
    assert_eq!((first.unwrap().stdout.lines().count(), second.unwrap().stdout.lines().count()), (3, 3));
    assert_eq!(operations(&toygres).await.unwrap(), 3, "each is made once");
    let file = write(&toygres, "name: a\nlabels: {team: b}\n");
    let arguments = ["apply", "-f", &file];
    let (first, second) = tokio::join!(toygres.ok(&arguments), toygres.ok(&arguments));
    let events = toygres.json(&["events", "a"]).await.unwrap();
    let updates = events.as_array().unwrap().iter().filter(|event| event["kind"] == "instance_updated").count();
    assert_eq!(updates, 1, "{}\n{}", first.unwrap(), second.unwrap());
}

/// Applies these names, kills the server when that many steps are held up, and lets the command end.
async fn killed_meanwhile(toygres: &Toygres, names: &[&str], held_up: i64) {
    let control = toygres.control().await.unwrap();
    let documents: Vec<_> = names.iter().map(|name| format!("name: {name}\n")).collect();
    let file = write(toygres, &documents.join("---\n"));
    let mut command = toygres.command(&["apply", "-f", &file]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    wait_held_up(&control, held_up).await.unwrap();
    toygres.kill_server().await.unwrap();
    let_go(&control).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}\n{stderr}");
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    for name in names {
        assert!(stdout.contains(&format!("default/{name} created (")), "{name}: {stdout}\n{stderr}");
        toygres.only_postmaster(name).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_killed_at_work_or_before_its_answer_is_waited_for_and_nothing_is_made_twice() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    hold_up(&control, "b", "wait-for-ready", Moment::Begin).await.unwrap();
    killed_meanwhile(&toygres, &["a", "b"], 1).await;
    // This one's request is cut off: its commit hangs.
    let control = toygres.control().await.unwrap();
    hold_up(&control, "c", "creating", Moment::Record).await.unwrap();
    killed_meanwhile(&toygres, &["a2", "c"], 1).await;
    assert_eq!(operations(&toygres).await.unwrap(), 4, "each was asked for once");
}

#[tokio::test]
async fn one_that_fails_does_not_hold_up_the_other() {
    // There is one port for the two.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let toygres = Toygres::new().unwrap().with("TOYGRES_PORT_RANGE", format!("{port}-{port}"));
    let both = toygres.run_with_input(&["apply", "-f", "-"], b"name: a\n---\nname: b\n").await.unwrap();
    let both = both.expect_code(1).unwrap().expect_humane().unwrap();
    println!("{both}");
    let (good, bad) = if both.stdout.starts_with("default/a created") { ("a", "b") } else { ("b", "a") };
    assert!(both.stdout.starts_with(&format!("default/{good} created (")) && both.stdout.lines().count() == 1, "{both}");
    let told = both.stderr.contains(&format!("{bad} could not be created: deploy-postgres: ")) && both.stderr.contains("port");
    assert!(told && both.stderr.contains("1 of 2 could not be applied"), "{both}");
    // Again: what failed is tried again, and works once there is a port for it.
    let again = format!("name: {bad}\n");
    let refused = toygres.run_with_input(&["apply", "-f", "-"], again.as_bytes()).await.unwrap().expect_code(1).unwrap();
    assert!(refused.stderr.contains("port"), "{refused}");
    assert_eq!(toygres.json(&["get", bad]).await.unwrap()["state"], "failed");
    toygres.ok(&["delete", good, "--yes"]).await.unwrap();
    let again = toygres.run_with_input(&["apply", "-f", "-"], again.as_bytes()).await.unwrap().expect_code(0).unwrap();
    assert!(again.stdout.starts_with(&format!("default/{bad} changed (")), "{again}");
    toygres.api().unwrap().log_in(bad).await.unwrap();
}

#[tokio::test]
async fn it_need_not_be_waited_for() {
    let toygres = Toygres::new().unwrap();
    let run = toygres.run_with_input(&["apply", "-f", "-", "--no-wait", "-o", "json"], b"name: a\n---\nname: b\n").await.unwrap();
    let records = run.expect_code(0).unwrap().json().unwrap();
    for record in records.as_array().unwrap() {
        assert_eq!(record["result"], "begun", "{records}");
        toygres.api().unwrap().wait_success(record["operation_id"].as_str().unwrap()).await.unwrap();
    }
}

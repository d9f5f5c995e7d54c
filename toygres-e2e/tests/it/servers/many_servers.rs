//! Several servers on one database, each with a state directory of its own: none does another's work, and a
//! server that stops cuts nothing.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sysinfo::Signal;
use toygres_e2e::load::Load;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually, process, store_database, wait_until};

async fn begin_creates(apis: &[&Api], prefix: &str, count: usize) -> Result<Vec<String>> {
    let mut operations = Vec::new();
    for number in 0..count {
        operations.push(apis[number % apis.len()].begin_create(&format!("{prefix}-{number}")).await?);
    }
    Ok(operations)
}

/// Two machines, as far as one machine can be two: state directories of their own, and one database.
async fn two_machines() -> Result<Option<(Toygres, Toygres, store_database::Database)>> {
    let Some(database) = store_database::empty_database().await? else { return Ok(None) };
    let machine = || Ok::<_, anyhow::Error>(Toygres::new()?.with("TOYGRES_DATABASE_URL", &database.url));
    Ok(Some((machine()?, machine()?, database)))
}

#[tokio::test]
async fn a_hung_server_holds_up_only_its_own_machine() {
    let Some((here, there, _database)) = two_machines().await.unwrap() else { return };
    let (first, second) = (here.serve().await.unwrap(), there.serve().await.unwrap());
    let operations = begin_creates(&[&second], "h", 3).await.unwrap();
    wait_until("the first instance's folder", SOON, || there.instance_dir("h-0").exists()).await.unwrap();
    let hung = there.server_pid().unwrap();
    process::send(hung, Signal::Stop).unwrap();
    first.create("unaffected").await.unwrap();
    first.delete("unaffected").await.unwrap();
    // It keeps its state directory, and the next server says which process has to end.
    let refused = there.fails(1, &["server", "run"]).await.unwrap();
    assert!(refused.stderr.contains(&format!("process {hung}")), "{refused}");
    process::kill(hung).await.unwrap();
    let next = there.serve().await.unwrap();
    for (number, operation) in operations.iter().enumerate() {
        next.wait_success(operation).await.unwrap();
        there.only_postmaster(&format!("h-{number}")).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_stops_under_load_cuts_no_request_and_loses_no_operation() {
    let Some((here, there, _database)) = two_machines().await.unwrap() else { return };
    let (first, second) = (here.serve().await.unwrap(), there.serve().await.unwrap());
    first.create("steady").await.unwrap();
    let waiting = first.begin_create("waited-for").await.unwrap();
    let long_poll = format!("/v1/operations/{waiting}?wait=20s&after_revision=1000000");
    let mut load = Load::begin(24, &["/v1/instances", "/v1/instances/steady", "/v1/operations?limit=5", "/healthz", &long_poll]);
    load.add(&first).await;
    load.add(&second).await;
    wait_until("requests to be answered", SOON, || load.answered() > 500).await.unwrap();

    // First one server stops and starts again, then the other.
    for (machine, api, prefix) in [(&there, &second, "a"), (&here, &first, "b")] {
        let operations = begin_creates(&[api], prefix, 3).await.unwrap();
        let pid = machine.server_pid().unwrap();
        let told = Instant::now();
        process::send(pid, Signal::Term).unwrap();
        eventually("it to say that it isn't ready", SOON, async || {
            let answer = api.get("/readyz").await;
            Ok(answer.map_or(true, |answer| answer.status == 503).then_some(()))
        })
        .await
        .unwrap();
        println!("not ready {} ms after SIGTERM", told.elapsed().as_millis());
        wait_until("its end", SOON, || !process::is_alive(pid)).await.unwrap();
        println!("stopped {:.1} s after SIGTERM", told.elapsed().as_secs_f64());
        let before = load.answered();
        wait_until("the other one to answer requests", SOON, || load.answered() > before + 200).await.unwrap();
        let next = machine.serve().await.unwrap();
        load.add(&next).await;
        for operation in &operations {
            next.wait_success(operation).await.unwrap();
        }
    }
    println!("{} requests answered, none cut", load.end().await.unwrap());
}

#[tokio::test]
async fn servers_of_different_machines_leave_each_others_instances_to_each_other() {
    let Some((here, there, _database)) = two_machines().await.unwrap() else { return };
    // Both on an empty database at once: both come up.
    let (first, second) = tokio::join!(here.serve(), there.serve());
    let (first, second) = (first.unwrap(), second.unwrap());
    let operations = [begin_creates(&[&first], "here", 3).await.unwrap(), begin_creates(&[&second], "there", 3).await.unwrap()];
    for operation in operations.iter().flatten() {
        first.wait_success(operation).await.unwrap();
    }
    for number in 0..3 {
        here.only_postmaster(&format!("here-{number}")).await.unwrap();
        there.only_postmaster(&format!("there-{number}")).await.unwrap();
    }
    // What a server can't see it doesn't guess; what it can't do it says whom to ask.
    assert_eq!(second.instance("there-0").await.unwrap()["status"]["health_status"], "healthy");
    assert_eq!(first.instance("there-0").await.unwrap()["status"]["health_status"], "unknown");
    let machine_id = std::fs::read_to_string(there.state_dir().join("id")).unwrap();
    for what in ["connection", "logs"] {
        let detail = first.get(&format!("/v1/instances/there-0/{what}")).await.unwrap().expect_problem(409).unwrap();
        assert!(detail.contains(machine_id.trim()), "{detail}");
    }
    second.log_in("there-0").await.unwrap();
    // One name, whichever machine.
    let taken = first.post_instance(&json!({ "name": "there-1", "password": "another-one" })).await.unwrap();
    taken.expect_problem(409).unwrap();

    // Any server takes the request; the machine's own does it.
    first.delete("there-0").await.unwrap();
    there.expect_nothing_made_of("there-0").unwrap();

    // While that machine is away, it waits, and says for what.
    there.kill_server().await.unwrap();
    let operation = first.begin_delete("there-1").await.unwrap();
    let progress = async || {
        let seen = first.get(&format!("/v1/operations/{operation}")).await?.expect(200)?;
        match seen["progress"].as_str() {
            Some(progress) if progress.contains(machine_id.trim()) => Ok(Some(())),
            _ => bail!("{seen}"),
        }
    };
    eventually("the operation to say what it waits for", SOON, progress).await.unwrap();
    there.only_postmaster("there-1").await.unwrap();
    first.create("here-3").await.unwrap();
    let second = there.serve().await.unwrap();
    second.wait_success(&operation).await.unwrap();
    there.expect_nothing_made_of("there-1").unwrap();
    assert_eq!(second.instance("there-2").await.unwrap()["status"]["health_status"], "healthy");
}

#[tokio::test]
async fn of_two_creates_of_one_name_through_two_machines_one_wins() {
    let Some((here, there, _database)) = two_machines().await.unwrap() else { return };
    let (first, second) = (here.serve().await.unwrap(), there.serve().await.unwrap());
    for round in 0..5 {
        let name = format!("same-{round}");
        let body = |password: &str| json!({ "name": name, "password": password });
        let (one, other) = (body("the-first-one"), body("the-second-one"));
        let (one, other) = tokio::join!(first.post_instance(&one), second.post_instance(&other));
        let answers = [one.unwrap(), other.unwrap()];
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
        assert!(statuses == [202, 409] || statuses == [409, 202], "{answers:?}");
        let winner = statuses.iter().position(|status| *status == 202).unwrap();
        let id = answers[winner].json().unwrap()["id"].as_str().unwrap().to_owned();
        let (won, lost) = if winner == 0 { (&first, &there) } else { (&second, &here) };
        won.wait_success(&id).await.unwrap();
        won.log_in(&name).await.unwrap();
        lost.expect_nothing_made_of(&name).unwrap();
    }
}

#[tokio::test]
async fn a_server_goes_on_beside_a_newer_one_and_an_older_one_does_not_start() {
    let Some((here, there, database)) = two_machines().await.unwrap() else { return };
    let api = here.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let newer = sqlx::PgPool::connect_with(database.options.clone()).await.unwrap();
    // What a newer server does when it starts: the columns that the running one has prepared its statements
    // for are others now.
    sqlx::raw_sql(
        "ALTER TABLE toygres.instances ADD COLUMN of_the_future text;
         ALTER TABLE toygres.operations ADD COLUMN of_the_future text;
         ALTER TABLE toygres.operation_steps ADD COLUMN of_the_future text;
         INSERT INTO toygres._sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'of the future', true, '', 0)",
    )
    .execute(&newer)
    .await
    .unwrap();
    let mut sent_back = 0;
    for path in ["/v1/instances", "/v1/instances/demo", "/v1/operations"].into_iter().cycle().take(60) {
        let answer = api.get(path).await.unwrap();
        if answer.status != 200 {
            answer.expect_problem(503).unwrap();
            sent_back += 1;
        }
    }
    println!("it went on; {sent_back} of 60 requests had to be sent again");
    assert!(sent_back < 4);
    let created = eventually("a create to be taken", SOON, async || api.begin_create("after").await.map(Some)).await.unwrap();
    api.wait_success(&created).await.unwrap();
    api.delete("demo").await.unwrap();
    let refused = there.fails(1, &["server", "start"]).await.unwrap();
    assert!(refused.stderr.contains("newer") && refused.stderr.contains("9999"), "{refused}");

    // A workflow in a version that only the newer server has is left to it, however often it is seen.
    sqlx::query(
        "INSERT INTO duroxide.orchestrator_queue (instance_id, work_item, visible_at, created_at)
         VALUES ('of-the-future', $1, now(), now())",
    )
    .bind(
        json!({"StartOrchestration": {"instance": "of-the-future", "version": "99.0.0", "input": "{}", "execution_id": 1,
            "orchestration": "toygres-orchestrations::orchestration::create-instance",
            "parent_instance": null, "parent_id": null, "parent_execution_id": null}})
        .to_string(),
    )
    .execute(&newer)
    .await
    .unwrap();
    api.create("meanwhile").await.unwrap();
    let seen = async || {
        let (attempts, later): (i32, bool) = sqlx::query_as(
            "SELECT attempt_count, visible_at > created_at FROM duroxide.orchestrator_queue WHERE instance_id = 'of-the-future'",
        )
        .fetch_one(&newer)
        .await?;
        ensure!(attempts == 0, "it counts as {attempts} attempts");
        Ok(later.then_some(()))
    };
    eventually("it to be looked at and left", SOON, seen).await.unwrap();
    newer.close().await;
}

#[tokio::test]
async fn readiness_tells_the_truth_while_the_database_hangs() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.get("/readyz").await.unwrap().expect(200).unwrap();
    // Every process of the database stands still: connections are there, and nobody answers.
    let backends = process::working_below(&toygres.state_dir().join("control"));
    assert!(backends.len() > 5, "{backends:?}");
    for pid in &backends {
        process::send(*pid, Signal::Stop).unwrap();
    }
    let asked = Instant::now();
    let detail = api.get("/readyz").await.unwrap().expect_problem(503).unwrap();
    println!("not ready after {:.1} s: {detail}", asked.elapsed().as_secs_f64());
    api.get("/healthz").await.unwrap().expect(200).unwrap();
    for pid in &backends {
        process::send(*pid, Signal::Continue).unwrap();
    }
    eventually("it to be ready again", SOON, async || Ok(api.get("/readyz").await?.expect(200).ok())).await.unwrap();
    let ready: Value = api.create("demo").await.context("work goes on").unwrap();
    assert_eq!(ready["state"], "succeeded");
}

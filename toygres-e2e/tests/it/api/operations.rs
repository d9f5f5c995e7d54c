//! Operations from outside: cancelled at any step, tried again, followed live, by HTTP and by the
//! command line.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use toygres_e2e::control::{Moment, end_blocked, hold_queue, hold_up, let_go, wait_all_blocked, wait_blocked, wait_held_up};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually};

const CREATE_STEPS: [&str; 5] =
    ["deploy-postgres", "wait-for-ready", "get-connection-strings", "test-connection", "update-metadata"];

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

async fn cancel(api: &Api, id: &str) -> Result<Value> {
    let answer = api.post(&format!("/v1/operations/{id}/cancel")).await?;
    let operation = answer.expect(202)?;
    ensure!(text(&operation, "id") == id, "another operation: {operation:#}");
    ensure!(answer.headers["location"] == format!("/v1/operations/{id}"), "{:?}", answer.headers);
    Ok(operation)
}

/// Creates an instance that fails at `test-connection`, since its stored password is wrong for a while.
async fn failed_create(toygres: &Toygres, api: &Api, name: &str) -> Result<String> {
    let control = toygres.control().await?;
    hold_up(&control, name, "test-connection", Moment::Begin).await?;
    let create = api.begin_create(name).await?;
    wait_held_up(&control, 1).await?;
    let secret = toygres.secret_file(name);
    let password = std::fs::read(&secret)?;
    std::fs::write(&secret, "not-this-one")?;
    let_go(&control).await?;
    let ended = api.wait(&create).await?;
    ensure!(ended["state"] == "failed" && ended["error"]["step"] == "test-connection", "{ended:#}");
    std::fs::write(&secret, password)?;
    Ok(create)
}

#[tokio::test]
async fn a_create_that_is_cancelled_at_any_step_leaves_nothing() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    for moment in [Moment::Begin, Moment::End] {
        let mut held = Vec::new();
        for step in CREATE_STEPS {
            let name = format!("at-{step}-{}", if moment == Moment::Begin { "begin" } else { "end" });
            hold_up(&control, &name, step, moment).await.unwrap();
            held.push((api.begin_create(&name).await.unwrap(), name));
        }
        wait_held_up(&control, 5).await.unwrap();
        let mut asked = JoinSet::new();
        for (id, _) in &held {
            let (api, id) = (api.clone(), id.clone());
            asked.spawn(async move { cancel(&api, &id).await });
        }
        // They come while the steps are in the middle of their transactions, and those are rolled back.
        wait_all_blocked(&control, "FOR NO KEY UPDATE", 5).await.unwrap();
        let_go(&control).await.unwrap();
        for asked in asked.join_all().await {
            let asked = asked.unwrap();
            assert_eq!(asked["cancel_requested_by"], "root", "{asked:#}");
        }
        for (id, name) in &held {
            let ended = api.wait(id).await.unwrap();
            assert_eq!((text(&ended, "state"), &ended["error"]), ("cancelled", &Value::Null), "{name}: {ended:#}");
            toygres.expect_nothing_of(name).await.with_context(|| name.clone()).unwrap();
            assert_eq!(api.kinds_of_events(name).await.unwrap(), ["create_requested", "cancel_requested", "create_cancelled"]);
            // Whoever asks again is told the same.
            assert_eq!(text(&cancel(&api, id).await.unwrap(), "state"), "cancelled");
        }
    }
    // The name is as good as new.
    api.create("at-update-metadata-end").await.unwrap();
    api.log_in("at-update-metadata-end").await.unwrap();
}

#[tokio::test]
async fn a_cancel_is_noticed_in_the_middle_of_a_step_and_by_a_delete_that_crosses_it() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    for crossed in [false, true] {
        // The deployment waits for its port, with no transaction of its operation open.
        let mut ports = control.begin().await.unwrap();
        sqlx::raw_sql("LOCK TABLE toygres.ports IN ACCESS EXCLUSIVE MODE").execute(&mut *ports).await.unwrap();
        let create = api.begin_create("demo").await.unwrap();
        wait_blocked(&control, "ports").await.unwrap();
        let asked = Instant::now();
        cancel(&api, &create).await.unwrap();
        assert_eq!(api.instance("demo").await.unwrap()["state"], "deleting");
        let delete = match crossed {
            true => Some(api.begin_delete("demo").await.unwrap()),
            false => None,
        };
        eventually("the deployment to be given up", SOON, async || {
            let operation = api.get(&format!("/v1/operations/{create}")).await?.expect(200)?;
            Ok(operation["steps"].as_array().into_iter().flatten().find(|step| step["error"]["kind"] == "cancelled").map(|_| ()))
        })
        .await
        .unwrap();
        println!("the deployment was given up {:.2?} after the cancel", asked.elapsed());
        ports.rollback().await.unwrap();
        assert_eq!(text(&api.wait(&create).await.unwrap(), "state"), "cancelled");
        if let Some(delete) = delete {
            api.wait_success(&delete).await.unwrap();
        }
        toygres.expect_nothing_of("demo").await.unwrap();
    }
    api.create("demo").await.unwrap();
    api.log_in("demo").await.unwrap();
}

#[tokio::test]
async fn a_cancel_that_comes_too_late_says_how_it_ended_or_that_there_is_no_way_back() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let create = text(&api.create("demo").await.unwrap(), "id").to_owned();
    let refused = api.post(&format!("/v1/operations/{create}/cancel")).await.unwrap();
    assert!(refused.expect_problem(409).unwrap().contains("has succeeded already"), "{}", refused.text);
    // It has removed the server and its data when it waits for the port's row.
    let mut port = control.begin().await.unwrap();
    sqlx::query("SELECT FROM toygres.ports WHERE name = 'demo' FOR UPDATE").execute(&mut *port).await.unwrap();
    let delete = api.begin_delete("demo").await.unwrap();
    wait_blocked(&control, "ports").await.unwrap();
    let refused = api.post(&format!("/v1/operations/{delete}/cancel")).await.unwrap();
    let detail = refused.expect_problem(409).unwrap();
    assert!(detail.contains("has begun and can't be taken back"), "{detail}");
    assert_eq!(refused.json().unwrap()["type"], "urn:toygres:problem:point_of_no_return");
    let by_hand = toygres.fails(1, &["operations", "cancel", &delete]).await.unwrap();
    assert!(by_hand.stderr.contains("can't be taken back"), "{by_hand}");
    port.rollback().await.unwrap();
    api.wait_success(&delete).await.unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();

    for path in ["00000000-0000-7000-8000-000000000000/cancel", "00000000-0000-7000-8000-000000000000/retry"] {
        api.post(&format!("/v1/operations/{path}")).await.unwrap().expect_problem(404).unwrap();
    }
    api.post("/v1/operations/nonsense/cancel").await.unwrap().expect_problem(422).unwrap();
    api.get(&format!("/v1/operations/{create}/cancel")).await.unwrap().expect_problem(405).unwrap();
}

#[tokio::test]
async fn a_delete_that_no_step_of_was_begun_is_called_off() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    api.create("demo").await.unwrap();
    let server = toygres.only_postmaster("demo").await.unwrap();
    let held = hold_queue(&control).await.unwrap();
    let request = tokio::spawn({
        let api = api.clone();
        async move { api.begin_delete("demo").await }
    });
    wait_blocked(&control, "enqueue").await.unwrap();
    let operations = api.items("/v1/operations?kind=delete").await.unwrap();
    assert_eq!(text(&operations[0], "state"), "pending", "{operations:?}");
    let cancelled = cancel(&api, text(&operations[0], "id")).await.unwrap();
    assert_eq!(text(&cancelled, "state"), "cancelled");
    assert_eq!(text(&api.instance("demo").await.unwrap(), "state"), "running");
    held.rollback().await.unwrap();
    let delete = request.await.unwrap().unwrap();
    assert_eq!(delete, text(&cancelled, "id"));
    // The workflow comes late, and ends without having done anything.
    eventually("its workflow to end", SOON, async || {
        let (status,): (String,) = sqlx::query_as("SELECT status FROM duroxide.executions WHERE instance_id = $1")
            .bind(&delete)
            .fetch_one(&control)
            .await?;
        Ok((status == "Failed").then_some(()))
    })
    .await
    .unwrap();
    assert_eq!(toygres.only_postmaster("demo").await.unwrap(), server);
    assert_eq!(text(&api.instance("demo").await.unwrap(), "state"), "running");
    assert_eq!(
        api.kinds_of_events("demo").await.unwrap(),
        ["create_requested", "instance_running", "delete_requested", "delete_cancelled"]
    );
    api.delete("demo").await.unwrap();
}

#[tokio::test]
async fn a_failed_create_goes_on_where_it_failed() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let create = failed_create(&toygres, &api, "demo").await.unwrap();
    let server = toygres.only_postmaster("demo").await.unwrap();
    let control = toygres.control().await.unwrap();
    // None is done before all have asked.
    let queue = hold_queue(&control).await.unwrap();
    let retries = (0..4).map(|_| {
        let (api, path) = (api.clone(), format!("/v1/operations/{create}/retry"));
        async move { text(&api.post(&path).await.unwrap().expect(202).unwrap(), "id").to_owned() }
    });
    let retries = retries.collect::<JoinSet<_>>();
    wait_all_blocked(&control, "enqueue", 4).await.unwrap();
    queue.rollback().await.unwrap();
    let mut ids = retries.join_all().await;
    ids.dedup();
    let [retry] = &ids[..] else { panic!("more than one operation: {ids:?}") };
    let ended = api.wait_success(retry).await.unwrap();
    assert_eq!((text(&ended, "retry_of"), text(&ended, "kind")), (&*create, "create"));
    assert_eq!(toygres.only_postmaster("demo").await.unwrap(), server, "what was made is kept");
    api.log_in("demo").await.unwrap();
    let kinds = api.kinds_of_events("demo").await.unwrap();
    assert_eq!(kinds, ["create_requested", "instance_failed", "retry_requested", "instance_running"]);
    for path in [format!("/v1/operations/{create}/retry"), format!("/v1/operations/{retry}/retry")] {
        api.post(&path).await.unwrap().expect_problem(409).unwrap();
    }
}

#[tokio::test]
async fn the_command_line_cancels_retries_and_says_how() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let create = failed_create(&toygres, &api, "demo").await.unwrap();
    let watched = toygres.fails(1, &["operations", "watch", &create]).await.unwrap();
    assert!(watched.stderr.contains(&format!("toygres operations retry {create}")), "{watched}");
    let retried = toygres.ok(&["operations", "retry", &create]).await.unwrap();
    assert!(retried.stdout.contains("demo is created"), "{retried}");
    let again = toygres.fails(1, &["operations", "retry", &create]).await.unwrap();
    assert!(again.stderr.contains("newer create operation"), "{again}");
    // As JSON, which has no ages in it.
    let listed = toygres.json(&["operations", "list", "demo"]).await.unwrap();
    assert_eq!(listed, toygres.json(&["operations", "demo"]).await.unwrap());
    let id = api.items("/v1/operations?kind=create").await.unwrap()[0]["id"].as_str().unwrap().to_owned();
    let shown = toygres.ok(&["operations", "get", &id]).await.unwrap();
    assert!(shown.stdout.contains("Retry of") && shown.stdout.contains(&create), "{shown}");

    let mut ports = control.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE toygres.ports IN ACCESS EXCLUSIVE MODE").execute(&mut *ports).await.unwrap();
    let id = api.begin_create("second").await.unwrap();
    let mut watching = toygres.command(&["operations", "watch", &id]);
    let watching = watching.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_blocked(&control, "ports").await.unwrap();
    let asked = toygres.ok(&["operations", "cancel", &id, "--no-wait"]).await.unwrap();
    assert!(asked.stdout.contains("second is being reverted"), "{asked}");
    ports.rollback().await.unwrap();
    let cancelled = toygres.ok(&["operations", "cancel", &id]).await.unwrap();
    assert!(cancelled.stdout.contains("what was made of it is removed"), "{cancelled}");
    let watched = watching.wait_with_output().await.unwrap();
    let words = String::from_utf8_lossy(&watched.stderr);
    assert!(watched.status.code() == Some(1) && words.contains("cancelled by root"), "{words}");
    toygres.expect_nothing_of("second").await.unwrap();
    toygres.fails(1, &["operations", "cancel", &create]).await.unwrap();
    toygres.fails(2, &["operations", "cancel", "not-an-id"]).await.unwrap();
}

#[tokio::test]
async fn an_operation_is_streamed_from_its_request_to_its_end_and_goes_on_where_it_was_cut() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    hold_up(&control, "demo", "test-connection", Moment::Begin).await.unwrap();
    let create = api.begin_create("demo").await.unwrap();
    let path = format!("/v1/operations/{create}");
    let mut stream = api.stream(&path, None).await.unwrap();
    let mut seen: Vec<Value> = Vec::new();
    let mut last_id = String::new();
    while seen
        .last()
        .is_none_or(|seen| seen["steps"].as_array().map_or(0, Vec::len) < 3 || seen["steps"][2]["state"] != "succeeded")
    {
        let event = tokio::time::timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(event.event.as_deref(), Some("operation"));
        last_id = event.id.clone().unwrap();
        let operation: Value = serde_json::from_str(&event.data.unwrap()).unwrap();
        assert_eq!(operation["revision"].to_string(), last_id);
        seen.push(operation);
    }
    drop(stream);
    let rest = api.stream(&path, Some(&last_id)).await.unwrap();
    let_go(&control).await.unwrap();
    let rest: Vec<_> = tokio::time::timeout(SOON, rest.try_collect()).await.unwrap().unwrap();
    seen.extend(rest.iter().map(|event| serde_json::from_str::<Value>(event.data.as_deref().unwrap()).unwrap()));
    let revisions: Vec<_> = seen.iter().map(|operation| operation["revision"].as_i64().unwrap()).collect();
    assert!(revisions.is_sorted_by(|one, next| one < next), "{revisions:?}");
    let last = seen.last().unwrap();
    assert_eq!((text(last, "state"), last["steps"].as_array().unwrap().len()), ("succeeded", 5), "{last:#}");
    // Whoever has seen the end is told that there is no more.
    let answer = api.stream(&path, Some(&last["revision"].to_string())).await;
    assert!(answer.err().unwrap().to_string().contains("204"));
    let whole: Vec<_> = api.stream(&path, None).await.unwrap().try_collect().await.unwrap();
    assert_eq!(whole.len(), 1, "of one that has ended, its end");
    assert!(
        api.stream("/v1/operations/00000000-0000-7000-8000-000000000000", None).await.err().unwrap().to_string().contains("404")
    );
    assert!(api.stream(&path, Some("x")).await.err().unwrap().to_string().contains("422"));

    // A server that stops ends its streams in good order.
    hold_up(&control, "second", "deploy-postgres", Moment::Begin).await.unwrap();
    let second = api.begin_create("second").await.unwrap();
    let mut stream = api.stream(&format!("/v1/operations/{second}"), None).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let stopping = tokio::spawn(async move { tokio::time::timeout(SOON, stream.try_collect::<Vec<_>>()).await.unwrap() });
    toygres.ok(&["server", "stop"]).await.unwrap();
    stopping.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_is_held_until_there_is_news_or_its_time_is_over() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let first = api.create("first").await.unwrap();
    assert_eq!(first["expected_seconds"], Value::Null, "it has ended");
    hold_up(&control, "demo", "wait-for-ready", Moment::Begin).await.unwrap();
    let create = api.begin_create("demo").await.unwrap();
    wait_held_up(&control, 1).await.unwrap();
    let now = api.get(&format!("/v1/operations/{create}")).await.unwrap().expect(200).unwrap();
    assert!(now["expected_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0 && seconds < 60.0), "{now:#}");
    let (began, revision) = (Instant::now(), &now["revision"]);
    let path = |wait: &str| format!("/v1/operations/{create}?wait={wait}&after_revision={revision}");
    let same = api.get(&path("1s")).await.unwrap().expect(200).unwrap();
    assert!(same["revision"] == *revision && began.elapsed() >= Duration::from_secs(1), "{same:#}");
    let (news, _) = tokio::join!(async { api.get(&path("60s")).await.unwrap().expect(200).unwrap() }, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let_go(&control).await.unwrap();
    });
    assert!(news["revision"].as_i64() > revision.as_i64() && began.elapsed() < Duration::from_secs(60), "{news:#}");
    api.wait_success(&create).await.unwrap();
    for wait in ["61s", "1h", "soon", "-1s", "5", ""] {
        let refused = api.get(&path(wait)).await.unwrap();
        assert!(refused.expect_problem(422).unwrap().contains("wait"), "{wait}: {}", refused.text);
    }
    let refused = api.get(&format!("/v1/operations/{create}?wait_seconds=1")).await.unwrap();
    assert!(refused.expect_problem(422).unwrap().contains("wait_seconds"), "{}", refused.text);
}

#[tokio::test]
async fn a_cancelled_change_is_put_back_and_a_delete_overtakes_one() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    for (name, step) in [("one", "deploy-postgres"), ("two", "get-connection-strings"), ("three", "update-metadata")] {
        api.create(name).await.unwrap();
        let before = api.instance(name).await.unwrap();
        hold_up(&control, name, step, Moment::Begin).await.unwrap();
        let update = begin_update(&control, name).await.unwrap();
        wait_held_up(&control, 1).await.unwrap();
        let asked = tokio::spawn({
            let (api, update) = (api.clone(), update.clone());
            async move { cancel(&api, &update).await }
        });
        wait_blocked(&control, "FOR NO KEY UPDATE").await.unwrap();
        let_go(&control).await.unwrap();
        asked.await.unwrap().unwrap();
        let ended = api.wait(&update).await.unwrap();
        assert_eq!(text(&ended, "state"), "cancelled", "{step}: {ended:#}");
        let after = api.instance(name).await.unwrap();
        for field in ["state", "spec"] {
            assert_eq!(before[field], after[field], "{step}: {field}");
        }
        for field in ["ip_connection_string", "dns_connection_string"] {
            assert_eq!(before["status"][field], after["status"][field], "{step}: {field}");
        }
        assert_eq!(after["generation"], after["observed_generation"], "{step}: {after:#}");
        // Of the first no step had begun: it was over at once.
        let told = api.kinds_of_events(name).await.unwrap();
        let asked = if step == "deploy-postgres" { &[][..] } else { &["cancel_requested"] };
        assert_eq!(told[2..], [asked, &["update_cancelled"]].concat(), "{step}");
        api.log_in(name).await.unwrap();
    }
    hold_up(&control, "one", "wait-for-ready", Moment::Begin).await.unwrap();
    let update = begin_update(&control, "one").await.unwrap();
    wait_held_up(&control, 1).await.unwrap();
    let delete = api.begin_delete("one").await.unwrap();
    let_go(&control).await.unwrap();
    api.wait_success(&delete).await.unwrap();
    let update = api.wait(&update).await.unwrap();
    assert_eq!((text(&update, "state"), text(&update["error"], "kind")), ("failed", "superseded"), "{update:#}");
    toygres.expect_nothing_of("one").await.unwrap();
}

/// An update whose row was written by a server that was killed then: the sweep begins it. (On this
/// machine nothing can be made public, so the API wouldn't write it.)
async fn begin_update(control: &sqlx::PgPool, name: &str) -> Result<String> {
    let (id,): (sqlx::types::Uuid,) = sqlx::query_as(
        "WITH before AS (SELECT * FROM toygres.instances WHERE name = $1 AND state <> 'deleted'),
            changed AS (UPDATE toygres.instances i SET spec = i.spec || $2, generation = i.generation + 1
                FROM before WHERE i.id = before.id RETURNING i.*)
         INSERT INTO toygres.operations (id, kind, instance_id, namespace, instance_name, cause, place, summary, spec_before, spec,
            generation, state_before)
         SELECT gen_random_uuid(), 'update', changed.id, 'default', $1, 'a test', changed.cluster_id, 'a test', before.spec,
            changed.spec, changed.generation, changed.state
         FROM changed, before RETURNING id",
    )
    .bind(name)
    .bind(json!({ "use_load_balancer": true, "dns_label": "demo" }))
    .fetch_one(control)
    .await?;
    Ok(id.to_string())
}

#[tokio::test]
async fn a_cancel_and_a_retry_are_finished_whoever_is_killed_in_between() {
    let toygres = Toygres::new().unwrap();
    let mut api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let failed = failed_create(&toygres, &api, "retried").await.unwrap();
    let mut ports = control.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE toygres.ports IN ACCESS EXCLUSIVE MODE").execute(&mut *ports).await.unwrap();
    let create = api.begin_create("cancelled").await.unwrap();
    wait_blocked(&control, "ports").await.unwrap();
    // Both are on record, and no workflow has heard of them yet.
    let held = hold_queue(&control).await.unwrap();
    let requests: Vec<_> = [format!("/v1/operations/{create}/cancel"), format!("/v1/operations/{failed}/retry")]
        .into_iter()
        .map(|path| {
            let api = api.clone();
            tokio::spawn(async move { api.post(&path).await })
        })
        .collect();
    let on_record = async || {
        let (count,): (i64,) = sqlx::query_as(
            "SELECT count(*) FROM toygres.operations WHERE cancel_requested_at IS NOT NULL OR retry_of IS NOT NULL",
        )
        .fetch_one(&control)
        .await?;
        Ok((count == 2).then_some(()))
    };
    eventually("both to be on record", SOON, on_record).await.unwrap();
    wait_blocked(&control, "enqueue").await.unwrap();
    toygres.kill_server().await.unwrap();
    for request in requests {
        request.await.unwrap().unwrap_err();
    }
    end_blocked(&control).await.unwrap();
    held.rollback().await.unwrap();
    ports.rollback().await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    api = toygres.api().unwrap();
    assert_eq!(text(&api.wait(&create).await.unwrap(), "state"), "cancelled");
    toygres.expect_nothing_of("cancelled").await.unwrap();
    let operations = api.items("/v1/operations?instance_name=retried").await.unwrap();
    let retries: Vec<_> = operations.iter().filter(|operation| operation["retry_of"] == *failed).collect();
    assert_eq!(retries.len(), 1, "{operations:?}");
    api.wait_success(text(retries[0], "id")).await.unwrap();
    toygres.only_postmaster("retried").await.unwrap();
    api.log_in("retried").await.unwrap();
}

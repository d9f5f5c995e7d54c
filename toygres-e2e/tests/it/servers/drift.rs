//! The row of an operation and its workflow can't drift apart: the server is killed between the two, on
//! either side, and afterwards there is exactly one of everything.

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::json;
use sqlx::PgPool;
use toygres_e2e::control::{end_blocked, hold_queue, let_go, wait_blocked, wait_held_up};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually};

/// One operation with one workflow, both ended as they should.
async fn expect_one(control: &PgPool, api: &Api, name: &str, kind: &str, state: &str) -> Result<()> {
    let operations = api.items(&format!("/v1/operations?instance_name={name}&kind={kind}")).await?;
    let [operation] = &operations[..] else { anyhow::bail!("{} operations: {operations:?}", operations.len()) };
    let id = operation["id"].as_str().unwrap_or_default();
    ensure!(api.wait(id).await?["state"] == state, "{operation:#}");
    let status = if state == "succeeded" { "Completed" } else { "Failed" };
    eventually("its one workflow to have ended", SOON, async || {
        let workflows: Vec<(String,)> =
            sqlx::query_as("SELECT status FROM duroxide.executions WHERE instance_id = $1").bind(id).fetch_all(control).await?;
        ensure!(workflows.len() <= 1, "{workflows:?}");
        Ok(workflows.iter().any(|(found,)| found == status).then_some(()))
    })
    .await?;
    // Only its own: the other operations may be at work still.
    let (queued,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM duroxide.worker_queue WHERE instance_id = $1").bind(id).fetch_one(control).await?;
    ensure!(queued == 0, "{queued} activities are still queued");
    let events = api.items(&format!("/v1/instances/{name}/events")).await?;
    for kind in ["create_requested", "instance_running", "delete_requested", "instance_deleted", "create_cancelled"] {
        let told = events.iter().filter(|event| event["kind"] == kind).count();
        ensure!(told <= 1, "{kind} was told {told} times: {events:?}");
    }
    Ok(())
}

async fn expect_made(toygres: &Toygres, api: &Api, name: &str) -> Result<()> {
    toygres.only_postmaster(name).await?;
    api.log_in(name).await.map(drop)
}

#[tokio::test]
async fn killed_after_the_row_and_before_the_workflow() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    api.create("old").await.unwrap();
    let held = hold_queue(&control).await.unwrap();
    let create = tokio::spawn({
        let api = api.clone();
        async move { api.begin_create("fresh").await }
    });
    let delete = tokio::spawn(async move { api.begin_delete("old").await });
    let both = async || {
        let (rows,): (i64,) =
            sqlx::query_as("SELECT count(*) FROM toygres.operations WHERE state = 'pending'").fetch_one(&control).await?;
        Ok((rows == 2).then_some(()))
    };
    eventually("both rows", SOON, both).await.unwrap();
    wait_blocked(&control, "enqueue").await.unwrap();
    toygres.kill_server().await.unwrap();
    create.await.unwrap().unwrap_err();
    delete.await.unwrap().unwrap_err();
    end_blocked(&control).await.unwrap();
    let (queued,): (i64,) = sqlx::query_as("SELECT count(*) FROM duroxide.instances i JOIN toygres.operations o ON o.id::text = i.instance_id WHERE o.state = 'pending'")
        .fetch_one(&control)
        .await
        .unwrap();
    held.rollback().await.unwrap();
    assert_eq!(queued, 0, "their workflows were started after all");
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    expect_one(&control, &api, "fresh", "create", "succeeded").await.unwrap();
    expect_made(&toygres, &api, "fresh").await.unwrap();
    expect_one(&control, &api, "old", "delete", "succeeded").await.unwrap();
    toygres.expect_nothing_of("old").await.unwrap();
}

/// Holds up the engine when it is about to note that an activity is done, once its operation has ended.
const HOLD_COMPLETION: &str = "
    CREATE FUNCTION public.e2e_hold_completion() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM toygres.operations o WHERE o.id::text = OLD.instance_id
                   AND o.state IN ('succeeded', 'cancelled')
                   AND (o.instance_name, o.kind) IN (('fresh', 'create'), ('old', 'delete'), ('given-up', 'create'))) THEN
            PERFORM pg_sleep(600);
        END IF;
        RETURN OLD;
    END $$;
    CREATE TRIGGER e2e_hold_completion BEFORE DELETE ON duroxide.worker_queue
        FOR EACH ROW EXECUTE FUNCTION public.e2e_hold_completion();";

#[tokio::test]
async fn killed_after_the_record_of_the_end_and_before_the_workflows_own() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let old = api.begin_create("old").await.unwrap();
    api.wait_success(&old).await.unwrap();
    // The hold-ups' own table is wanted for letting go.
    toygres_e2e::control::hold_up(&control, "nobody", "none", toygres_e2e::control::Moment::Begin).await.unwrap();
    sqlx::raw_sql(HOLD_COMPLETION).execute(&control).await.unwrap();
    let mut ports = control.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE toygres.ports IN ACCESS EXCLUSIVE MODE").execute(&mut *ports).await.unwrap();
    let given_up = api.begin_create("given-up").await.unwrap();
    wait_blocked(&control, "ports").await.unwrap();
    api.post(&format!("/v1/operations/{given_up}/cancel")).await.unwrap().expect(202).unwrap();
    ports.rollback().await.unwrap();
    let (create, delete) = (api.begin_create("fresh").await.unwrap(), api.begin_delete("old").await.unwrap());
    for id in [&create, &delete, &given_up] {
        api.wait(id).await.unwrap();
    }
    wait_held_up(&control, 3).await.unwrap();
    toygres.kill_server().await.unwrap();
    let_go(&control).await.unwrap();
    sqlx::raw_sql("DROP TRIGGER e2e_hold_completion ON duroxide.worker_queue").execute(&control).await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    expect_one(&control, &api, "fresh", "create", "succeeded").await.unwrap();
    expect_made(&toygres, &api, "fresh").await.unwrap();
    expect_one(&control, &api, "old", "delete", "succeeded").await.unwrap();
    expect_one(&control, &api, "given-up", "create", "cancelled").await.unwrap();
    for name in ["old", "given-up"] {
        toygres.expect_nothing_of(name).await.unwrap();
    }
}

#[tokio::test]
async fn killed_after_the_request_is_on_record_and_before_the_answer() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let held = hold_queue(&control).await.unwrap();
    let body = json!({ "name": "fresh" }).to_string();
    let request = tokio::spawn({
        let (api, body) = (api.with_idempotency_key("the-key"), body.clone());
        async move { api.send(Method::POST, "/v1/instances", Some(body)).await }
    });
    wait_blocked(&control, "enqueue").await.unwrap();
    toygres.kill_server().await.unwrap();
    request.await.unwrap().unwrap_err();
    end_blocked(&control).await.unwrap();
    held.rollback().await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let api = toygres.api().unwrap();
    let repeat =
        async || api.with_idempotency_key("the-key").send(Method::POST, "/v1/instances", Some(body.clone())).await.unwrap();
    let again = repeat().await;
    assert_eq!(again.headers["idempotency-replayed"], "true");
    let again = again.expect(202).unwrap();
    api.wait_success(again["id"].as_str().unwrap()).await.unwrap();
    expect_one(&control, &api, "fresh", "create", "succeeded").await.unwrap();
    expect_made(&toygres, &api, "fresh").await.unwrap();
    // Also when it has ended.
    let late = repeat().await.expect(202).unwrap();
    assert_eq!((&late["id"], &late["state"]), (&again["id"], &json!("succeeded")));
}

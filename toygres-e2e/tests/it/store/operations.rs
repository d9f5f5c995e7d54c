//! The metadata store on a real PostgreSQL, a database of its own for each test: operations, their
//! steps, events, ports, and the schema itself.

use serde_json::json;
use sqlx::types::Uuid;
use sqlx::types::chrono::Utc;
use tokio::task::JoinSet;
use toygres_e2e::store_database::{database, empty_database, key, new_instance, request_delete, to_state};
use toygres_models::store::{
    Created, IdempotencyKey, InstanceFilter, NewInstance, OperationFilter, Requested, StoreError, Subject,
};
use toygres_models::{
    Failure, FailureKind, Health, HealthStatus, InstanceState, OperationKind, OperationState, StepState, Store,
};

#[tokio::test]
async fn a_failed_operation_keeps_the_step_the_reason_and_the_evidence() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(create) = store.create_instance(&new_instance("default", "demo")).await.unwrap() else { panic!("not new") };
    let failure = Failure::permanent(FailureKind::StartFailed, "it ended").with_evidence(vec!["FATAL:  no".into()]);
    store.begin_step(create.id, "deploy-postgres").await.unwrap();
    store.end_step(create.id, "deploy-postgres", Some(&failure)).await.unwrap();
    store.update_metadata(&to_state(&create, InstanceState::Failed)).await.unwrap();
    let operation = store.operation(create.id).await.unwrap().unwrap();
    let instance = store.instance(&key("default", "demo")).await.unwrap();
    assert_eq!((operation.state, instance.state), (OperationState::Failed, InstanceState::Failed));
    assert_eq!(instance.status.health_status, None);
    for kept in [operation.error.map(|error| error.0), instance.status.0.failure] {
        let kept = kept.unwrap();
        assert_eq!((kept.step.as_str(), &kept.failure), ("deploy-postgres", &failure));
    }
    let events = store.events(create.instance_id, 0, 100).await.unwrap();
    assert!(events[1].message.contains("it ended") && events[1].cause == "a test", "{events:?}");
    // A retry that succeeds clears the reason.
    let retry = store.retry_operation(create.id, &Requested::by("test")).await.unwrap();
    store.update_metadata(&to_state(&retry, InstanceState::Running)).await.unwrap();
    assert!(store.instance(&key("default", "demo")).await.unwrap().status.failure.is_none());
}

#[tokio::test]
async fn steps_count_their_attempts_and_keep_their_order() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(create) = store.create_instance(&new_instance("default", "demo")).await.unwrap() else { panic!("not new") };
    assert_eq!(store.operation(create.id).await.unwrap().unwrap().state, OperationState::Pending);
    let mut revision = create.revision;
    let failure = Failure::transient(FailureKind::Platform, "not yet");
    for (step, end) in [("one", Some(None)), ("two", Some(Some(&failure))), ("two", None), ("two", Some(None)), ("three", None)] {
        store.begin_step(create.id, step).await.unwrap();
        if let Some(end) = end {
            store.end_step(create.id, step, end).await.unwrap();
        }
        let now = store.operation(create.id).await.unwrap().unwrap();
        assert!(now.revision > revision, "a change that nobody is woken by");
        revision = now.revision;
    }
    let operation = store.operation(create.id).await.unwrap().unwrap();
    let steps: Vec<_> = operation.steps.iter().map(|step| (step.name.as_str(), step.attempts, step.state)).collect();
    assert_eq!(steps, [("one", 1, StepState::Succeeded), ("two", 3, StepState::Succeeded), ("three", 1, StepState::Running)]);
    assert!(operation.steps[1].error.is_none() && operation.started_at.is_some());

    // A step of no operation, or of one that has ended, is nobody's.
    store.begin_step(Uuid::from_u128(1), "one").await.unwrap();
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    store.begin_step(create.id, "late").await.unwrap();
    let ended = store.operation(create.id).await.unwrap().unwrap();
    assert_eq!((ended.state, ended.steps.len()), (OperationState::Succeeded, 3));
}

#[tokio::test]
async fn a_workflow_that_broke_ends_its_operation_once() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(create) = store.create_instance(&new_instance("default", "demo")).await.unwrap() else { panic!("not new") };
    assert_eq!(store.unfinished_operations().await.unwrap().len(), 1);
    store.begin_step(create.id, "deploy-postgres").await.unwrap();
    store.end_step(create.id, "deploy-postgres", None).await.unwrap();
    store.begin_step(create.id, "wait-for-ready").await.unwrap();
    let broken = Failure::permanent(FailureKind::Internal, "the workflow broke");
    for _ in 0..2 {
        store.fail_operation(create.id, broken.clone()).await.unwrap();
    }
    assert!(store.unfinished_operations().await.unwrap().is_empty());
    let steps = store.operation(create.id).await.unwrap().unwrap().steps;
    let ends: Vec<_> = steps.iter().map(|step| (step.state, step.error.as_ref().map(|error| &error.0))).collect();
    assert_eq!(ends, [(StepState::Succeeded, None), (StepState::Failed, Some(&broken))]);
    assert_eq!(store.instance(&key("default", "demo")).await.unwrap().state, InstanceState::Failed);
    let kinds: Vec<_> = store.events(create.instance_id, 0, 100).await.unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["create_requested", "instance_failed"]);
}

#[tokio::test]
async fn a_port_has_one_owner_however_many_ask_at_once() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let mut claims = JoinSet::new();
    for number in 0..12 {
        let store: Store = store.clone();
        claims.spawn(async move { store.claim_port(&key("default", &format!("demo-{number}")), 20_000).await });
    }
    let won = claims.join_all().await.into_iter().filter(|claim| *claim.as_ref().unwrap()).count();
    assert_eq!(won, 1);
    assert_eq!(store.ports().await.unwrap(), [20_000]);
    let mine = key("default", "mine");
    assert!(!store.claim_port(&mine, 20_000).await.unwrap());
    assert!(store.claim_port(&mine, 20_001).await.unwrap() && store.claim_port(&mine, 20_001).await.unwrap());
    assert!(store.claim_port(&mine, 20_002).await.unwrap(), "in place of the one it has");
    assert_eq!(store.port(&mine).await.unwrap(), Some(20_002));
    for _ in 0..2 {
        store.release_port(&mine).await.unwrap();
    }
    assert_eq!(store.port(&mine).await.unwrap(), None);
    assert!(store.claim_port(&key("default", "next"), 20_002).await.unwrap());
}

#[tokio::test]
async fn events_are_in_order_and_those_of_a_deleted_instance_are_no_error() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(create) = store.create_instance(&new_instance("default", "demo")).await.unwrap() else { panic!("not new") };
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    for (kind, healthy) in [("server_exited", false), ("server_restarted", true)] {
        store.record_platform_event(&key("default", "demo"), None, kind, "words", "a test", healthy).await.unwrap();
        let health = store.instance(&key("default", "demo")).await.unwrap().status.0.health_status;
        assert_eq!(health, Some(if healthy { HealthStatus::Healthy } else { HealthStatus::Unhealthy }));
    }
    let events = store.events(create.instance_id, 0, 100).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["create_requested", "instance_running", "server_exited", "server_restarted"]);
    assert!(events.is_sorted_by_key(|event| event.id));
    let rest = store.events(create.instance_id, events[1].id, 1).await.unwrap();
    assert_eq!(rest, events[2..3]);
    // Another cluster's instance of the same name, and one whose deletion takes its server down.
    let count = async || store.events(create.instance_id, 0, 100).await.unwrap().len();
    store.record_platform_event(&key("default", "demo"), Some("other"), "server_exited", "w", "a test", false).await.unwrap();
    assert_eq!(count().await, 4);
    request_delete(store, &key("default", "demo"), &Requested::by("test")).await.unwrap();
    store.record_platform_event(&key("default", "demo"), None, "server_exited", "w", "a test", false).await.unwrap();
    assert_eq!(count().await, 5, "only that its deletion was asked for");
    store.record_platform_event(&key("default", "nobody"), None, "server_exited", "words", "a test", false).await.unwrap();
    store.record_health(Uuid::now_v7(), &Health::healthy(), Utc::now(), None).await.unwrap();
}

#[tokio::test]
async fn operations_are_listed_newest_first_and_by_instance() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    for name in ["one", "two", "three"] {
        store.create_instance(&new_instance("default", name)).await.unwrap();
    }
    request_delete(store, &key("default", "two"), &Requested::by("test")).await.unwrap();
    let names = async |filter: OperationFilter, limit| -> Vec<_> {
        let operations = store.operations(&filter, limit).await.unwrap();
        operations.into_iter().map(|operation| (operation.kind, operation.instance_name)).collect()
    };
    let all = names(OperationFilter::default(), 100).await;
    assert_eq!(all[0], (OperationKind::DELETE, "two".into()));
    assert_eq!(all[1..].iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["three", "two", "one"]);
    let newest = store.operations(&OperationFilter::default(), 2).await.unwrap();
    let older = names(OperationFilter { before: Some(newest[1].id), ..OperationFilter::default() }, 100).await;
    assert_eq!(older, all[2..]);
    assert_eq!(names(OperationFilter { instance_name: Some("two".into()), ..OperationFilter::default() }, 100).await.len(), 2);
    assert!(names(OperationFilter { namespaces: Some(vec!["team".into()]), ..OperationFilter::default() }, 100).await.is_empty());
}

#[tokio::test]
async fn a_wait_for_an_operation_ends_when_the_operation_changes() {
    let Some(database) = database().await.unwrap() else { return };
    let changes = database.store.listen().await.unwrap();
    let mut woken = changes.subscribe(Subject::Operations);
    let Created::New(create) = database.store.create_instance(&new_instance("default", "demo")).await.unwrap() else {
        panic!("not new")
    };
    let next = async |woken: &mut tokio::sync::broadcast::Receiver<Option<Uuid>>| {
        tokio::time::timeout(toygres_e2e::wait::SOON, woken.recv()).await.unwrap().unwrap()
    };
    assert_eq!(next(&mut woken).await, Some(create.id));
    database.store.begin_step(create.id, "one").await.unwrap();
    assert_eq!(next(&mut woken).await, Some(create.id));
    // Again after its connection was cut.
    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()",
    )
    .execute(database.store.pool())
    .await
    .unwrap();
    // Told once it stands again, and nothing has changed since.
    assert_eq!(next(&mut woken).await, None);
    database.store.end_step(create.id, "one", None).await.unwrap();
    assert_eq!(next(&mut woken).await, Some(create.id));
}

#[tokio::test]
async fn servers_that_start_at_once_bring_the_schema_up_to_date_once() {
    let Some(database) = empty_database().await.unwrap() else { return };
    let mut starts = JoinSet::new();
    for _ in 0..6 {
        let options = database.options.clone();
        starts.spawn(async move { Store::connect(options, 2).await });
    }
    for store in starts.join_all().await {
        store.unwrap().pool().close().await;
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_as_it_is() {
    let Some(database) = database().await.unwrap() else { return };
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', true, '\\x00', 0)",
    )
    .execute(database.store.pool())
    .await
    .unwrap();
    let refused = Store::connect(database.options.clone(), 1).await;
    assert!(matches!(refused, Err(StoreError::NewerSchema(9999))), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("nothing was changed"));
    // Another user's objects of the same names, in another schema, are none of ours.
    let pin = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public', current_database()); END $$";
    sqlx::raw_sql(&format!("CREATE TABLE public.instances (id int); {pin}")).execute(database.store.pool()).await.unwrap();
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 9999").execute(database.store.pool()).await.unwrap();
    let store = Store::connect(database.options.clone(), 1).await.unwrap();
    assert!(store.instances(&InstanceFilter::default(), 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_request_is_found_again_by_its_key_whatever_became_of_its_operation() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let requested = |key: &str, digest| {
        let key = IdempotencyKey { key: key.to_owned(), request_sha256: [digest; 32] };
        Requested { idempotency_key: Some(key), ..Requested::by("test") }
    };
    assert!(store.operation_by_idempotency_key("one").await.unwrap().is_none());
    let new = NewInstance { requested: requested("one", 1), ..new_instance("default", "demo") };
    let Created::New(create) = store.create_instance(&new).await.unwrap() else { panic!("not new") };
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    let (found, digest) = store.operation_by_idempotency_key("one").await.unwrap().unwrap();
    assert_eq!((found.id, found.state, digest.as_slice()), (create.id, OperationState::Succeeded, &[1; 32][..]));
    // A key names one operation, also of requests that come at once: of the second one nothing is written.
    let delete =
        store.request_operation(&key("default", "demo"), OperationKind::DELETE, json!({}), None, &requested("one", 2)).await;
    assert!(delete.is_err(), "{delete:?}");
    assert_eq!(store.instance(&key("default", "demo")).await.unwrap().state, InstanceState::Running);
    // Whoever joins an operation begins none.
    for digest in [3, 4] {
        request_delete(store, &key("default", "demo"), &requested(&format!("delete-{digest}"), digest)).await.unwrap();
    }
    assert!(store.operation_by_idempotency_key("delete-3").await.unwrap().is_some());
    assert!(store.operation_by_idempotency_key("delete-4").await.unwrap().is_none());
}

//! The metadata store on a real PostgreSQL, a database of its own for each test.

mod common;

use std::collections::BTreeSet;

use common::{database, key, new_instance, to_state, update};
use sqlx::types::Uuid;
use tokio::task::JoinSet;
use toygres_models::store::{Created, DeleteRequested, MetadataUpdate, OperationFilter, StoreError};
use toygres_models::{Failure, FailureKind, InstanceState, OperationKind, OperationState, StepState, Store};

async fn nothing_to_do() -> Result<(), Failure> {
    Ok(())
}

#[tokio::test]
async fn the_table_of_legal_transitions_is_the_one_of_the_program() {
    let Some(database) = database().await.unwrap() else { return };
    let rows: Vec<(String, String)> = sqlx::query_as("SELECT from_state, to_state FROM state_transitions").fetch_all(database.store.pool()).await.unwrap();
    let in_sql: BTreeSet<_> = rows.into_iter().collect();
    let in_rust = InstanceState::TRANSITIONS.iter().map(|(from, to)| (from.to_string(), to.to_string())).collect();
    assert_eq!(in_sql, in_rust);
}

#[tokio::test]
async fn sql_itself_refuses_every_illegal_transition_and_no_legal_one() {
    let Some(database) = database().await.unwrap() else { return };
    for &from in InstanceState::ALL {
        for &to in InstanceState::ALL {
            let id: (Uuid,) = sqlx::query_as(
                "INSERT INTO instances (id, namespace, name, platform, postgres_version, storage_size_gb, state)
                 VALUES (gen_random_uuid(), $1, $2, 'local', '15.1', 1, $1) RETURNING id",
            )
            .bind(from)
            .bind(to)
            .fetch_one(database.store.pool())
            .await
            .unwrap();
            let changed = sqlx::query("UPDATE instances SET state = $2 WHERE id = $1").bind(id.0).bind(to).execute(database.store.pool()).await;
            assert_eq!(changed.is_ok(), from.may_become(to), "{from} to {to}");
            if let Err(error) = changed {
                let told = StoreError::from(error);
                assert!(matches!(&told, StoreError::IllegalTransition(text) if text.contains("may not go from")), "{told:?}");
            }
        }
    }
    let unknown = sqlx::query("UPDATE instances SET state = 'resting'").execute(database.store.pool()).await;
    assert!(unknown.is_err(), "a state that doesn't exist was taken");
}

#[tokio::test]
async fn a_live_name_is_unique_in_its_namespace_and_free_after_its_deletion() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(first) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else { panic!("not new") };
    assert!(matches!(store.create_instance(&new_instance("team", "demo"), nothing_to_do).await.unwrap(), Created::New(_)));
    let Created::Existing(instance, Some(operation)) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else {
        panic!("made twice")
    };
    assert_eq!((instance.id, operation.id), (first.instance_id, first.id));
    let DeleteRequested::New(delete) = store.delete_instance(&key("default", "demo"), "test").await.unwrap() else { panic!("not new") };
    assert!(matches!(store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap(), Created::Existing(..)), "free too early");
    store.update_metadata(&to_state(&delete, InstanceState::Deleted)).await.unwrap();
    assert!(matches!(store.instance(&key("default", "demo")).await, Err(StoreError::InstanceNotFound(_))));
    assert_eq!(store.instance_or_last_deleted(&key("default", "demo")).await.unwrap().id, first.instance_id);
    let Created::New(second) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else { panic!("not free") };
    assert_ne!(second.instance_id, first.instance_id);
    assert_eq!(store.instance_or_last_deleted(&key("default", "demo")).await.unwrap().id, second.instance_id);
}

#[tokio::test]
async fn of_creates_at_once_one_is_new_and_its_secret_is_never_overwritten() {
    let Some(database) = database().await.unwrap() else { return };
    let mut creates = JoinSet::new();
    for number in 0..8 {
        let store = database.store.clone();
        creates.spawn(async move {
            let mut stored = None;
            let created = store
                .create_instance(&new_instance("default", "demo"), async || {
                    stored = Some(number);
                    nothing_to_do().await
                })
                .await?;
            Ok::<_, StoreError>((created, stored))
        });
    }
    let mut operations = BTreeSet::new();
    let (mut new, mut secrets) = (0, 0);
    while let Some(created) = creates.join_next().await {
        let (created, stored) = created.unwrap().unwrap();
        secrets += i32::from(stored.is_some());
        let operation = match created {
            Created::New(operation) => {
                new += 1;
                operation
            }
            Created::Existing(_, operation) => operation.unwrap(),
        };
        operations.insert(operation.id);
    }
    assert_eq!((new, secrets, operations.len()), (1, 1, 1));
}

#[tokio::test]
async fn a_create_whose_secret_could_not_be_kept_leaves_nothing() {
    let Some(database) = database().await.unwrap() else { return };
    let full = Failure::permanent(FailureKind::Exhausted, "the disk is full");
    let refused = database.store.create_instance(&new_instance("default", "demo"), async || Err(full.clone())).await;
    assert!(matches!(refused, Err(StoreError::Refused(failure)) if failure == full));
    let (rows,): (i64,) = sqlx::query_as("SELECT (SELECT count(*) FROM instances) + (SELECT count(*) FROM operations) + (SELECT count(*) FROM events)")
        .fetch_one(database.store.pool())
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn an_operation_ends_with_the_state_it_was_for_and_repeating_that_changes_nothing() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(create) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else { panic!("not new") };
    store.begin_step(create.id, "deploy-postgres").await.unwrap();
    store.end_step(create.id, "deploy-postgres", None).await.unwrap();
    let running = MetadataUpdate {
        health_status: Some("healthy".into()),
        ip_connection_string: Some("postgresql://postgres@127.0.0.1:1/postgres".into()),
        ..to_state(&create, InstanceState::Running)
    };
    assert!(!store.update_metadata(&running).await.unwrap(), "the record was there");
    let (before, events) = (store.operation(create.id).await.unwrap().unwrap(), store.events(create.instance_id, 0, 100).await.unwrap());
    assert_eq!(before.state, OperationState::Succeeded);
    for _ in 0..3 {
        assert!(!store.update_metadata(&running).await.unwrap());
    }
    assert_eq!(store.operation(create.id).await.unwrap().unwrap(), before);
    assert_eq!(store.events(create.instance_id, 0, 100).await.unwrap(), events, "repeated events");
    let instance = store.instance(&key("default", "demo")).await.unwrap();
    assert_eq!((instance.state, instance.health_status.as_deref()), (InstanceState::Running, Some("healthy")));

    // An update without an address leaves the one that is known.
    store.update_metadata(&MetadataUpdate { ip_connection_string: None, ..running.clone() }).await.unwrap();
    assert_eq!(store.instance(&key("default", "demo")).await.unwrap().ip_connection_string, running.ip_connection_string);
    let illegal = store.update_metadata(&to_state(&create, InstanceState::Creating)).await;
    assert!(matches!(illegal, Err(StoreError::IllegalTransition(_))), "{illegal:?}");
}

#[tokio::test]
async fn a_record_that_is_not_there_is_made() {
    let Some(database) = database().await.unwrap() else { return };
    let new = update(Uuid::from_u128(7), "demo", InstanceState::Running);
    assert!(database.store.update_metadata(&new).await.unwrap(), "the record had to be made");
    assert!(!database.store.update_metadata(&new).await.unwrap());
    assert_eq!(database.store.instance(&key("default", "demo")).await.unwrap().state, InstanceState::Running);
}

#[tokio::test]
async fn a_failed_operation_keeps_the_step_the_reason_and_the_evidence() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(create) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else { panic!("not new") };
    let failure = Failure::permanent(FailureKind::StartFailed, "it ended").with_evidence(vec!["FATAL:  no".into()]);
    store.begin_step(create.id, "deploy-postgres").await.unwrap();
    store.end_step(create.id, "deploy-postgres", Some(&failure)).await.unwrap();
    store.update_metadata(&to_state(&create, InstanceState::Failed)).await.unwrap();
    let operation = store.operation(create.id).await.unwrap().unwrap();
    let instance = store.instance(&key("default", "demo")).await.unwrap();
    assert_eq!((operation.state, instance.state, instance.health_status), (OperationState::Failed, InstanceState::Failed, None));
    for kept in [operation.error, instance.failure] {
        let kept = kept.unwrap().0;
        assert_eq!((kept.step.as_str(), &kept.failure), ("deploy-postgres", &failure));
    }
    let events = store.events(create.instance_id, 0, 100).await.unwrap();
    assert!(events[1].message.contains("it ended") && events[1].cause == "a test", "{events:?}");
    // Its deletion clears the reason.
    store.delete_instance(&key("default", "demo"), "test").await.unwrap();
    assert!(store.instance(&key("default", "demo")).await.unwrap().failure.is_none());
}

#[tokio::test]
async fn a_create_that_a_delete_overtook_ends_failed_and_leaves_the_instance_to_it() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    for (name, state) in [("one", InstanceState::Running), ("two", InstanceState::Failed)] {
        let Created::New(create) = store.create_instance(&new_instance("default", name), nothing_to_do).await.unwrap() else { panic!("not new") };
        store.begin_step(create.id, "deploy-postgres").await.unwrap();
        let DeleteRequested::New(delete) = store.delete_instance(&key("default", name), "test").await.unwrap() else { panic!("not new") };
        assert!(store.creation_at_work(delete.id).await.unwrap());
        let DeleteRequested::AtWork(again) = store.delete_instance(&key("default", name), "test").await.unwrap() else { panic!("two deletes") };
        assert_eq!(again.id, delete.id);
        store.update_metadata(&to_state(&create, state)).await.unwrap();
        assert!(!store.creation_at_work(delete.id).await.unwrap());
        assert_eq!(store.instance_by_id(create.instance_id).await.unwrap().state, InstanceState::Deleting);
        assert_eq!(store.operation(create.id).await.unwrap().unwrap().state, OperationState::Failed, "{state}");
        store.update_metadata(&to_state(&delete, InstanceState::Deleted)).await.unwrap();
        // Even later, from a worker that was asleep.
        let _ = store.update_metadata(&to_state(&create, state)).await;
        let instance = store.instance_by_id(create.instance_id).await.unwrap();
        assert_eq!((instance.state, instance.deleted_at.is_some()), (InstanceState::Deleted, true));
    }
}

#[tokio::test]
async fn a_failed_delete_can_be_asked_for_again() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(create) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else { panic!("not new") };
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    let DeleteRequested::New(first) = store.delete_instance(&key("default", "demo"), "test").await.unwrap() else { panic!("not new") };
    store.update_metadata(&to_state(&first, InstanceState::Failed)).await.unwrap();
    assert!(store.operation(first.id).await.unwrap().unwrap().error.is_some(), "it failed and doesn't say why");
    let DeleteRequested::New(second) = store.delete_instance(&key("default", "demo"), "test").await.unwrap() else { panic!("not new") };
    assert_ne!(first.id, second.id);
    store.update_metadata(&to_state(&second, InstanceState::Deleted)).await.unwrap();
    assert!(matches!(store.delete_instance(&key("default", "demo"), "test").await, Err(StoreError::InstanceNotFound(_))));
}

#[tokio::test]
async fn steps_count_their_attempts_and_keep_their_order() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(create) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else { panic!("not new") };
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
    let Created::New(create) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else { panic!("not new") };
    assert_eq!(store.unfinished_operations().await.unwrap().len(), 1);
    let broken = Failure::permanent(FailureKind::Internal, "the workflow broke");
    for _ in 0..2 {
        store.fail_operation(create.id, broken.clone()).await.unwrap();
    }
    assert!(store.unfinished_operations().await.unwrap().is_empty());
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
    let Created::New(create) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else { panic!("not new") };
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    for (kind, healthy) in [("server_exited", false), ("server_restarted", true)] {
        store.record_platform_event(&key("default", "demo"), kind, "words", "a test", healthy).await.unwrap();
        let health = store.instance(&key("default", "demo")).await.unwrap().health_status;
        assert_eq!(health.as_deref(), Some(if healthy { "healthy" } else { "unhealthy" }));
    }
    let events = store.events(create.instance_id, 0, 100).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["create_requested", "instance_running", "server_exited", "server_restarted"]);
    assert!(events.is_sorted_by_key(|event| event.id));
    let rest = store.events(create.instance_id, events[1].id, 1).await.unwrap();
    assert_eq!(rest, events[2..3]);
    store.record_platform_event(&key("default", "nobody"), "server_exited", "words", "a test", false).await.unwrap();
    store.record_health(&key("default", "nobody"), false).await.unwrap();
}

#[tokio::test]
async fn operations_are_listed_newest_first_and_by_instance() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    for name in ["one", "two", "three"] {
        store.create_instance(&new_instance("default", name), nothing_to_do).await.unwrap();
    }
    store.delete_instance(&key("default", "two"), "test").await.unwrap();
    let names = async |filter: OperationFilter, limit| -> Vec<_> {
        let operations = store.operations(&filter, limit).await.unwrap();
        operations.into_iter().map(|operation| (operation.kind, operation.instance_name)).collect()
    };
    let all = names(OperationFilter::default(), 100).await;
    assert_eq!(all[0], (OperationKind::Delete, "two".into()));
    assert_eq!(all[1..].iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["three", "two", "one"]);
    let newest = store.operations(&OperationFilter::default(), 2).await.unwrap();
    let older = names(OperationFilter { before: Some(newest[1].id), ..OperationFilter::default() }, 100).await;
    assert_eq!(older, all[2..]);
    assert_eq!(names(OperationFilter { instance_name: Some("two".into()), ..OperationFilter::default() }, 100).await.len(), 2);
    assert!(names(OperationFilter { namespace: Some("team".into()), ..OperationFilter::default() }, 100).await.is_empty());
}

#[tokio::test]
async fn whoever_waits_for_an_operation_is_woken_by_its_changes() {
    let Some(database) = database().await.unwrap() else { return };
    let changes = database.store.listen().await.unwrap();
    let mut woken = changes.subscribe();
    let Created::New(create) = database.store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else { panic!("not new") };
    let next = async |woken: &mut tokio::sync::broadcast::Receiver<Uuid>| {
        tokio::time::timeout(toygres_e2e::wait::SOON, woken.recv()).await.unwrap().unwrap()
    };
    assert_eq!(next(&mut woken).await, create.id);
    database.store.begin_step(create.id, "one").await.unwrap();
    assert_eq!(next(&mut woken).await, create.id);
    // Again after its connection was cut.
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()")
        .execute(database.store.pool())
        .await
        .unwrap();
    toygres_e2e::eventually("a wake after the cut", toygres_e2e::wait::SOON, async || {
        database.store.end_step(create.id, "one", None).await?;
        database.store.begin_step(create.id, "one").await?;
        Ok(woken.try_recv().ok())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn servers_that_start_at_once_bring_the_schema_up_to_date_once() {
    let Some(database) = common::empty_database().await.unwrap() else { return };
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
    assert!(store.instances(None, None, 10).await.unwrap().is_empty());
}

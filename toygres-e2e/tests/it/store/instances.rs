//! The metadata store on a real PostgreSQL, a database of its own for each test: instances, their
//! names and their states.

use std::collections::BTreeSet;

use serde_json::json;
use sqlx::types::{Json, Uuid};
use tokio::task::JoinSet;
use toygres_e2e::store_database::{database, key, new_instance, request_delete, to_state, update};
use toygres_models::store::{
    AdoptedInstance, Created, Instance, InstanceFilter, MetadataUpdate, NewInstance, OperationRequested, Requested, StoreError,
};
use toygres_models::{
    Failure, FailureKind, HealthStatus, InstanceSpec, InstanceState, OperationKind, OperationState, Power, StepFailure,
};

#[tokio::test]
async fn the_table_of_legal_transitions_is_the_one_of_the_program() {
    let Some(database) = database().await.unwrap() else { return };
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT from_state, to_state FROM state_transitions").fetch_all(database.store.pool()).await.unwrap();
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
                "INSERT INTO instances (id, namespace, name, spec, generation, state)
                 VALUES (gen_random_uuid(), $1, $2, '{\"platform\": \"local\", \"postgres_version\": \"15.1\"}', 1, $1) RETURNING id",
            )
            .bind(from)
            .bind(to)
            .fetch_one(database.store.pool())
            .await
            .unwrap();
            let changed = sqlx::query("UPDATE instances SET state = $2 WHERE id = $1")
                .bind(id.0)
                .bind(to)
                .execute(database.store.pool())
                .await;
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
    let Created::New(first) = store.create_instance(&new_instance("default", "demo")).await.unwrap() else { panic!("not new") };
    assert!(matches!(store.create_instance(&new_instance("team", "demo")).await.unwrap(), Created::New(_)));
    let Created::Existing(instance, Some(operation)) = store.create_instance(&new_instance("default", "demo")).await.unwrap()
    else {
        panic!("made twice")
    };
    assert_eq!((instance.id, operation.id), (first.instance_id, first.id));
    let OperationRequested::New(delete) = request_delete(store, &key("default", "demo"), &Requested::by("test")).await.unwrap()
    else {
        panic!("not new")
    };
    assert!(
        matches!(store.create_instance(&new_instance("default", "demo")).await.unwrap(), Created::Existing(..)),
        "free too early"
    );
    store.update_metadata(&to_state(&delete, InstanceState::Deleted)).await.unwrap();
    assert!(matches!(store.instance(&key("default", "demo")).await, Err(StoreError::InstanceNotFound(_))));
    assert_eq!(store.instance_or_last_deleted(&key("default", "demo")).await.unwrap().id, first.instance_id);
    let Created::New(second) = store.create_instance(&new_instance("default", "demo")).await.unwrap() else { panic!("not free") };
    assert_ne!(second.instance_id, first.instance_id);
    assert_eq!(store.instance_or_last_deleted(&key("default", "demo")).await.unwrap().id, second.instance_id);
}

#[tokio::test]
async fn of_creates_at_once_one_is_new() {
    let Some(database) = database().await.unwrap() else { return };
    let mut creates = JoinSet::new();
    for _ in 0..8 {
        let store = database.store.clone();
        creates.spawn(async move { store.create_instance(&new_instance("default", "demo")).await });
    }
    let (mut operations, mut new) = (BTreeSet::new(), 0);
    while let Some(created) = creates.join_next().await {
        let operation = match created.unwrap().unwrap() {
            Created::New(operation) => {
                new += 1;
                operation
            }
            Created::Existing(_, operation) => operation.unwrap(),
        };
        operations.insert(operation.id);
    }
    assert_eq!((new, operations.len()), (1, 1));
}

#[tokio::test]
async fn an_operation_ends_with_the_state_it_was_for_and_repeating_that_changes_nothing() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(create) = store.create_instance(&new_instance("default", "demo")).await.unwrap() else { panic!("not new") };
    store.begin_step(create.id, "deploy-postgres").await.unwrap();
    store.end_step(create.id, "deploy-postgres", None).await.unwrap();
    let running = MetadataUpdate {
        health_status: Some(HealthStatus::Healthy),
        ip_connection_string: Some("postgresql://postgres@127.0.0.1:1/postgres".into()),
        ..to_state(&create, InstanceState::Running)
    };
    assert!(!store.update_metadata(&running).await.unwrap(), "the record was there");
    let (before, events) =
        (store.operation(create.id).await.unwrap().unwrap(), store.events(create.instance_id, 0, 100).await.unwrap());
    assert_eq!(before.state, OperationState::Succeeded);
    for _ in 0..3 {
        assert!(!store.update_metadata(&running).await.unwrap());
    }
    assert_eq!(store.operation(create.id).await.unwrap().unwrap(), before);
    assert_eq!(store.events(create.instance_id, 0, 100).await.unwrap(), events, "repeated events");
    let instance = store.instance(&key("default", "demo")).await.unwrap();
    assert_eq!((instance.state, instance.status.health_status), (InstanceState::Running, Some(HealthStatus::Healthy)));

    // An update without an address leaves the one that is known.
    store.update_metadata(&update(create.instance_id, "demo", InstanceState::Running)).await.unwrap();
    assert_eq!(store.instance(&key("default", "demo")).await.unwrap().status.ip_connection_string, running.ip_connection_string);
    // Whoever still believes that the operation is at work writes nothing.
    store.update_metadata(&to_state(&create, InstanceState::Failed)).await.unwrap();
    assert_eq!(store.instance(&key("default", "demo")).await.unwrap().state, InstanceState::Running);
    let illegal = store.update_metadata(&update(create.instance_id, "demo", InstanceState::Creating)).await;
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
async fn a_create_that_a_delete_overtook_ends_failed_and_leaves_the_instance_to_it() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    for (name, state) in [("one", InstanceState::Running), ("two", InstanceState::Failed)] {
        let Created::New(create) = store.create_instance(&new_instance("default", name)).await.unwrap() else {
            panic!("not new")
        };
        store.begin_step(create.id, "deploy-postgres").await.unwrap();
        let OperationRequested::New(delete) = request_delete(store, &key("default", name), &Requested::by("test")).await.unwrap()
        else {
            panic!("not new")
        };
        assert_eq!(store.other_change_at_work(delete.id).await.unwrap(), Some(OperationKind::CREATE));
        let OperationRequested::AtWork(again) =
            request_delete(store, &key("default", name), &Requested::by("test")).await.unwrap()
        else {
            panic!("two deletes")
        };
        assert_eq!(again.id, delete.id);
        store.update_metadata(&to_state(&create, state)).await.unwrap();
        assert_eq!(store.other_change_at_work(delete.id).await.unwrap(), None);
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
    let Created::New(create) = store.create_instance(&new_instance("default", "demo")).await.unwrap() else { panic!("not new") };
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    let OperationRequested::New(first) = request_delete(store, &key("default", "demo"), &Requested::by("test")).await.unwrap()
    else {
        panic!("not new")
    };
    store.update_metadata(&to_state(&first, InstanceState::Failed)).await.unwrap();
    assert!(store.operation(first.id).await.unwrap().unwrap().error.is_some(), "it failed and doesn't say why");
    let OperationRequested::New(second) = request_delete(store, &key("default", "demo"), &Requested::by("test")).await.unwrap()
    else {
        panic!("not new")
    };
    assert_ne!(first.id, second.id);
    store.update_metadata(&to_state(&second, InstanceState::Deleted)).await.unwrap();
    assert!(matches!(
        request_delete(store, &key("default", "demo"), &Requested::by("test")).await,
        Err(StoreError::InstanceNotFound(_))
    ));
}

#[tokio::test]
async fn a_record_says_the_same_in_json_whatever_is_in_it() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let failure = StepFailure {
        step: "deploy-postgres".into(),
        failure: Failure { evidence: vec!["\"\\\u{1}\n🐘".into()], ..Failure::transient(FailureKind::TimedOut, "a \"b\"\tc") },
    };
    // With nothing but what must be, and with everything, in words that JSON has to escape.
    let bare = json!({ "platform": "local", "postgres_version": "15.1" });
    let full = json!({ "platform": "kubernetes", "postgres_version": "18.6", "storage_size_gb": 65536, "use_load_balancer": true,
        "dns_label": "lab", "cpu": "500m", "memory": "2Gi", "storage_class": "fast", "labels": { "team": "a.b", "owner": "c" },
        "delete_protection": true, "power": "stopped" });
    let status = json!({ "members": [{ "member": 0, "role": "primary", "phase": "Failed", "postgres_version": null, "image": "i" }],
        "health_status": "unhealthy", "health_reasons": [{ "kind": "disk_full", "message": "\"\\" }], "health_since": "2026-01-02T03:04:05.000006Z",
        "ip_connection_string": "postgresql://\"\\", "dns_connection_string": "dns", "failure": failure });
    for (name, spec, status) in [("bare", bare, json!({})), ("full", full, status)] {
        sqlx::query(
            "INSERT INTO instances (id, namespace, name, spec, generation, state, status, cluster_id, created_at)
             VALUES (gen_random_uuid(), 'a', $1, $2, 9007199254740993, 'failed', $3, 'c', '2026-01-02 03:04:05.000006')",
        )
        .bind(name)
        .bind(Json(spec))
        .bind(Json(status))
        .execute(store.pool())
        .await
        .unwrap();
    }
    let records = store.instances(&InstanceFilter::default(), 10).await.unwrap();
    assert_eq!(records.iter().map(|record| &*record.name).collect::<Vec<_>>(), ["bare", "full"]);
    assert_eq!(records[1].status.failure.as_ref(), Some(&failure));
    let read: Vec<Instance> = serde_json::from_str(&serde_json::to_string(&records).unwrap()).unwrap();
    assert_eq!(read, records);
}

#[tokio::test]
async fn a_lost_record_is_made_again_with_the_operation_that_adopts_it() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let NewInstance { key, spec, requested, .. } = new_instance("default", "demo");
    let id = Uuid::from_u128(7);
    let lost = AdoptedInstance { key, id: Some(id), cluster_id: Some("here".into()), spec, members: Vec::new(), requested };
    let adopt = store.adopt_instance(&lost).await.unwrap();
    assert_eq!((adopt.kind, adopt.instance_id, adopt.place.as_str()), (OperationKind::ADOPT, id, "here"));
    let again = store.adopt_instance(&lost).await;
    assert!(matches!(&again, Err(StoreError::NotNow(words)) if words.contains("on record already")), "{again:?}");
    store.update_metadata(&to_state(&adopt, InstanceState::Running)).await.unwrap();
    assert!(!store.instance(&lost.key).await.unwrap().is_behind());
    let kinds: Vec<_> = store.events(id, 0, 100).await.unwrap().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["adopt_requested", "instance_adopted"]);
    // An id that a deleted instance had on record isn't used again.
    let OperationRequested::New(delete) = request_delete(store, &lost.key, &Requested::by("test")).await.unwrap() else {
        panic!("not new")
    };
    store.update_metadata(&to_state(&delete, InstanceState::Deleted)).await.unwrap();
    let stopped = InstanceSpec { power: Power::Stopped, ..lost.spec.clone() };
    let second = store.adopt_instance(&AdoptedInstance { spec: stopped, ..lost.clone() }).await.unwrap();
    assert_ne!(second.instance_id, id);
    let instance = store.instance(&lost.key).await.unwrap();
    assert_eq!((instance.state, instance.generation), (InstanceState::Stopped, 2), "its ETags aren't those of before");
}

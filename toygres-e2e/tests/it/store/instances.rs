//! The metadata store on a real PostgreSQL, a database of its own for each test: instances, their
//! names and their states.

use std::collections::BTreeSet;

use sqlx::types::{Json, Uuid};
use tokio::task::JoinSet;
use toygres_e2e::store_database::{database, key, new_instance, to_state, update};
use toygres_models::store::{
    Created, DeleteRequested, Instance, InstanceFilter, MetadataUpdate, Requested, StepFailure, StoreError,
};
use toygres_models::{Failure, FailureKind, InstanceState, OperationKind, OperationState};

async fn nothing_to_do() -> Result<(), Failure> {
    Ok(())
}

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
                "INSERT INTO instances (id, namespace, name, platform, postgres_version, storage_size_gb, state)
                 VALUES (gen_random_uuid(), $1, $2, 'local', '15.1', 1, $1) RETURNING id",
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
    let Created::New(first) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else {
        panic!("not new")
    };
    assert!(matches!(store.create_instance(&new_instance("team", "demo"), nothing_to_do).await.unwrap(), Created::New(_)));
    let Created::Existing(instance, Some(operation)) =
        store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap()
    else {
        panic!("made twice")
    };
    assert_eq!((instance.id, operation.id), (first.instance_id, first.id));
    let DeleteRequested::New(delete) =
        store.delete_instance(&key("default", "demo"), None, &Requested::by("test")).await.unwrap()
    else {
        panic!("not new")
    };
    assert!(
        matches!(store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap(), Created::Existing(..)),
        "free too early"
    );
    store.update_metadata(&to_state(&delete, InstanceState::Deleted)).await.unwrap();
    assert!(matches!(store.instance(&key("default", "demo")).await, Err(StoreError::InstanceNotFound(_))));
    assert_eq!(store.instance_or_last_deleted(&key("default", "demo")).await.unwrap().id, first.instance_id);
    let Created::New(second) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else {
        panic!("not free")
    };
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
    let (rows,): (i64,) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM instances) + (SELECT count(*) FROM operations) + (SELECT count(*) FROM events)",
    )
    .fetch_one(database.store.pool())
    .await
    .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn a_create_whose_secret_takes_its_time_holds_the_name_for_as_long() {
    let Some(database) = database().await.unwrap() else { return };
    let (begun, first_begun) = tokio::sync::oneshot::channel();
    let slowly = async move || {
        begun.send(()).unwrap();
        // Longer than other transactions may pause.
        tokio::time::sleep(std::time::Duration::from_secs(6)).await;
        Ok(())
    };
    let new = new_instance("default", "demo");
    let second = async {
        first_begun.await.unwrap();
        database.store.create_instance(&new, async || panic!("its secret would overwrite the first one's")).await
    };
    let (first, second) = tokio::join!(database.store.create_instance(&new, slowly), second);
    assert!(matches!(first, Ok(Created::New(_))), "{first:?}");
    assert!(matches!(second, Ok(Created::Existing(..))), "{second:?}");
}

#[tokio::test]
async fn an_operation_ends_with_the_state_it_was_for_and_repeating_that_changes_nothing() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    let Created::New(create) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else {
        panic!("not new")
    };
    store.begin_step(create.id, "deploy-postgres").await.unwrap();
    store.end_step(create.id, "deploy-postgres", None).await.unwrap();
    let running = MetadataUpdate {
        health_status: Some("healthy".into()),
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
    assert_eq!((instance.state, instance.health_status.as_deref()), (InstanceState::Running, Some("healthy")));

    // An update without an address leaves the one that is known.
    store.update_metadata(&update(create.instance_id, "demo", InstanceState::Running)).await.unwrap();
    assert_eq!(store.instance(&key("default", "demo")).await.unwrap().ip_connection_string, running.ip_connection_string);
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
        let Created::New(create) = store.create_instance(&new_instance("default", name), nothing_to_do).await.unwrap() else {
            panic!("not new")
        };
        store.begin_step(create.id, "deploy-postgres").await.unwrap();
        let DeleteRequested::New(delete) =
            store.delete_instance(&key("default", name), None, &Requested::by("test")).await.unwrap()
        else {
            panic!("not new")
        };
        assert_eq!(store.other_change_at_work(delete.id).await.unwrap(), Some(OperationKind::Create));
        let DeleteRequested::AtWork(again) =
            store.delete_instance(&key("default", name), None, &Requested::by("test")).await.unwrap()
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
    let Created::New(create) = store.create_instance(&new_instance("default", "demo"), nothing_to_do).await.unwrap() else {
        panic!("not new")
    };
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    let DeleteRequested::New(first) = store.delete_instance(&key("default", "demo"), None, &Requested::by("test")).await.unwrap()
    else {
        panic!("not new")
    };
    store.update_metadata(&to_state(&first, InstanceState::Failed)).await.unwrap();
    assert!(store.operation(first.id).await.unwrap().unwrap().error.is_some(), "it failed and doesn't say why");
    let DeleteRequested::New(second) =
        store.delete_instance(&key("default", "demo"), None, &Requested::by("test")).await.unwrap()
    else {
        panic!("not new")
    };
    assert_ne!(first.id, second.id);
    store.update_metadata(&to_state(&second, InstanceState::Deleted)).await.unwrap();
    assert!(matches!(
        store.delete_instance(&key("default", "demo"), None, &Requested::by("test")).await,
        Err(StoreError::InstanceNotFound(_))
    ));
}

#[tokio::test]
async fn a_lists_rows_are_the_same_json_as_the_records() {
    let Some(database) = database().await.unwrap() else { return };
    let store = &database.store;
    // With nothing but what must be, and with everything, in words that JSON has to escape.
    sqlx::query(
        r#"INSERT INTO instances (id, namespace, name, platform, postgres_version, storage_size_gb)
           VALUES (gen_random_uuid(), 'a', 'bare', 'local', '15.1', 1);"#,
    )
    .execute(store.pool())
    .await
    .unwrap();
    let failure = StepFailure {
        step: "deploy-postgres".into(),
        failure: Failure { evidence: vec!["\"\\\u{1}\n🐘".into()], ..Failure::transient(FailureKind::TimedOut, "a \"b\"\tc") },
    };
    sqlx::query(
        r#"INSERT INTO instances (id, namespace, name, platform, postgres_version, storage_size_gb, use_load_balancer, dns_label,
               cpu, memory, storage_class, cluster_id, labels, delete_protection, revision, state, health_status,
               ip_connection_string, dns_connection_string, health_check_orchestration_id, failure, created_at)
           VALUES (gen_random_uuid(), 'b', 'full', 'kubernetes', '18.6', 2147483647, true, 'l', '500m', '2Gi', 'fast', 'c',
               '{"team": "a.b", "owner": "c"}', true, 9007199254740993, 'failed', 'unhealthy', 'postgresql://"\', 'dns', 'h',
               $1, '2026-01-02 03:04:05.000006')"#,
    )
    .bind(Json(&failure))
    .execute(store.pool())
    .await
    .unwrap();
    let filter = InstanceFilter::default();
    let records = store.instances(&filter, 10).await.unwrap();
    assert_eq!((records.len(), records[1].failure.as_ref().map(|failure| &failure.0)), (2, Some(&failure)));
    let rows = store.instance_rows(&filter, 10).await.unwrap();
    assert_eq!(rows.iter().map(|row| &*row.name).collect::<Vec<_>>(), ["bare", "full"]);
    let read: Vec<Instance> = serde_json::from_str(&serde_json::to_string(&rows).unwrap()).unwrap();
    assert_eq!(read, records);
    // Equal in text too, but for the blanks in PostgreSQL's JSON.
    let text = |json: &serde_json::Value| json.to_string();
    assert_eq!(text(&serde_json::to_value(&rows).unwrap()), text(&serde_json::to_value(&records).unwrap()));
}

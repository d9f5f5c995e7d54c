//! Cancelling and retrying in the metadata store, on a real PostgreSQL, a database of its own for each
//! test: what a cancel puts back, what can't be taken back, and that of two who race one wins whole.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use serde_json::{Value, json};
use sqlx::types::Uuid;
use tokio::task::JoinSet;
use toygres_e2e::store_database::{StoreDatabase, database, key, new_instance, request_change, request_delete, to_state};
use toygres_models::store::{ChangeRequested, Created, MetadataUpdate, Operation, OperationRequested, Requested, StoreError};
use toygres_models::{Failure, FailureKind, InstanceState, OperationKind, OperationState, PlatformName, Store};

async fn begin_create(store: &Store, name: &str) -> Operation {
    match store.create_instance(&new_instance("default", name)).await.unwrap() {
        Created::New(operation) => operation,
        Created::Existing(..) => panic!("not new"),
    }
}

async fn begin_delete(store: &Store, name: &str) -> Operation {
    match request_delete(store, &key("default", name), &alice()).await.unwrap() {
        OperationRequested::New(operation) => operation,
        OperationRequested::AtWork(_) => panic!("not new"),
    }
}

async fn change(store: &Store, fields: Value) -> ChangeRequested {
    request_change(store, &key("default", "demo"), &fields, &alice()).await.unwrap()
}

async fn begin_update(store: &Store) -> Operation {
    match change(store, json!({ "use_load_balancer": true, "dns_label": "demo" })).await {
        ChangeRequested::New(operation) => *operation,
        other => panic!("not new: {other:?}"),
    }
}

fn alice() -> Requested {
    Requested::by("alice")
}

/// What is written at the end of an operation that was reverted.
async fn reverted(store: &Store, operation: &Operation, state: InstanceState) -> MetadataUpdate {
    assert!(store.begin_revert(operation.id).await.unwrap(), "there is nothing to revert");
    to_state(operation, state)
}

async fn states(store: &Store, operation: &Operation) -> (OperationState, InstanceState) {
    let now = store.operation(operation.id).await.unwrap().unwrap();
    (now.state, store.instance_by_id(operation.instance_id).await.unwrap().state)
}

async fn kinds(store: &Store, operation: &Operation) -> Vec<String> {
    store.events(operation.instance_id, 0, 100).await.unwrap().into_iter().map(|event| event.kind).collect()
}

async fn fail(store: &Store, operation: &Operation, step: &str) {
    let failure = Failure::permanent(FailureKind::StartFailed, "it ended");
    store.begin_step(operation.id, step).await.unwrap();
    store.end_step(operation.id, step, Some(&failure)).await.unwrap();
    store.update_metadata(&to_state(operation, InstanceState::Failed)).await.unwrap();
}

#[tokio::test]
async fn a_cancelled_create_can_only_end_with_nothing_left() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    for state in [InstanceState::Running, InstanceState::Failed] {
        let create = begin_create(store, "demo").await;
        store.begin_step(create.id, "deploy-postgres").await.unwrap();
        let cancelled = store.cancel_operation(create.id, &alice()).await.unwrap();
        assert_eq!(cancelled.cancel_requested_by.as_deref(), Some("alice"));
        let again = store.cancel_operation(create.id, &Requested::by("bob")).await.unwrap();
        assert_eq!(again.cancel_requested_by.as_deref(), Some("alice"), "repeating it changes nothing");
        assert_eq!(states(store, &create).await, (OperationState::Running, InstanceState::Deleting));
        let late = store.update_metadata(&to_state(&create, state)).await.unwrap_err();
        assert!(matches!(late, StoreError::Cancelled(_)), "{late:?}");
        assert_eq!(Failure::from(late).kind, FailureKind::Cancelled);
        store.update_metadata(&reverted(store, &create, InstanceState::Deleted).await).await.unwrap();
        assert_eq!(states(store, &create).await, (OperationState::Cancelled, InstanceState::Deleted));
        assert_eq!(kinds(store, &create).await, ["create_requested", "cancel_requested", "create_cancelled"]);
        let last = store.events(create.instance_id, 0, 100).await.unwrap().pop().unwrap();
        assert_eq!((last.actor.as_str(), last.cause.as_str()), ("alice", "cancelled by alice"));
        // A second cancel changes nothing.
        assert_eq!(store.cancel_operation(create.id, &alice()).await.unwrap().state, OperationState::Cancelled);
    }
}

#[tokio::test]
async fn what_has_ended_can_not_be_cancelled_and_says_how_it_ended() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let create = begin_create(store, "demo").await;
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    let refused = store.cancel_operation(create.id, &alice()).await.unwrap_err();
    assert!(matches!(&refused, StoreError::NotNow(words) if words.contains("succeeded already")), "{refused:?}");
    assert_eq!(states(store, &create).await, (OperationState::Succeeded, InstanceState::Running));
    let unknown = store.cancel_operation(Uuid::from_u128(7), &alice()).await.unwrap_err();
    assert!(matches!(unknown, StoreError::OperationNotFound(_)), "{unknown:?}");
}

#[tokio::test]
async fn of_a_cancel_and_a_success_at_once_one_wins_whole() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let mut won = [0, 0];
    for round in 0..20 {
        let create = begin_create(store, &format!("demo-{round}")).await;
        let (update, requested) = (to_state(&create, InstanceState::Running), alice());
        let (cancelled, succeeded) = tokio::join!(store.cancel_operation(create.id, &requested), store.update_metadata(&update));
        assert_ne!(cancelled.is_ok(), succeeded.is_ok(), "{cancelled:?} {succeeded:?}");
        let (operation, instance) = states(store, &create).await;
        match cancelled.is_ok() {
            true => assert!(!operation.is_final() && instance == InstanceState::Deleting, "{operation} {instance}"),
            false => assert_eq!((operation, instance), (OperationState::Succeeded, InstanceState::Running)),
        }
        won[usize::from(cancelled.is_ok())] += 1;
    }
    println!("the success came first {} times, the cancel {} times", won[0], won[1]);
}

#[tokio::test]
async fn a_cancelled_create_leaves_its_instance_to_the_delete_that_came_after() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    for cancel_first in [true, false] {
        let create = begin_create(store, "demo").await;
        store.begin_step(create.id, "deploy-postgres").await.unwrap();
        let delete = if cancel_first {
            store.cancel_operation(create.id, &alice()).await.unwrap();
            begin_delete(store, "demo").await
        } else {
            let delete = begin_delete(store, "demo").await;
            store.cancel_operation(create.id, &alice()).await.unwrap();
            delete
        };
        // It can't be called off: the creation is given up.
        let refused = store.cancel_operation(delete.id, &alice()).await.unwrap_err();
        assert!(matches!(refused, StoreError::PointOfNoReturn(_)), "{refused:?}");
        store.update_metadata(&reverted(store, &create, InstanceState::Deleted).await).await.unwrap();
        // The name isn't free while the delete may still remove what has it.
        assert_eq!(states(store, &create).await, (OperationState::Cancelled, InstanceState::Deleting));
        store.update_metadata(&to_state(&delete, InstanceState::Deleted)).await.unwrap();
        assert_eq!(states(store, &delete).await, (OperationState::Succeeded, InstanceState::Deleted));
    }
}

#[tokio::test]
async fn a_delete_can_be_called_off_until_a_step_of_it_begins() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let create = begin_create(store, "demo").await;
    fail(store, &create, "deploy-postgres").await;
    let failure = store.instance(&key("default", "demo")).await.unwrap().status.0.failure;
    let delete = begin_delete(store, "demo").await;
    store.cancel_operation(delete.id, &alice()).await.unwrap();
    assert_eq!(states(store, &delete).await, (OperationState::Cancelled, InstanceState::Failed));
    assert_eq!(store.instance(&key("default", "demo")).await.unwrap().status.0.failure, failure, "why it had failed");
    // Its workflow may come late, and does nothing.
    store.begin_step(delete.id, "delete-postgres").await.unwrap();
    store.update_metadata(&to_state(&delete, InstanceState::Deleted)).await.unwrap();
    assert_eq!(states(store, &delete).await, (OperationState::Cancelled, InstanceState::Failed));
    assert!(store.operation(delete.id).await.unwrap().unwrap().steps.is_empty());

    let delete = begin_delete(store, "demo").await;
    store.begin_step(delete.id, "delete-postgres").await.unwrap();
    let refused = store.cancel_operation(delete.id, &alice()).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::PointOfNoReturn(words) if words.contains("has begun and can't be taken back")),
        "{refused:?}"
    );
    assert_eq!(states(store, &delete).await, (OperationState::Running, InstanceState::Deleting));
}

#[tokio::test]
async fn of_a_cancel_and_the_first_step_of_a_delete_at_once_one_wins() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    for round in 0..20 {
        let name = format!("demo-{round}");
        let create = begin_create(store, &name).await;
        store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
        let delete = begin_delete(store, &name).await;
        let requested = alice();
        let (cancelled, begun) =
            tokio::join!(store.cancel_operation(delete.id, &requested), store.begin_step(delete.id, "delete-postgres"));
        begun.unwrap();
        let steps = store.operation(delete.id).await.unwrap().unwrap().steps.len();
        let expected = match cancelled {
            Ok(_) => (OperationState::Cancelled, InstanceState::Running, 0),
            Err(StoreError::PointOfNoReturn(_)) => (OperationState::Running, InstanceState::Deleting, 1),
            Err(error) => panic!("{error:?}"),
        };
        let (operation, instance) = states(store, &delete).await;
        assert_eq!((operation, instance, steps), expected);
    }
}

#[tokio::test]
async fn a_cancelled_update_makes_the_record_say_again_what_was_before() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let create = begin_create(store, "demo").await;
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    let instance = async || store.instance(&key("default", "demo")).await.unwrap();
    let private = instance().await.spec.0;
    // Before a step of it began: over at once, and the platform was never otherwise.
    let update = begin_update(store).await;
    assert!(instance().await.spec.use_load_balancer && instance().await.is_behind());
    store.cancel_operation(update.id, &alice()).await.unwrap();
    assert_eq!(states(store, &update).await, (OperationState::Cancelled, InstanceState::Running));
    assert!(instance().await.spec.0 == private && !instance().await.is_behind());
    let update = begin_update(store).await;
    assert!(matches!(change(store, json!({ "labels": { "team": "b" } })).await, ChangeRequested::Done(_)));
    store.cancel_operation(update.id, &alice()).await.unwrap();
    assert!(!instance().await.is_behind(), "a label that changed meanwhile is on record alone");
    assert!(matches!(change(store, json!({ "labels": {} })).await, ChangeRequested::Done(_)));
    assert!(instance().await.spec.0 == private && !instance().await.is_behind());
    // And after: the steps bring about what was before, then the record says so.
    let update = begin_update(store).await;
    store.begin_step(update.id, "deploy-postgres").await.unwrap();
    store.cancel_operation(update.id, &alice()).await.unwrap();
    assert_eq!(states(store, &update).await, (OperationState::Running, InstanceState::Running));
    let public = MetadataUpdate { ip_connection_string: Some("public".into()), ..to_state(&update, InstanceState::Running) };
    assert!(matches!(store.update_metadata(&public).await, Err(StoreError::Cancelled(_))));
    let back = reverted(store, &update, InstanceState::Running).await;
    let reverting = store.operation(update.id).await.unwrap().unwrap();
    assert!(reverting.reverting && *reverting.target() == private, "{reverting:?}");
    // What is changed meanwhile on record alone stays.
    let labels = change(store, json!({ "labels": { "team": "a" } })).await;
    assert!(matches!(labels, ChangeRequested::Done(_)), "{labels:?}");
    store.update_metadata(&MetadataUpdate { ip_connection_string: Some("private".into()), ..back }).await.unwrap();
    assert_eq!(states(store, &update).await, (OperationState::Cancelled, InstanceState::Running));
    let after = instance().await;
    let expected = private.with(json!({ "labels": { "team": "a" } }).as_object().unwrap()).unwrap();
    assert_eq!((after.status.ip_connection_string.as_deref(), &after.spec.0), (Some("private"), &expected));
    assert!(!after.is_behind(), "{after:?}");
}

#[tokio::test]
async fn a_failed_update_that_was_reverted_leaves_nothing_to_be_done() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let create = begin_create(store, "demo").await;
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    let before = store.instance(&key("default", "demo")).await.unwrap();
    let update = begin_update(store).await;
    let failure = Failure::permanent(FailureKind::StartFailed, "it ended");
    store.begin_step(update.id, "deploy-postgres").await.unwrap();
    store.end_step(update.id, "deploy-postgres", Some(&failure)).await.unwrap();
    let back = reverted(store, &update, InstanceState::Running).await;
    for _ in 0..2 {
        store.begin_step(update.id, "deploy-postgres").await.unwrap();
        store.end_step(update.id, "deploy-postgres", None).await.unwrap();
    }
    store.update_metadata(&back).await.unwrap();
    let ended = store.operation(update.id).await.unwrap().unwrap();
    let steps: Vec<_> = ended.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["deploy-postgres", "undo-deploy-postgres"], "what failed stays on record");
    assert_eq!((ended.state, &ended.error.unwrap().failure), (OperationState::Failed, &failure));
    let after = store.instance(&key("default", "demo")).await.unwrap();
    assert!(after.spec == before.spec && after.state == InstanceState::Running && !after.is_behind(), "{after:?}");
    assert!(after.generation > before.generation, "who saw the change has to look again");
    assert!(matches!(change(store, json!({ "use_load_balancer": false })).await, ChangeRequested::Unchanged(_)));
    // And it can be tried again.
    let retry = store.retry_operation(update.id, &alice()).await.unwrap();
    assert_eq!((&retry.spec, &retry.spec_before), (&update.spec, &update.spec_before));
}

#[tokio::test]
async fn after_an_update_that_could_not_be_reverted_the_platform_is_behind_until_an_update_succeeds() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let create = begin_create(store, "demo").await;
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    let is_behind = async || store.instance(&key("default", "demo")).await.unwrap().is_behind();
    let private = async || change(store, json!({ "use_load_balancer": false })).await;
    assert!(matches!(private().await, ChangeRequested::Unchanged(_)));
    let first = begin_update(store).await;
    fail(store, &first, "deploy-postgres").await;
    assert!(!store.instance(&key("default", "demo")).await.unwrap().spec.use_load_balancer, "the record is as before");
    assert!(is_behind().await);
    // One that was called off before it did anything repairs nothing.
    let second = begin_update(store).await;
    store.cancel_operation(second.id, &alice()).await.unwrap();
    assert!(is_behind().await);
    // What is only on record is no reason.
    let protected = change(store, json!({ "delete_protection": true })).await;
    assert!(matches!(protected, ChangeRequested::Done(_)), "{protected:?}");
    assert!(is_behind().await);
    // A restart brings it to no spec.
    let restart = store.request_operation(&key("default", "demo"), OperationKind::RESTART, json!({}), None, &alice()).await;
    let OperationRequested::New(restart) = restart.unwrap() else { panic!("not new") };
    store.update_metadata(&to_state(&restart, InstanceState::Running)).await.unwrap();
    assert!(is_behind().await);
    let ChangeRequested::New(third) = private().await else { panic!("it may be public still") };
    assert!(!third.changes_spec());
    store.update_metadata(&to_state(&third, InstanceState::Running)).await.unwrap();
    assert!(!is_behind().await);
    assert!(matches!(private().await, ChangeRequested::Unchanged(_)));
}

#[tokio::test]
async fn an_update_ends_with_an_event_of_its_own_and_leaves_no_name_of_before() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let create = begin_create(store, "demo").await;
    let first = MetadataUpdate {
        ip_connection_string: Some("ip".into()),
        dns_connection_string: Some("dns".into()),
        ..to_state(&create, InstanceState::Running)
    };
    store.update_metadata(&first).await.unwrap();
    let update = begin_update(store).await;
    let second = MetadataUpdate { ip_connection_string: Some("other".into()), ..to_state(&update, InstanceState::Running) };
    store.update_metadata(&second).await.unwrap();
    // Another server may repeat the last step of the create. It writes nothing then.
    store.update_metadata(&first).await.unwrap();
    let instance = store.instance(&key("default", "demo")).await.unwrap();
    let status = instance.status.0;
    assert_eq!((status.ip_connection_string.as_deref(), status.dns_connection_string), (Some("other"), None));
    assert_eq!(kinds(store, &create).await, ["create_requested", "instance_running", "update_requested", "instance_updated"]);
}

#[tokio::test]
async fn a_failed_operation_is_tried_again_by_one_new_one_however_often_it_is_asked_for() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let create = begin_create(store, "demo").await;
    assert!(matches!(store.retry_operation(create.id, &alice()).await, Err(StoreError::NotNow(_))), "it hasn't ended");
    fail(store, &create, "wait-for-ready").await;
    let mut asked = JoinSet::new();
    for _ in 0..8 {
        let (store, id) = (store.clone(), create.id);
        asked.spawn(async move { store.retry_operation(id, &alice()).await.unwrap().id });
    }
    let mut ids = asked.join_all().await;
    ids.dedup();
    let [retry] = ids[..] else { panic!("{ids:?}") };
    let retry = store.operation(retry).await.unwrap().unwrap();
    assert_eq!((retry.retry_of, retry.kind), (Some(create.id), create.kind));
    assert_eq!(states(store, &retry).await, (OperationState::Pending, InstanceState::Creating));
    fail(store, &retry, "wait-for-ready").await;
    let refused = store.retry_operation(create.id, &alice()).await.unwrap_err();
    assert!(matches!(&refused, StoreError::NotNow(words) if words.contains(&retry.id.to_string())), "{refused:?}");
    let second = store.retry_operation(retry.id, &alice()).await.unwrap();
    store.update_metadata(&to_state(&second, InstanceState::Running)).await.unwrap();
    assert_eq!(states(store, &second).await, (OperationState::Succeeded, InstanceState::Running));
    let refused = store.retry_operation(second.id, &alice()).await.unwrap_err();
    assert!(matches!(&refused, StoreError::NotNow(words) if words.contains("has succeeded")), "{refused:?}");
}

#[tokio::test]
async fn a_failed_delete_is_tried_again_unless_the_instance_is_protected_or_gone() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let create = begin_create(store, "demo").await;
    store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
    let delete = begin_delete(store, "demo").await;
    fail(store, &delete, "delete-postgres").await;
    let protect = async |on: bool| change(store, json!({ "delete_protection": on })).await;
    protect(true).await;
    assert!(matches!(store.retry_operation(delete.id, &alice()).await, Err(StoreError::Protected(_))));
    protect(false).await;
    let retry = store.retry_operation(delete.id, &alice()).await.unwrap();
    assert_eq!(states(store, &retry).await, (OperationState::Pending, InstanceState::Deleting));
    // Called off, it is as if it had not been asked for.
    store.cancel_operation(retry.id, &alice()).await.unwrap();
    assert_eq!(states(store, &retry).await, (OperationState::Cancelled, InstanceState::Failed));
    let retry = store.retry_operation(delete.id, &alice()).await.unwrap();
    store.update_metadata(&to_state(&retry, InstanceState::Deleted)).await.unwrap();
    let refused = store.retry_operation(delete.id, &alice()).await.unwrap_err();
    assert!(matches!(&refused, StoreError::NotNow(words) if words.contains("is deleted")), "{refused:?}");
}

#[tokio::test]
async fn an_operation_is_expected_to_take_as_long_as_the_last_ones_of_its_kind_did() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    for (number, seconds) in [9.0, 2.0, 3.0, 4.0, 100.0].into_iter().enumerate() {
        let create = begin_create(store, &format!("demo-{number}")).await;
        if number == 0 {
            assert_eq!(store.expected_seconds(&create).await.unwrap(), None, "nothing is known yet");
        }
        store.update_metadata(&to_state(&create, InstanceState::Running)).await.unwrap();
        sqlx::query("UPDATE operations SET created_at = finished_at - make_interval(secs => $2) WHERE id = $1")
            .bind(create.id)
            .bind(seconds)
            .execute(store.pool())
            .await
            .unwrap();
    }
    let create = begin_create(store, "demo").await;
    assert_eq!(store.expected_seconds(&create).await.unwrap(), Some(4.0));
    let delete = begin_delete(store, "demo-0").await;
    assert_eq!(store.expected_seconds(&delete).await.unwrap(), None, "another kind");
    let mut elsewhere = create.clone();
    elsewhere.spec.platform = PlatformName::Kubernetes;
    assert_eq!(store.expected_seconds(&elsewhere).await.unwrap(), None, "another platform");
    let update = Operation { kind: OperationKind::UPDATE, summary: "stop".into(), ..create };
    assert_eq!(store.expected_seconds(&update).await.unwrap(), None, "another change");
}

#[tokio::test]
async fn a_cancelled_create_whose_workflow_broke_is_failed_and_can_be_deleted() {
    let Some(StoreDatabase { store, .. }) = &database().await.unwrap() else { return };
    let create = begin_create(store, "demo").await;
    store.cancel_operation(create.id, &alice()).await.unwrap();
    store.fail_operation(create.id, Failure::permanent(FailureKind::Internal, "the workflow broke")).await.unwrap();
    assert_eq!(states(store, &create).await, (OperationState::Failed, InstanceState::Failed));
    let delete = begin_delete(store, "demo").await;
    store.update_metadata(&to_state(&delete, InstanceState::Deleted)).await.unwrap();
    assert_eq!(states(store, &delete).await, (OperationState::Succeeded, InstanceState::Deleted));
}

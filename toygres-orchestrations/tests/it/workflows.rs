//! The workflows under duroxide's in-memory store, with scripted activities in the real ones'
//! places: what is called, in which order, what is repeated, and how each failure ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use duroxide::providers::TagFilter;
use duroxide::providers::sqlite::SqliteProvider;
use duroxide::runtime::registry::ActivityRegistry;
use duroxide::runtime::{OrchestrationStatus, Runtime, RuntimeOptions};
use duroxide::{ActivityContext, Client, ClientError};
use serde_json::{Value, json};
use toygres_activities::names::activities::{
    DELETE_POSTGRES, DEPLOY_POSTGRES, GET_CONNECTION_STRINGS, TEST_CONNECTION, UPDATE_METADATA, WAIT_FOR_READY,
};
use toygres_models::store::Exposure;
use toygres_models::{Failure, FailureKind};
use toygres_orchestrations::names::orchestrations::{CREATE_INSTANCE, DELETE_INSTANCE, UPDATE_INSTANCE};
use toygres_orchestrations::registry::{RECORDS, create_orchestration_registry};
use toygres_orchestrations::retry::CANCEL_QUEUE;
use toygres_orchestrations::{CreateInstanceInput, DeleteInstanceInput, UpdateInstanceInput};
use uuid::Uuid;

const URI: &str = "postgresql://postgres@127.0.0.1:20001/postgres?sslmode=verify-full";
/// A place, which the test's server serves.
const HERE: &str = "here";
/// Of a create, and of an update.
const STEPS: [&str; 4] = [DEPLOY_POSTGRES, WAIT_FOR_READY, GET_CONNECTION_STRINGS, TEST_CONNECTION];

/// Failures that the activities are to answer with before they succeed, and what was called.
#[derive(Clone, Default)]
struct Script {
    failures: Arc<Mutex<HashMap<&'static str, Vec<Failure>>>>,
    calls: Arc<Mutex<Vec<(&'static str, Value)>>>,
    /// Of each call.
    tags: Arc<Mutex<Vec<Option<String>>>>,
}

impl Script {
    fn failing(activity: &'static str, failures: impl IntoIterator<Item = Failure>) -> Self {
        let script = Self::default();
        script.failures.lock().unwrap().insert(activity, failures.into_iter().collect());
        script
    }

    fn answer(&self, activity: &'static str, input: &str) -> Result<String, String> {
        self.calls.lock().unwrap().push((activity, serde_json::from_str(input).unwrap()));
        if let Some(failures) = self.failures.lock().unwrap().get_mut(activity)
            && !failures.is_empty()
        {
            return Err(failures.remove(0).encode());
        }
        let output = match activity {
            DEPLOY_POSTGRES => json!({"instance_name": "demo", "namespace": "default", "created": true}),
            WAIT_FOR_READY => json!({"pod_phase": "Running", "ready_after_seconds": 0}),
            GET_CONNECTION_STRINGS => {
                json!({"ip_connection_string": URI, "dns_connection_string": null, "external_ip": null, "dns_name": null})
            }
            TEST_CONNECTION => json!({"version": "PostgreSQL 17.4", "connected": true}),
            DELETE_POSTGRES => json!({"deleted": true}),
            _ => json!({"instance_id": Uuid::nil(), "created": false}),
        };
        Ok(output.to_string())
    }

    fn registry(&self) -> ActivityRegistry {
        let names = [DEPLOY_POSTGRES, DELETE_POSTGRES, WAIT_FOR_READY, GET_CONNECTION_STRINGS, TEST_CONNECTION, UPDATE_METADATA];
        names
            .into_iter()
            .fold(ActivityRegistry::builder(), |builder, name| {
                let script = self.clone();
                builder.register(name, move |ctx: ActivityContext, input: String| {
                    let script = script.clone();
                    script.tags.lock().unwrap().push(ctx.tag().map(str::to_owned));
                    async move { script.answer(name, &input) }
                })
            })
            .build_result()
            .unwrap()
    }

    fn called(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().iter().map(|(activity, _)| *activity).collect()
    }

    /// The input of the last record that was written down.
    fn last_record(&self) -> Value {
        let calls = self.calls.lock().unwrap();
        calls.iter().rev().find(|(activity, _)| *activity == UPDATE_METADATA).unwrap().1.clone()
    }

    /// Whether each deployment was of a public instance, in order.
    fn deployed_public(&self) -> Vec<bool> {
        let calls = self.calls.lock().unwrap();
        let deployed = calls.iter().filter(|(activity, _)| *activity == DEPLOY_POSTGRES);
        deployed.map(|(_, input)| input["use_load_balancer"].as_bool().unwrap()).collect()
    }

    /// Which exposure each call of a step was told, in order.
    fn told_exposures(&self, step: &str) -> Vec<Value> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(activity, _)| *activity == step).map(|(_, input)| input["exposure"].clone()).collect()
    }

    /// What was written down, in order.
    fn recorded_states(&self) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        let records = calls.iter().filter(|(activity, _)| *activity == UPDATE_METADATA);
        records.map(|(_, input)| input["state"].as_str().unwrap().to_owned()).collect()
    }
}

/// The in-memory store says that it is locked now and then, which passes.
async fn unlocked<T>(call: impl AsyncFn() -> Result<T, ClientError>) -> T {
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) if error.is_retryable() => tokio::task::yield_now().await,
            Err(error) => panic!("the in-memory store failed: {error}"),
        }
    }
}

async fn run(script: &Script, workflow: &str, input: String) -> Result<String, Failure> {
    run_while(script, (workflow, None), input, async |_| ()).await
}

/// Runs a workflow, of that version or the newest, while something else happens.
async fn run_while(
    script: &Script,
    (workflow, version): (&str, Option<&str>),
    input: String,
    meanwhile: impl AsyncFnOnce(&Client),
) -> Result<String, Failure> {
    // The failures are meant, and the in-memory store's own complaints are routine.
    let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::default());
    let store = Arc::new(SqliteProvider::new_in_memory().await.unwrap());
    let options = RuntimeOptions {
        dispatcher_min_poll_interval: Duration::from_millis(2),
        worker_tag_filter: TagFilter::default_and([HERE, RECORDS]),
        ..RuntimeOptions::default()
    };
    let runtime = Runtime::start_with_options(store.clone(), script.registry(), create_orchestration_registry(), options).await;
    let client = Client::new(store);
    unlocked(async || match version {
        Some(version) => client.start_orchestration_versioned("operation", workflow, version, input.clone()).await,
        None => client.start_orchestration("operation", workflow, input.clone()).await,
    })
    .await;
    meanwhile(&client).await;
    let status = unlocked(async || client.wait_for_orchestration("operation", Duration::from_secs(60)).await).await;
    runtime.shutdown(Some(100)).await;
    match status {
        OrchestrationStatus::Completed { output, .. } => Ok(output),
        OrchestrationStatus::Failed { details, .. } => match details {
            duroxide::ErrorDetails::Application { message, .. } => Err(Failure::decode(&message)),
            other => panic!("the workflow broke: {}", other.display_message()),
        },
        other => panic!("the workflow did not end: {other:?}"),
    }
}

fn create_input(place: Option<&str>) -> String {
    let input = CreateInstanceInput {
        instance_id: Uuid::nil(),
        namespace: "default".into(),
        instance_name: "demo".into(),
        postgres_version: "17.4".into(),
        storage_size_gb: 10,
        use_load_balancer: false,
        dns_label: None,
        place: place.map(str::to_owned),
    };
    serde_json::to_string(&input).unwrap()
}

async fn create(script: &Script) -> Result<String, Failure> {
    run(script, CREATE_INSTANCE, create_input(None)).await
}

/// Makes a private instance public.
async fn update(script: &Script) -> Result<String, Failure> {
    let input = UpdateInstanceInput {
        instance_id: Uuid::nil(),
        namespace: "default".into(),
        instance_name: "demo".into(),
        postgres_version: "17.4".into(),
        storage_size_gb: 10,
        use_load_balancer: true,
        dns_label: Some("demo".into()),
        previous: Some(Exposure { use_load_balancer: false, dns_label: None }),
        place: None,
    };
    run(script, UPDATE_INSTANCE, serde_json::to_string(&input).unwrap()).await
}

async fn delete(script: &Script) -> Result<String, Failure> {
    let (namespace, instance_name) = ("default".into(), "demo".into());
    let input = DeleteInstanceInput { instance_id: Uuid::nil(), namespace, instance_name, place: None };
    run(script, DELETE_INSTANCE, serde_json::to_string(&input).unwrap()).await
}

fn passing() -> Failure {
    Failure::transient(FailureKind::Platform, "it may pass")
}

fn cancelled() -> Failure {
    Failure::permanent(FailureKind::Cancelled, "somebody cancelled it")
}

fn lasting() -> Failure {
    Failure::permanent(FailureKind::StartFailed, "it stays")
}

#[tokio::test]
async fn create_goes_through_its_steps_in_order_and_records_running() {
    let script = Script::default();
    create(&script).await.unwrap();
    assert_eq!(script.called(), [&STEPS[..], &[UPDATE_METADATA]].concat());
    assert_eq!(script.recorded_states(), ["running"]);
}

#[tokio::test]
async fn what_only_some_servers_can_do_is_marked_for_them_and_old_histories_have_no_marks() {
    let script = Script::default();
    run(&script, CREATE_INSTANCE, create_input(Some(HERE))).await.unwrap();
    let here = || Some(HERE.to_owned());
    assert_eq!(*script.tags.lock().unwrap(), [here(), here(), here(), here(), Some(RECORDS.to_owned())]);
    let script = Script::default();
    create(&script).await.unwrap();
    assert_eq!(*script.tags.lock().unwrap(), vec![None; 5]);
}

#[tokio::test]
async fn create_passes_on_a_reference_and_never_a_password() {
    let script = Script::default();
    create(&script).await.unwrap();
    let calls = script.calls.lock().unwrap();
    let input = |activity| &calls.iter().find(|(name, _)| *name == activity).unwrap().1;
    assert_eq!(input(DEPLOY_POSTGRES)["password"], "secret://default/demo");
    assert_eq!(input(GET_CONNECTION_STRINGS)["password"], "secret://default/demo");
    let tested = input(TEST_CONNECTION)["connection_string"].as_str().unwrap();
    assert!(tested.starts_with("postgresql://postgres:secret%3A%2F%2Fdefault%2Fdemo@127.0.0.1:20001/"), "{tested}");
}

#[tokio::test]
async fn each_step_of_create_is_repeated_when_its_failure_may_pass() {
    for step in STEPS.into_iter().chain([UPDATE_METADATA]) {
        let script = Script::failing(step, [passing(), passing()]);
        create(&script).await.unwrap();
        assert_eq!(script.called().iter().filter(|called| **called == step).count(), 3, "{step}");
        assert_eq!(script.recorded_states().last().unwrap(), "running", "{step}");
    }
}

#[tokio::test]
async fn a_lasting_failure_of_each_step_ends_create_at_once_and_is_recorded() {
    for (at, step) in STEPS.into_iter().enumerate() {
        let script = Script::failing(step, [lasting()]);
        assert_eq!(create(&script).await.unwrap_err(), lasting(), "{step}");
        assert_eq!(script.called(), [&STEPS[..=at], &[UPDATE_METADATA]].concat());
        assert_eq!(script.recorded_states(), ["failed"], "{step}");
    }
}

#[tokio::test]
async fn create_never_removes_what_it_made() {
    let script = Script::failing(TEST_CONNECTION, [lasting()]);
    create(&script).await.unwrap_err();
    assert!(!script.called().contains(&DELETE_POSTGRES));
}

#[tokio::test]
async fn delete_removes_then_records() {
    let script = Script::default();
    delete(&script).await.unwrap();
    assert_eq!(script.called(), [DELETE_POSTGRES, UPDATE_METADATA]);
    assert_eq!(script.recorded_states(), ["deleted"]);
}

#[tokio::test]
async fn delete_waits_for_as_long_as_a_creation_is_at_work() {
    let busy = || Failure::transient(FailureKind::Busy, "the creation is being given up");
    let script = Script::failing(DELETE_POSTGRES, (0..9).map(|_| busy()));
    delete(&script).await.unwrap();
    assert_eq!(script.recorded_states(), ["deleted"]);
}

#[tokio::test]
async fn a_delete_that_can_not_remove_is_recorded_as_failed() {
    let script = Script::failing(DELETE_POSTGRES, [lasting()]);
    assert_eq!(delete(&script).await.unwrap_err(), lasting());
    assert_eq!(script.recorded_states(), ["failed"]);
}

#[tokio::test]
async fn a_create_that_is_cancelled_at_any_step_removes_what_it_made() {
    for (at, step) in STEPS.into_iter().chain([UPDATE_METADATA]).enumerate() {
        let script = Script::failing(step, [cancelled()]);
        assert_eq!(create(&script).await.unwrap_err(), cancelled(), "{step}");
        let steps = [&STEPS[..], &[UPDATE_METADATA]].concat();
        assert_eq!(script.called(), [&steps[..=at], &[DELETE_POSTGRES, UPDATE_METADATA]].concat(), "{step}");
        let record = script.last_record();
        assert_eq!((&record["state"], &record["compensated"]), (&json!("deleted"), &json!(true)), "{step}");
    }
}

#[tokio::test]
async fn a_create_that_fails_and_is_cancelled_before_that_is_on_record_removes_what_it_made() {
    let script = Script::failing(WAIT_FOR_READY, [lasting()]);
    script.failures.lock().unwrap().insert(UPDATE_METADATA, vec![cancelled()]);
    assert_eq!(create(&script).await.unwrap_err(), cancelled());
    assert_eq!(script.recorded_states(), ["failed", "deleted"]);
    assert!(script.called().contains(&DELETE_POSTGRES));
}

#[tokio::test]
async fn what_of_a_cancelled_create_can_not_be_removed_is_kept_as_evidence() {
    let script = Script::failing(TEST_CONNECTION, [cancelled()]);
    script.failures.lock().unwrap().insert(DELETE_POSTGRES, vec![passing(), lasting()]);
    assert_eq!(create(&script).await.unwrap_err(), lasting());
    let record = script.last_record();
    assert_eq!((&record["state"], &record["compensated"]), (&json!("failed"), &json!(true)));
}

#[tokio::test]
async fn an_update_goes_through_its_steps_and_records_the_new_address() {
    let script = Script::default();
    update(&script).await.unwrap();
    assert_eq!(script.called(), [&STEPS[..], &[UPDATE_METADATA]].concat());
    assert_eq!((script.recorded_states(), script.deployed_public()), (vec!["running".into()], vec![true]));
    let failing = Script::failing(GET_CONNECTION_STRINGS, [lasting()]);
    assert_eq!(update(&failing).await.unwrap_err(), lasting());
    assert_eq!((failing.recorded_states(), failing.deployed_public()), (vec!["failed".into()], vec![true]));
}

#[tokio::test]
async fn an_update_that_is_cancelled_at_any_step_puts_back_what_was_before() {
    for step in STEPS.into_iter().chain([UPDATE_METADATA]) {
        let script = Script::failing(step, [cancelled()]);
        assert_eq!(update(&script).await.unwrap_err(), cancelled(), "{step}");
        assert_eq!(script.deployed_public(), [true, false], "{step}");
        let called = script.called();
        assert_eq!(called[called.len() - 5..], [&STEPS[..], &[UPDATE_METADATA]].concat(), "{step}");
        let record = script.last_record();
        assert_eq!((&record["state"], &record["compensated"]), (&json!("running"), &json!(true)), "{step}");
    }
}

#[tokio::test]
async fn the_longer_steps_of_an_update_know_what_they_are_for_and_those_of_a_create_have_the_input_they_always_had() {
    let script = Script::failing(UPDATE_METADATA, [cancelled()]);
    update(&script).await.unwrap_err();
    let (wanted, previous) =
        (json!({"use_load_balancer": true, "dns_label": "demo"}), json!({"use_load_balancer": false, "dns_label": null}));
    for step in [WAIT_FOR_READY, TEST_CONNECTION] {
        assert_eq!(script.told_exposures(step), [wanted.clone(), previous.clone()], "{step}");
    }
    let script = Script::default();
    create(&script).await.unwrap();
    let calls = script.calls.lock().unwrap();
    assert!(calls.iter().all(|(_, input)| input.get("exposure").is_none()), "{calls:?}");
}

/// Cancels while the workflow waits for some seconds; how long it takes from there.
#[expect(clippy::disallowed_methods, reason = "the test watches from outside of the workflow")]
async fn cancelled_in_a_long_wait(version: Option<&str>) -> Duration {
    let script = Script::failing(DEPLOY_POSTGRES, (0..12).map(|_| passing()));
    let since = std::cell::Cell::new(None);
    let cancel = async |client: &Client| {
        // The wait after the sixth attempt is one of 3.2 s.
        while script.called().len() < 6 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        script.failures.lock().unwrap().insert(DEPLOY_POSTGRES, vec![cancelled()]);
        since.set(Some(std::time::Instant::now()));
        unlocked(async || client.enqueue_event("operation", CANCEL_QUEUE, "").await).await;
    };
    let ended = run_while(&script, (CREATE_INSTANCE, version), create_input(None), cancel).await;
    assert_eq!(ended.unwrap_err(), cancelled());
    assert_eq!(script.called().iter().filter(|called| **called == DEPLOY_POSTGRES).count(), 7);
    assert_eq!(script.recorded_states(), ["deleted"]);
    since.get().unwrap().elapsed()
}

#[tokio::test]
async fn a_cancel_ends_a_wait_and_an_execution_of_the_first_version_is_cancelled_after_it() {
    let (new, old) = tokio::join!(cancelled_in_a_long_wait(None), cancelled_in_a_long_wait(Some("1.0.0")));
    println!("cancelled after {new:.1?}; of version 1.0.0 after {old:.1?}");
    assert!(new < Duration::from_millis(2500) && old > Duration::from_millis(2500), "{new:?} {old:?}");
}

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
    DELETE_POSTGRES, DEPLOY_POSTGRES, GET_CONNECTION_STRINGS, RESTART_POSTGRES, REVERT_OPERATION, TEST_CONNECTION,
    UPDATE_METADATA, WAIT_FOR_READY,
};
use toygres_models::{Failure, FailureKind, InstanceSpec, PlatformName, Power};
use toygres_orchestrations::OperationInput;
use toygres_orchestrations::names::orchestrations::{CREATE_INSTANCE, DELETE_INSTANCE, RESTART_INSTANCE, UPDATE_INSTANCE};
use toygres_orchestrations::registry::create_orchestration_registry;
use toygres_orchestrations::retry::CANCEL_QUEUE;
use uuid::Uuid;

const URI: &str = "postgresql://app@127.0.0.1:20001/app?sslmode=verify-full";
/// A place, which the test's server serves.
const HERE: &str = "here";
/// Of a create, and of an update.
const STEPS: [&str; 4] = [DEPLOY_POSTGRES, WAIT_FOR_READY, GET_CONNECTION_STRINGS, TEST_CONNECTION];

/// Failures that the activities are to answer with before they succeed, and what was called.
#[derive(Clone, Default)]
struct Script {
    failures: Arc<Mutex<HashMap<&'static str, Vec<Failure>>>>,
    calls: Arc<Mutex<Vec<(&'static str, Value)>>>,
    /// Whether the operation changes no spec.
    nothing_to_revert: bool,
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
            RESTART_POSTGRES => json!({"restarted": true}),
            REVERT_OPERATION => json!({"reverting": !self.nothing_to_revert}),
            _ => json!({"instance_id": Uuid::nil(), "created": false}),
        };
        Ok(output.to_string())
    }

    fn registry(&self) -> ActivityRegistry {
        let names = [
            DEPLOY_POSTGRES,
            DELETE_POSTGRES,
            WAIT_FOR_READY,
            GET_CONNECTION_STRINGS,
            TEST_CONNECTION,
            UPDATE_METADATA,
            RESTART_POSTGRES,
            REVERT_OPERATION,
        ];
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
    run_while(script, workflow, input, async |_| ()).await
}

/// Runs a workflow while something else happens.
async fn run_while(
    script: &Script,
    workflow: &str,
    input: String,
    meanwhile: impl AsyncFnOnce(&Client),
) -> Result<String, Failure> {
    // The failures are meant, and the in-memory store's own complaints are routine.
    let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::default());
    let store = Arc::new(SqliteProvider::new_in_memory().await.unwrap());
    let options = RuntimeOptions {
        dispatcher_min_poll_interval: Duration::from_millis(2),
        worker_tag_filter: TagFilter::default_and([HERE]),
        ..RuntimeOptions::default()
    };
    let runtime = Runtime::start_with_options(store.clone(), script.registry(), create_orchestration_registry(), options).await;
    let client = Client::new(store);
    unlocked(async || client.start_orchestration("operation", workflow, input.clone()).await).await;
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

fn spec() -> InstanceSpec {
    InstanceSpec::new(PlatformName::Local, "17.4".parse().unwrap())
}

fn public() -> InstanceSpec {
    InstanceSpec { use_load_balancer: true, dns_label: Some("demo".parse().unwrap()), ..spec() }
}

fn input(spec_before: InstanceSpec, spec: InstanceSpec) -> String {
    let input = OperationInput {
        operation_id: Uuid::nil(),
        instance_id: Uuid::nil(),
        namespace: "default".into(),
        instance_name: "demo".into(),
        place: HERE.into(),
        spec,
        spec_before,
    };
    serde_json::to_string(&input).unwrap()
}

async fn create(script: &Script) -> Result<String, Failure> {
    run(script, CREATE_INSTANCE, input(spec(), spec())).await
}

/// Makes a private instance public.
async fn update(script: &Script) -> Result<String, Failure> {
    run(script, UPDATE_INSTANCE, input(spec(), public())).await
}

async fn restart(script: &Script) -> Result<String, Failure> {
    run(script, RESTART_INSTANCE, input(spec(), spec())).await
}

async fn delete(script: &Script) -> Result<String, Failure> {
    run(script, DELETE_INSTANCE, input(spec(), spec())).await
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
async fn every_step_is_marked_for_the_place_that_can_do_it() {
    let script = Script::failing(TEST_CONNECTION, [cancelled()]);
    create(&script).await.unwrap_err();
    update(&script).await.unwrap();
    restart(&script).await.unwrap();
    let tags = script.tags.lock().unwrap();
    assert!(tags.len() > 12 && tags.iter().all(|tag| tag.as_deref() == Some(HERE)), "{tags:?}");
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
    assert!(tested.starts_with("postgresql://app:secret%3A%2F%2Fdefault%2Fdemo@127.0.0.1:20001/"), "{tested}");
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
        assert_eq!(script.called(), [&steps[..=at], &[REVERT_OPERATION, DELETE_POSTGRES, UPDATE_METADATA]].concat(), "{step}");
        assert_eq!(script.last_record()["state"], "deleted", "{step}");
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
    assert_eq!(script.last_record()["state"], "failed");
}

#[tokio::test]
async fn an_update_goes_through_its_steps_and_records_the_new_address() {
    let script = Script::default();
    update(&script).await.unwrap();
    assert_eq!(script.called(), [&STEPS[..], &[UPDATE_METADATA]].concat());
    assert_eq!((script.recorded_states(), script.deployed_public()), (vec!["running".into()], vec![true]));
}

#[tokio::test]
async fn an_update_that_is_cancelled_or_fails_at_any_step_restores_what_was_before_and_says_why() {
    for failure in [cancelled(), lasting()] {
        for (at, step) in STEPS.into_iter().chain([UPDATE_METADATA]).enumerate() {
            let script = Script::failing(step, [failure.clone()]);
            assert_eq!(update(&script).await.unwrap_err(), failure, "{step}");
            let steps = [&STEPS[..], &[UPDATE_METADATA]].concat();
            assert_eq!(script.called(), [&steps[..=at], &[REVERT_OPERATION], &steps].concat(), "{step}");
            assert_eq!(script.deployed_public(), [true, false], "{step}");
            assert_eq!(script.recorded_states().last().unwrap(), "running", "{step}");
        }
    }
}

#[tokio::test]
async fn a_failure_that_passes_in_time_reverts_nothing() {
    for step in STEPS {
        let script = Script::failing(step, [passing(), passing()]);
        update(&script).await.unwrap();
        assert!(!script.called().contains(&REVERT_OPERATION), "{step}");
        assert_eq!(script.recorded_states(), ["running"], "{step}");
    }
}

#[tokio::test]
async fn an_update_that_can_not_be_reverted_either_is_recorded_as_failed_with_its_first_cause() {
    let another = Failure::permanent(FailureKind::Platform, "the way back is blocked");
    let script = Script::failing(DEPLOY_POSTGRES, [lasting(), another]);
    assert_eq!(update(&script).await.unwrap_err(), lasting());
    assert_eq!(script.called(), [DEPLOY_POSTGRES, REVERT_OPERATION, DEPLOY_POSTGRES, UPDATE_METADATA]);
    assert_eq!(script.recorded_states(), ["failed"]);
}

#[tokio::test]
async fn an_update_that_has_nothing_to_revert_is_recorded_as_failed() {
    let script = Script { nothing_to_revert: true, ..Script::failing(WAIT_FOR_READY, [lasting()]) };
    assert_eq!(update(&script).await.unwrap_err(), lasting());
    assert_eq!(script.called(), [DEPLOY_POSTGRES, WAIT_FOR_READY, REVERT_OPERATION, UPDATE_METADATA]);
    assert_eq!(script.recorded_states(), ["failed"]);
}

#[tokio::test]
async fn a_stop_needs_no_readiness_and_a_failed_one_starts_the_server_again() {
    let stopped = InstanceSpec { power: Power::Stopped, ..spec() };
    let script = Script::default();
    let output = run(&script, UPDATE_INSTANCE, input(spec(), stopped.clone())).await.unwrap();
    assert_eq!(script.called(), [DEPLOY_POSTGRES, UPDATE_METADATA]);
    assert_eq!(script.recorded_states(), ["stopped"]);
    let output: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(output, json!({"power": "stopped", "version": null, "ip_connection_string": null}));

    let script = Script::failing(DEPLOY_POSTGRES, [lasting()]);
    assert_eq!(run(&script, UPDATE_INSTANCE, input(spec(), stopped.clone())).await.unwrap_err(), lasting());
    assert_eq!(script.called(), [&[DEPLOY_POSTGRES, REVERT_OPERATION], &STEPS[..], &[UPDATE_METADATA]].concat());
    assert_eq!(script.recorded_states(), ["running"]);

    // A start is an update too, and one that fails leaves it stopped.
    let script = Script::failing(TEST_CONNECTION, [lasting()]);
    assert_eq!(run(&script, UPDATE_INSTANCE, input(stopped, spec())).await.unwrap_err(), lasting());
    assert_eq!(script.called(), [&STEPS[..], &[REVERT_OPERATION, DEPLOY_POSTGRES, UPDATE_METADATA]].concat());
    assert_eq!(script.recorded_states(), ["stopped"]);
}

#[tokio::test]
async fn a_restart_restarts_waits_and_logs_in_and_reverts_nothing() {
    let script = Script::failing(RESTART_POSTGRES, [passing()]);
    restart(&script).await.unwrap();
    assert_eq!(script.called(), [&[RESTART_POSTGRES, RESTART_POSTGRES], &STEPS[1..], &[UPDATE_METADATA]].concat());
    assert_eq!(script.recorded_states(), ["running"]);
    for step in [RESTART_POSTGRES, WAIT_FOR_READY, TEST_CONNECTION] {
        let script = Script::failing(step, [lasting()]);
        assert_eq!(restart(&script).await.unwrap_err(), lasting(), "{step}");
        assert!(!script.called().contains(&REVERT_OPERATION), "{step}");
        assert_eq!(script.recorded_states(), ["failed"], "{step}");
    }
}

/// Cancels while the workflow waits for some seconds; how long it takes from there.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the test watches from outside of the workflow")]
async fn a_cancel_ends_a_wait() {
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
    let ended = run_while(&script, CREATE_INSTANCE, input(spec(), spec()), cancel).await;
    assert_eq!(ended.unwrap_err(), cancelled());
    assert_eq!(script.called().iter().filter(|called| **called == DEPLOY_POSTGRES).count(), 7);
    assert_eq!(script.recorded_states(), ["deleted"]);
    let took = since.get().unwrap().elapsed();
    assert!(took < Duration::from_millis(2500), "{took:?}");
}

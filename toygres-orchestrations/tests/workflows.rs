//! The workflows under duroxide's in-memory store, with scripted activities in the real ones'
//! places: what is called, in which order, what is repeated, and how each failure ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use duroxide::providers::sqlite::SqliteProvider;
use duroxide::runtime::registry::ActivityRegistry;
use duroxide::runtime::{OrchestrationStatus, Runtime, RuntimeOptions};
use duroxide::{ActivityContext, Client, ClientError};
use serde_json::{Value, json};
use toygres_activities::names::activities::{
    DELETE_POSTGRES, DEPLOY_POSTGRES, GET_CONNECTION_STRINGS, TEST_CONNECTION, UPDATE_METADATA, WAIT_FOR_READY,
};
use toygres_models::{Failure, FailureKind};
use toygres_orchestrations::names::orchestrations::{CREATE_INSTANCE, DELETE_INSTANCE};
use toygres_orchestrations::registry::create_orchestration_registry;
use toygres_orchestrations::{CreateInstanceInput, DeleteInstanceInput};
use uuid::Uuid;

const URI: &str = "postgresql://postgres@127.0.0.1:20001/postgres?sslmode=verify-full";
const CREATE_STEPS: [&str; 4] = [DEPLOY_POSTGRES, WAIT_FOR_READY, GET_CONNECTION_STRINGS, TEST_CONNECTION];

/// Failures that the activities are to answer with before they succeed, and what was called.
#[derive(Clone, Default)]
struct Script {
    failures: Arc<Mutex<HashMap<&'static str, Vec<Failure>>>>,
    calls: Arc<Mutex<Vec<(&'static str, Value)>>>,
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
                builder.register(name, move |_: ActivityContext, input: String| {
                    let script = script.clone();
                    async move { script.answer(name, &input) }
                })
            })
            .build_result()
            .unwrap()
    }

    fn called(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().iter().map(|(activity, _)| *activity).collect()
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
    // The failures are meant, and the in-memory store's own complaints are routine.
    let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::default());
    let store = Arc::new(SqliteProvider::new_in_memory().await.unwrap());
    let options = RuntimeOptions { dispatcher_min_poll_interval: Duration::from_millis(2), ..RuntimeOptions::default() };
    let runtime = Runtime::start_with_options(store.clone(), script.registry(), create_orchestration_registry(), options).await;
    let client = Client::new(store);
    unlocked(async || client.start_orchestration("operation", workflow, input.clone()).await).await;
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

async fn create(script: &Script) -> Result<String, Failure> {
    let input = CreateInstanceInput {
        instance_id: Uuid::nil(),
        namespace: "default".into(),
        instance_name: "demo".into(),
        postgres_version: "17.4".into(),
        storage_size_gb: 10,
        use_load_balancer: false,
        dns_label: None,
    };
    run(script, CREATE_INSTANCE, serde_json::to_string(&input).unwrap()).await
}

async fn delete(script: &Script) -> Result<String, Failure> {
    let input = DeleteInstanceInput { instance_id: Uuid::nil(), namespace: "default".into(), instance_name: "demo".into() };
    run(script, DELETE_INSTANCE, serde_json::to_string(&input).unwrap()).await
}

fn passing() -> Failure {
    Failure::transient(FailureKind::Platform, "it may pass")
}

fn lasting() -> Failure {
    Failure::permanent(FailureKind::StartFailed, "it stays")
}

#[tokio::test]
async fn create_goes_through_its_steps_in_order_and_records_running() {
    let script = Script::default();
    create(&script).await.unwrap();
    assert_eq!(script.called(), [&CREATE_STEPS[..], &[UPDATE_METADATA]].concat());
    assert_eq!(script.recorded_states(), ["running"]);
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
    for step in CREATE_STEPS.into_iter().chain([UPDATE_METADATA]) {
        let script = Script::failing(step, [passing(), passing()]);
        create(&script).await.unwrap();
        assert_eq!(script.called().iter().filter(|called| **called == step).count(), 3, "{step}");
        assert_eq!(script.recorded_states().last().unwrap(), "running", "{step}");
    }
}

#[tokio::test]
async fn a_lasting_failure_of_each_step_ends_create_at_once_and_is_recorded() {
    for (at, step) in CREATE_STEPS.into_iter().enumerate() {
        let script = Script::failing(step, [lasting()]);
        assert_eq!(create(&script).await.unwrap_err(), lasting(), "{step}");
        assert_eq!(script.called(), [&CREATE_STEPS[..=at], &[UPDATE_METADATA]].concat());
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

//! The activities under duroxide's in-memory store, on the real local platform, merged into
//! another crate's registry as the cross-crate pattern has it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use duroxide::providers::sqlite::SqliteProvider;
use duroxide::runtime::registry::ActivityRegistry;
use duroxide::runtime::{OrchestrationStatus, Runtime};
use duroxide::{ActivityContext, Client, ClientError, OrchestrationContext, OrchestrationRegistry};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use toygres_activities::context::{DEFAULT_HEALTH_INTERVAL, DEFAULT_READY_TIMEOUT};
use toygres_activities::names::activities::{
    DELETE_POSTGRES, DEPLOY_POSTGRES, GET_CONNECTION_STRINGS, TEST_CONNECTION, UPDATE_METADATA, WAIT_FOR_READY,
};
use toygres_activities::platform::local::{DirectoryPorts, LocalConfig, LocalHost, LocalPlatform};
use toygres_activities::registry::{create_activity_registry, create_activity_registry_with};
use toygres_activities::secrets::FileSecretStore;
use toygres_activities::{Context, Place, Platforms, Swept};
use toygres_models::{Failure, FailureKind};

/// Among others a ligature and a no-break space, which SCRAM's SASLprep replaces.
const PASSWORD: &str = "p@:/?#%'\"\\ $";

async fn context(folder: &Path) -> Context {
    let config = LocalConfig {
        state_dir: folder.join("state"),
        cache_dir: folder.join("cache"),
        pool_size: 0,
        ..LocalConfig::from_environment().unwrap()
    };
    let secrets = Arc::new(FileSecretStore::new(config.state_dir.join("secrets")));
    let host = LocalHost::open(config).await.unwrap();
    let ports = Arc::new(DirectoryPorts::new(&host));
    let place = Place::new(LocalPlatform::new(host, ports), secrets);
    Context {
        platforms: Platforms::one(place),
        store: None,
        ready_timeout: DEFAULT_READY_TIMEOUT,
        health_interval: DEFAULT_HEALTH_INTERVAL,
        swept: Swept::default(),
        stopping: CancellationToken::new(),
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

/// Runs a list of activities, each with the input that the one before made of its output.
struct Engine {
    client: Client,
    runtime: Arc<Runtime>,
}

impl Engine {
    /// Another crate's registry, with ours merged into it.
    async fn start(ours: ActivityRegistry) -> Self {
        // The failures are meant, and the in-memory store's own complaints are routine.
        let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::default());
        let store = Arc::new(SqliteProvider::new_in_memory().await.unwrap());
        let activities = ActivityRegistry::builder()
            .register(
                "another-crate::activity::greet",
                |_: ActivityContext, name: String| async move { Ok(format!("hello {name}")) },
            )
            .merge(ours)
            .build_result()
            .unwrap();
        let orchestrations = OrchestrationRegistry::builder()
            .register("one", |ctx: OrchestrationContext, input: String| async move {
                let (name, input): (String, String) = serde_json::from_str(&input).map_err(|error| error.to_string())?;
                ctx.schedule_activity(name, input).await
            })
            .build();
        let runtime = Runtime::start_with_store(store.clone(), activities, orchestrations).await;
        Self { client: Client::new(store), runtime }
    }

    async fn call(&self, activity: &str, input: impl ToString) -> Result<String, String> {
        let id = uuid::Uuid::new_v4().to_string();
        let input = serde_json::to_string(&(activity, input.to_string())).unwrap();
        unlocked(async || self.client.start_orchestration(&id, "one", input.clone()).await).await;
        match unlocked(async || self.client.wait_for_orchestration(&id, Duration::from_secs(60)).await).await {
            OrchestrationStatus::Completed { output, .. } => Ok(output),
            OrchestrationStatus::Failed { details: duroxide::ErrorDetails::Application { message, .. }, .. } => Err(message),
            other => panic!("{activity} did not end as it should: {other:?}"),
        }
    }

    async fn json(&self, activity: &str, input: Value) -> Value {
        let output = self.call(activity, &input).await.unwrap_or_else(|error| panic!("{activity}: {error}"));
        serde_json::from_str(&output).unwrap()
    }

    async fn failure(&self, activity: &str, input: impl ToString) -> Failure {
        Failure::decode(&self.call(activity, input).await.unwrap_err())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deploy_test_and_delete_an_instance() {
    let folder = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711)).tempdir().unwrap();
    let engine = Engine::start(create_activity_registry_with(context(folder.path()).await)).await;
    let key = json!({"namespace": "default", "instance_name": "demo"});
    let deploy = json!({
        "namespace": "default", "instance_name": "demo", "password": PASSWORD, "postgres_version": "15",
        "storage_size_gb": 1, "use_load_balancer": false, "dns_label": null,
    });

    assert_eq!(engine.json(DEPLOY_POSTGRES, deploy.clone()).await["created"], true);
    assert_eq!(engine.json(DEPLOY_POSTGRES, deploy.clone()).await["created"], false);
    let mut other = deploy.clone();
    other["postgres_version"] = "18".into();
    assert!(!engine.failure(DEPLOY_POSTGRES, &other).await.retryable);

    let ready =
        engine.json(WAIT_FOR_READY, json!({"namespace": "default", "instance_name": "demo", "timeout_seconds": 30})).await;
    assert_eq!(ready["pod_phase"], "Running");

    let strings = engine
        .json(
            GET_CONNECTION_STRINGS,
            json!({"namespace": "default", "instance_name": "demo", "password": PASSWORD, "use_load_balancer": false, "dns_label": null}),
        )
        .await;
    let tested = engine.json(TEST_CONNECTION, json!({"connection_string": strings["ip_connection_string"]})).await;
    assert_eq!(tested["connected"], true);
    assert!(tested["version"].as_str().unwrap().starts_with("PostgreSQL 15"), "{tested}");

    let by_reference = engine
        .json(
            GET_CONNECTION_STRINGS,
            json!({"namespace": "default", "instance_name": "demo", "password": "secret://default/demo", "use_load_balancer": false, "dns_label": null}),
        )
        .await;
    let uri = by_reference["ip_connection_string"].as_str().unwrap();
    assert!(uri.starts_with("postgresql://app@127.0.0.1:"), "{uri}");

    let wrong = strings["ip_connection_string"].as_str().unwrap().replacen("app:p", "app:wrong", 1);
    let failure = engine.failure(TEST_CONNECTION, json!({"connection_string": wrong})).await;
    assert!(failure.kind == FailureKind::ConnectionFailed && !failure.retryable, "{failure:?}");

    assert_eq!(engine.json(DELETE_POSTGRES, key.clone()).await["deleted"], true);
    assert_eq!(engine.json(DELETE_POSTGRES, key).await["deleted"], false);
    engine.runtime.shutdown(Some(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_an_error_that_names_the_field_and_hides_its_value() {
    let folder = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711)).tempdir().unwrap();
    let engine = Engine::start(create_activity_registry_with(context(folder.path()).await)).await;
    let good = json!({
        "namespace": "default", "instance_name": "demo", "password": "hunter2hunter2", "postgres_version": "15",
        "storage_size_gb": 1, "use_load_balancer": false, "dns_label": null,
    });
    let cases = [
        ("namespace", json!("..")),
        ("instance_name", json!("Demo")),
        ("instance_name", json!(7)),
        ("password", json!("")),
        ("password", json!(["hunter2hunter2"])),
        ("postgres_version", json!("9.6")),
        ("storage_size_gb", json!(0)),
        ("storage_size_gb", json!(-1)),
        ("storage_size_gb", json!("hunter2hunter2")),
        ("use_load_balancer", json!("yes")),
        ("dns_label", json!("demo")),
    ];
    for (field, value) in cases {
        let mut input = good.clone();
        input[field] = value;
        let failure = engine.failure(DEPLOY_POSTGRES, &input).await;
        assert_eq!(failure.kind, FailureKind::InvalidInput, "{input}: {failure:?}");
        assert!(failure.message.contains(field) && !failure.retryable, "{input}: {failure:?}");
        assert!(!failure.message.contains("hunter2"), "{failure:?}");
    }
    for activity in [DEPLOY_POSTGRES, DELETE_POSTGRES, WAIT_FOR_READY, GET_CONNECTION_STRINGS, TEST_CONNECTION, UPDATE_METADATA] {
        for input in ["", "null", "{}", "[1]", "{\"namespace\":"] {
            let failure = engine.failure(activity, input).await;
            assert_eq!(failure.kind, FailureKind::InvalidInput, "{activity} {input:?}: {failure:?}");
        }
    }
    for uri in ["", "demo", "http://127.0.0.1/", "postgresql://postgres:hunter2@[bad/postgres"] {
        let failure = engine.failure(TEST_CONNECTION, json!({"connection_string": uri})).await;
        assert!(failure.message.contains("connection_string") && !failure.message.contains("hunter2"), "{uri}: {failure:?}");
    }
    assert!(!folder.path().join("state/instances/default").exists(), "something was written");
    engine.runtime.shutdown(Some(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_a_failure_that_may_pass() {
    let folder = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711)).tempdir().unwrap();
    let engine = Engine::start(create_activity_registry_with(context(folder.path()).await)).await;
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let uri = format!("postgresql://postgres:x@127.0.0.1:{unused}/postgres");
    let failure = engine.failure(TEST_CONNECTION, json!({"connection_string": uri})).await;
    assert!(failure.kind == FailureKind::ConnectionFailed && failure.retryable, "{failure:?}");
    engine.runtime.shutdown(Some(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_merges_into_another_crates() {
    let engine = Engine::start(create_activity_registry()).await;
    assert_eq!(engine.call("another-crate::activity::greet", "you").await.unwrap(), "hello you");
    engine.runtime.shutdown(Some(100)).await;
}

//! The workflow that looks at instances for ever: its history stays short, and a server that is killed leaves it to the next.

use std::sync::Arc;
use std::time::Duration;

use duroxide::Client;
use duroxide::providers::TagFilter;
use duroxide::runtime::{Runtime, RuntimeOptions};
use duroxide_pg::{PostgresProvider, ProviderConfig};
use tokio_util::sync::CancellationToken;
use toygres_activities::context::DEFAULT_READY_TIMEOUT;
use toygres_activities::registry::create_activity_registry_with;
use toygres_activities::{Context, Platforms, SweepHealthInput, Swept};
use toygres_e2e::eventually;
use toygres_e2e::store_database::empty_database;
use toygres_e2e::wait::SOON;
use toygres_models::Store;
use toygres_models::store::Shard;
use toygres_orchestrations::names::orchestrations::HEALTH_SWEEP;
use toygres_orchestrations::registry::create_orchestration_registry;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_looks_leave_a_short_history() {
    let Some(database) = empty_database().await.unwrap() else { return };
    let store = Store::connect(database.options.clone(), 4).await.unwrap();
    let mut config = ProviderConfig::url(&database.url);
    config.schema_name = Some("duroxide".into());
    let provider = Arc::new(PostgresProvider::new_with_config(config).await.unwrap());
    let context = Context {
        platforms: Platforms::none(),
        store: Some(store.clone()),
        ready_timeout: DEFAULT_READY_TIMEOUT,
        health_interval: Duration::from_millis(1),
        swept: Swept::default(),
        stopping: CancellationToken::new(),
    };
    let options = RuntimeOptions {
        dispatcher_min_poll_interval: Duration::from_millis(10),
        worker_tag_filter: TagFilter::default_and(["here"]),
        ..RuntimeOptions::default()
    };
    let activities = create_activity_registry_with(context);
    let runtime = Runtime::start_with_options(provider.clone(), activities, create_orchestration_registry(), options).await;
    let shard = Shard { place: "here".into(), number: 0, of: 1 };
    let (id, input) = (shard.workflow_id(), serde_json::to_string(&SweepHealthInput { shard }).unwrap());
    Client::new(provider).start_orchestration(&id, HEALTH_SWEEP, input).await.unwrap();

    let count = async |sql: &str| sqlx::query_scalar::<_, i64>(sql).bind(&id).fetch_one(store.pool()).await;
    // Each execution has thirty looks.
    eventually("a thousand looks", SOON, async || {
        let executions = "SELECT coalesce(max(execution_id), 0)::bigint FROM duroxide.executions WHERE instance_id = $1";
        Ok((count(executions).await? > 34).then_some(()))
    })
    .await
    .unwrap();
    let history = count("SELECT count(*) FROM duroxide.history WHERE instance_id = $1").await.unwrap();
    let executions = count("SELECT count(*) FROM duroxide.executions WHERE instance_id = $1").await.unwrap();
    assert!(history < 20 && executions < 5, "{history} rows of {executions} executions");
    let sweeps = store.sweeps().await.unwrap();
    assert_eq!((sweeps.len(), sweeps[0].place.as_str(), sweeps[0].instances), (1, "here", 0));
    runtime.shutdown(Some(500)).await;
}

//! The workflow engine: started, given operations, and swept for what fell between two writes.

use std::sync::Arc;
use std::time::Duration;

use duroxide::providers::{InstanceFilter, Provider, TagFilter};
use duroxide::runtime::registry::ActivityRegistry;
use duroxide::runtime::{OrchestrationStatus, Runtime, RuntimeOptions};
use duroxide::{Client, ClientError};
use toygres_models::store::{Instance, Operation, StoreError};
use toygres_models::{Failure, FailureKind, OperationKind, PlatformName, Store};
use toygres_orchestrations::names::orchestrations;
use toygres_orchestrations::registry::{RECORDS, VERSION, create_orchestration_registry};
use toygres_orchestrations::retry::CANCEL_QUEUE;
use toygres_orchestrations::{CreateInstanceInput, DeleteInstanceInput, UpdateInstanceInput};
use tracing::{error, info};
use uuid::Uuid;

/// A killed server's work is taken up this long after its last sign of life. It gives one every 3 s (duroxide: half of it,
/// in whole seconds), so that 3 s are left by its own clock, and 1 s by the one furthest ahead of it (`clock::LIMIT`, twice).
const LOCK_TIMEOUT: Duration = Duration::from_secs(6);
/// Activities mostly wait for processes and sockets, so there may be many more than cores.
const ACTIVITIES_AT_ONCE: usize = 16;
/// How often operations without a workflow are looked for. The table is empty when idle.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What can't be done with a workflow.
#[derive(Debug, thiserror::Error)]
pub enum WorkflowError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The workflow's input can't be written.
    #[error("the workflow's input can't be written: {0}")]
    Input(#[from] serde_json::Error),
    /// The engine failed.
    #[error("the workflow engine did not answer as it should: {0}")]
    Engine(#[from] ClientError),
}

/// The running engine.
pub struct Workflows {
    client: Client,
    store: Store,
    runtime: Arc<Runtime>,
}

/// Which servers can work on an instance: those of its machine, where it runs on one and that is known,
/// and otherwise all that serve its platform.
fn place_of(instance: &Instance) -> String {
    match (instance.platform, &instance.cluster_id) {
        (PlatformName::Local, Some(machine_id)) => machine_id.clone(),
        (platform, _) => platform.to_string(),
    }
}

impl Workflows {
    /// Starts the engine on `provider`.
    ///
    /// Work that not every server can do is marked by its place (see `place_of`): this one does what
    /// is to be done on its `platforms`, and of the local one on the machine `machine_id`.
    pub async fn start(
        provider: Arc<dyn Provider>,
        activities: ActivityRegistry,
        store: Store,
        platforms: &[PlatformName],
        machine_id: Option<&str>,
    ) -> Self {
        let client = Client::new(provider.clone());
        // The engine takes five at most: of two platforms, a machine and the records there are four.
        let tags = platforms.iter().map(|name| name.as_str()).chain(machine_id).chain([RECORDS]);
        let options = RuntimeOptions {
            // The provider waits by itself until there is work; see WakingProvider.
            dispatcher_min_poll_interval: Duration::from_millis(1),
            dispatcher_long_poll_timeout: Duration::from_secs(30),
            orchestration_concurrency: 4,
            worker_concurrency: ACTIVITIES_AT_ONCE,
            worker_lock_timeout: LOCK_TIMEOUT,
            orchestrator_lock_timeout: LOCK_TIMEOUT,
            worker_tag_filter: TagFilter::default_and(tags),
            ..RuntimeOptions::default()
        };
        let runtime = Runtime::start_with_options(provider, activities, create_orchestration_registry(), options).await;
        Self { client, store, runtime }
    }

    /// Starts an operation's workflow. Starting it again changes nothing.
    ///
    /// # Errors
    /// If the store or the engine fails; the sweep will start it then.
    pub async fn begin(&self, operation: &Operation, instance: &Instance) -> Result<(), WorkflowError> {
        let (name, input) = match operation.kind {
            OperationKind::Create => (
                orchestrations::CREATE_INSTANCE,
                serde_json::to_string(&CreateInstanceInput {
                    instance_id: instance.id,
                    namespace: instance.namespace.clone(),
                    instance_name: instance.name.clone(),
                    postgres_version: instance.postgres_version.clone(),
                    storage_size_gb: instance.storage_size_gb,
                    use_load_balancer: instance.use_load_balancer,
                    dns_label: instance.dns_label.clone(),
                    place: Some(place_of(instance)),
                })?,
            ),
            OperationKind::Update => (
                orchestrations::UPDATE_INSTANCE,
                serde_json::to_string(&UpdateInstanceInput {
                    instance_id: instance.id,
                    namespace: instance.namespace.clone(),
                    instance_name: instance.name.clone(),
                    postgres_version: instance.postgres_version.clone(),
                    storage_size_gb: instance.storage_size_gb,
                    use_load_balancer: instance.use_load_balancer,
                    dns_label: instance.dns_label.clone(),
                    previous: operation.previous_exposure(),
                    place: Some(place_of(instance)),
                })?,
            ),
            OperationKind::Delete => (
                orchestrations::DELETE_INSTANCE,
                serde_json::to_string(&DeleteInstanceInput {
                    instance_id: instance.id,
                    namespace: instance.namespace.clone(),
                    instance_name: instance.name.clone(),
                    place: Some(place_of(instance)),
                })?,
            ),
        };
        // With its version, so that an older server beside this one doesn't begin it as it knows it.
        Ok(self.client.start_orchestration_versioned(&operation.id.to_string(), name, VERSION, input).await?)
    }

    /// Tells an operation's workflow, whichever server has it, that it was cancelled, in case it waits.
    /// That stands in the store already: a workflow that isn't told finds out a moment later.
    pub async fn wake_cancelled(&self, operation_id: Uuid) {
        if let Err(error) = self.client.enqueue_event(operation_id.to_string(), CANCEL_QUEUE, "").await {
            tracing::warn!(%error, operation.id = %operation_id, "the operation's workflow finds out by itself that it was cancelled");
        }
    }

    /// Begins, now and then, what was written down but not started, and ends what broke. The row
    /// is always written first, so a server killed in between leaves only the former.
    pub async fn sweep_forever(self: Arc<Self>) {
        loop {
            if let Err(error) = self.sweep().await {
                error!(%error, "the sweep for operations without a workflow failed; it is tried again");
            }
            tokio::time::sleep(SWEEP_INTERVAL).await;
        }
    }

    async fn sweep(&self) -> Result<(), WorkflowError> {
        for operation in self.store.unfinished_operations().await? {
            match self.client.get_orchestration_status(&operation.id.to_string()).await? {
                // Queued and not yet begun looks the same; a second start is ignored.
                OrchestrationStatus::NotFound => {
                    let instance = self.store.instance_by_id(operation.instance_id).await?;
                    info!(operation.id = %operation.id, operation.kind = %operation.kind, "starting the operation's workflow");
                    self.begin(&operation, &instance).await?;
                }
                OrchestrationStatus::Running { .. } => {}
                OrchestrationStatus::Completed { .. } => {
                    self.broken(&operation, "its workflow ended without writing down its result").await?
                }
                OrchestrationStatus::Failed { details, .. } => self.broken(&operation, &details.display_message()).await?,
            }
        }
        Ok(())
    }

    async fn broken(&self, operation: &Operation, reason: &str) -> Result<(), WorkflowError> {
        // It may have ended between the two looks.
        let current = self.store.operation(operation.id).await?;
        if current.is_some_and(|current| current.state.is_final()) {
            return Ok(());
        }
        error!(operation.id = %operation.id, reason, "an operation's workflow broke");
        let failure = Failure::permanent(FailureKind::Internal, format!("the workflow broke: {reason}"));
        Ok(self.store.fail_operation(operation.id, failure).await?)
    }

    /// Removes the histories of operations that have ended. Those that aren't there are no error.
    ///
    /// # Errors
    /// If the engine fails; it may be tried again.
    pub async fn forget(&self, operations: &[Uuid]) -> Result<(), WorkflowError> {
        let ids = operations.iter().map(ToString::to_string).collect();
        self.client.delete_instance_bulk(InstanceFilter { instance_ids: Some(ids), ..InstanceFilter::default() }).await?;
        Ok(())
    }

    /// Stops taking up work and gives what is at work a moment to end. What doesn't is repeated at
    /// the next start.
    pub async fn shutdown(&self) {
        self.runtime.clone().shutdown(Some(2000)).await;
    }
}

//! The workflow engine: started, given operations, and swept for what fell between two writes.

use std::sync::Arc;
use std::time::Duration;

use duroxide::providers::Provider;
use duroxide::runtime::registry::ActivityRegistry;
use duroxide::runtime::{OrchestrationStatus, Runtime, RuntimeOptions};
use duroxide::{Client, ClientError};
use toygres_models::store::{Instance, Operation, StoreError};
use toygres_models::{Failure, FailureKind, OperationKind, Store};
use toygres_orchestrations::names::orchestrations;
use toygres_orchestrations::registry::create_orchestration_registry;
use toygres_orchestrations::{CreateInstanceInput, DeleteInstanceInput};
use tracing::{error, info};

/// A killed server's work is taken up this long after its last sign of life.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
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

impl Workflows {
    /// Starts the engine on `provider`.
    pub async fn start(provider: Arc<dyn Provider>, activities: ActivityRegistry, store: Store) -> Self {
        let client = Client::new(provider.clone());
        let options = RuntimeOptions {
            // The provider waits by itself until there is work; see WakingProvider.
            dispatcher_min_poll_interval: Duration::from_millis(1),
            dispatcher_long_poll_timeout: Duration::from_secs(30),
            orchestration_concurrency: 4,
            worker_concurrency: ACTIVITIES_AT_ONCE,
            worker_lock_timeout: LOCK_TIMEOUT,
            worker_lock_renewal_buffer: Duration::from_secs(3),
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
                })?,
            ),
            OperationKind::Delete => (
                orchestrations::DELETE_INSTANCE,
                serde_json::to_string(&DeleteInstanceInput {
                    instance_id: instance.id,
                    namespace: instance.namespace.clone(),
                    instance_name: instance.name.clone(),
                })?,
            ),
        };
        Ok(self.client.start_orchestration(&operation.id.to_string(), name, input).await?)
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

    /// Stops taking up work and gives what is at work a moment to end. What doesn't is repeated at
    /// the next start.
    pub async fn shutdown(&self) {
        self.runtime.clone().shutdown(Some(2000)).await;
    }
}

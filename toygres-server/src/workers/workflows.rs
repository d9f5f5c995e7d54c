//! The workflow engine: started, given operations, and swept for what fell between two writes.

use std::sync::Arc;
use std::time::Duration;

use duroxide::providers::{InstanceFilter, Provider};
use duroxide::runtime::registry::ActivityRegistry;
use duroxide::runtime::{OrchestrationStatus, Runtime, RuntimeOptions};
use duroxide::{Client, ClientError};
use tokio_util::sync::CancellationToken;
use toygres_activities::SweepHealthInput;
use toygres_models::store::{Operation, StoreError};
use toygres_models::{Failure, FailureKind, OperationKind, Store};
use toygres_orchestrations::OperationInput;
use toygres_orchestrations::names::orchestrations;
use toygres_orchestrations::registry::{create_orchestration_registry, workflow_of};
use toygres_orchestrations::retry::CANCEL_QUEUE;
use tracing::{error, info};
use uuid::Uuid;

/// A killed server's work is resumed this long after its last sign of life. It gives one every 3 s (duroxide: half of it,
/// in whole seconds), so that 3 s are left by its own clock, and 1 s by the one furthest ahead of it (`clock::LIMIT`, twice).
const LOCK_TIMEOUT: Duration = Duration::from_secs(6);
/// Most wait for something: with too few places, instances that are ready would wait for those that aren't. What takes the
/// processor's time is bounded where it is done.
const ACTIVITIES_AT_ONCE: usize = 256;
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
    /// No workflow carries out operations of that kind.
    #[error("there is no workflow for operations of the kind {0}")]
    Unknown(OperationKind),
    /// The engine failed.
    #[error("the workflow engine did not answer as it should: {0}")]
    Engine(#[from] ClientError),
}

/// The running engine.
pub struct Workflows {
    client: Client,
    /// Cancelled when what goes on for ever is to end.
    stopping: CancellationToken,
    store: Store,
    runtime: Arc<Runtime>,
}

impl Workflows {
    /// Starts the engine on `provider`.
    ///
    /// Work that not every server can do is marked by its place; the provider says which places are served.
    /// `stopping` is what the activities that go on for ever look at.
    pub async fn start(
        provider: Arc<dyn Provider>,
        activities: ActivityRegistry,
        store: Store,
        stopping: CancellationToken,
    ) -> Self {
        let client = Client::new(provider.clone());
        let options = RuntimeOptions {
            // The provider waits by itself until there is work; see WakingProvider.
            dispatcher_min_poll_interval: Duration::from_millis(1),
            dispatcher_long_poll_timeout: Duration::from_secs(30),
            orchestration_concurrency: 4,
            worker_concurrency: ACTIVITIES_AT_ONCE,
            worker_lock_timeout: LOCK_TIMEOUT,
            orchestrator_lock_timeout: LOCK_TIMEOUT,
            ..RuntimeOptions::default()
        };
        let runtime = Runtime::start_with_options(provider, activities, create_orchestration_registry(), options).await;
        Self { client, stopping, store, runtime }
    }

    /// Starts an operation's workflow. Starting it again changes nothing.
    ///
    /// # Errors
    /// If the store or the engine fails; the sweep will start it then.
    pub async fn begin(&self, operation: &Operation) -> Result<(), WorkflowError> {
        let name = workflow_of(operation.kind).ok_or(WorkflowError::Unknown(operation.kind))?;
        let input = serde_json::to_string(&OperationInput::from(operation))?;
        Ok(self.client.start_orchestration(&operation.id.to_string(), name, input).await?)
    }

    /// Starts the workflow that looks at a shard's instances, unless it runs. One that broke is begun anew.
    ///
    /// # Errors
    /// If the engine fails; it may be tried again.
    pub async fn begin_sweep(&self, input: &SweepHealthInput) -> Result<(), WorkflowError> {
        let id = input.shard.workflow_id();
        match self.client.get_orchestration_status(&id).await? {
            OrchestrationStatus::Running { .. } => return Ok(()),
            OrchestrationStatus::NotFound => {}
            OrchestrationStatus::Completed { .. } | OrchestrationStatus::Failed { .. } => {
                error!(workflow = id, "the workflow that looks at instances ended; it is begun anew");
                self.client.delete_instance(&id, true).await?;
            }
        }
        Ok(self.client.start_orchestration(&id, orchestrations::HEALTH_SWEEP, serde_json::to_string(input)?).await?)
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
            // One that can't be started doesn't keep the others from being.
            if let Err(error) = self.sweep_one(&operation).await {
                error!(%error, operation.id = %operation.id, "an operation's workflow could not be looked after; it is tried again");
            }
        }
        Ok(())
    }

    async fn sweep_one(&self, operation: &Operation) -> Result<(), WorkflowError> {
        match self.client.get_orchestration_status(&operation.id.to_string()).await? {
            // Queued and not yet begun looks the same; a second start is ignored.
            OrchestrationStatus::NotFound => {
                info!(operation.id = %operation.id, operation.kind = %operation.kind, "starting the operation's workflow");
                self.begin(operation).await
            }
            OrchestrationStatus::Running { .. } => Ok(()),
            OrchestrationStatus::Completed { .. } => {
                self.broken(operation, "its workflow ended without writing down its result").await
            }
            OrchestrationStatus::Failed { details, .. } => self.broken(operation, &details.display_message()).await,
        }
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
        self.stopping.cancel();
        self.runtime.clone().shutdown(Some(2000)).await;
    }
}

//! Restart a PostgreSQL instance's server: end it cleanly, start it, wait until it is ready, log in.

use duroxide::OrchestrationContext;

use crate::retry::RetryPolicy;
use crate::steps::Steps;
use crate::types::{OperationInput, OperationOutput};

/// See [`RESTART_INSTANCE`](crate::names::orchestrations::RESTART_INSTANCE).
///
/// # Errors
/// The failure of the step that failed, as JSON.
pub async fn restart_instance_orchestration(ctx: OrchestrationContext, input: OperationInput) -> Result<OperationOutput, String> {
    let steps = Steps::of(&ctx, &input);
    let restarted = async {
        steps.restart(RetryPolicy::STEP).await?;
        steps.reach(&input.spec, RetryPolicy::STEP).await
    };
    steps.record_end(restarted.await).await
}

//! Bring a PostgreSQL instance to a new spec: every change of a spec is this workflow. If a step fails for good, or it is
//! cancelled, the same steps bring the instance back to the spec of before.

use duroxide::OrchestrationContext;

use crate::retry::RetryPolicy;
use crate::steps::Steps;
use crate::types::{OperationInput, OperationOutput};

/// See [`UPDATE_INSTANCE`](crate::names::orchestrations::UPDATE_INSTANCE).
///
/// # Errors
/// The failure of the step that failed, as JSON.
pub async fn update_instance_orchestration(ctx: OrchestrationContext, input: OperationInput) -> Result<OperationOutput, String> {
    let steps = Steps::of(&ctx, &input);
    let ended = match steps.bring_to(&input.spec, RetryPolicy::CANCELLABLE_CHANGE).await {
        Ok(found) => steps.record_found(&found).await.map(|()| found),
        Err(failure) => Err(failure),
    };
    let ended = match ended {
        Ok(found) => Ok(found),
        Err(failure) => match steps.begin_revert().await {
            Ok(true) => match steps.bring_to(&input.spec_before, RetryPolicy::CHANGE).await {
                Ok(found) => steps.record_found(&found).await,
                Err(_) => steps.record_failure().await,
            }
            .and(Err(failure)),
            Ok(false) => steps.record_failure().await.and(Err(failure)),
            Err(unreverted) => Err(unreverted),
        },
    };
    ended.map(|found| found.output()).map_err(|failure| failure.encode())
}

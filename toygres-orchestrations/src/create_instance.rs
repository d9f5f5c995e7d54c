//! Create a PostgreSQL instance. If a step fails for good, what was made stays as evidence and the instance is
//! `failed`, until it is deleted, retried or started. If it is cancelled, what was made is removed.

use duroxide::OrchestrationContext;
use toygres_models::FailureKind;

use crate::retry::RetryPolicy;
use crate::steps::Steps;
use crate::types::{OperationInput, OperationOutput};

/// See [`CREATE_INSTANCE`](crate::names::orchestrations::CREATE_INSTANCE).
///
/// # Errors
/// The failure of the step that failed, as JSON.
pub async fn create_instance_orchestration(ctx: OrchestrationContext, input: OperationInput) -> Result<OperationOutput, String> {
    let steps = Steps::of(&ctx, &input);
    let ended = match steps.bring_to(&input.spec, RetryPolicy::CANCELLABLE_STEP).await {
        Ok(found) => steps.record_found(&found).await.map(|()| found),
        Err(failure) if failure.kind == FailureKind::Cancelled => Err(failure),
        Err(failure) => steps.record_failure().await.and(Err(failure)),
    };
    let ended = match ended {
        // A cancel may come at any step, the last one included.
        Err(failure) if failure.kind == FailureKind::Cancelled => match steps.begin_revert().await {
            Ok(_) => steps.remove().await.and(Err(failure)),
            Err(unreverted) => Err(unreverted),
        },
        ended => ended,
    };
    ended.map(|found| found.output()).map_err(|failure| failure.encode())
}

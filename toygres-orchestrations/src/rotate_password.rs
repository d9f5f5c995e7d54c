//! Give a PostgreSQL instance's user a new password, and log in with it.

use duroxide::OrchestrationContext;

use crate::retry::RetryPolicy;
use crate::steps::Steps;
use crate::types::{OperationInput, OperationOutput};

/// See [`ROTATE_PASSWORD`](crate::names::orchestrations::ROTATE_PASSWORD).
///
/// # Errors
/// The failure of the step that failed, as JSON.
pub async fn rotate_password_orchestration(ctx: OrchestrationContext, input: OperationInput) -> Result<OperationOutput, String> {
    let steps = Steps::of(&ctx, &input);
    let rotated = async {
        steps.rotate_password(RetryPolicy::STEP).await?;
        steps.reach(&input.spec, RetryPolicy::STEP).await
    };
    steps.record_end(rotated.await).await
}

//! Delete a PostgreSQL instance: remove whatever there is of it, then free its name. It converges
//! from any state, a half-made instance included, and can be asked for again when it failed.

use duroxide::OrchestrationContext;

use crate::steps::Steps;
use crate::types::{DeleteInstanceOutput, OperationInput};

/// See [`DELETE_INSTANCE`](crate::names::orchestrations::DELETE_INSTANCE).
///
/// # Errors
/// The failure of the step that failed, as JSON.
pub async fn delete_instance_orchestration(
    ctx: OrchestrationContext,
    input: OperationInput,
) -> Result<DeleteInstanceOutput, String> {
    let removed = Steps::of(&ctx, &input).remove().await.map_err(|failure| failure.encode())?;
    Ok(DeleteInstanceOutput { deleted: removed.deleted })
}

//! Mark the operation as being reverted.

use duroxide::ActivityContext;
use toygres_models::Failure;

use crate::context::Context;
use crate::types::{RevertOperationInput, RevertOperationOutput};

/// See [`REVERT_OPERATION`](crate::names::activities::REVERT_OPERATION).
pub async fn revert_operation_activity(
    context: Context,
    ctx: ActivityContext,
    _input: RevertOperationInput,
) -> Result<RevertOperationOutput, Failure> {
    let reverting = match context.operation(&ctx) {
        Some((store, operation_id)) => store.begin_revert(operation_id).await?,
        None => false,
    };
    Ok(RevertOperationOutput { reverting })
}

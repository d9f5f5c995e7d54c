//! Delete a PostgreSQL instance.

use duroxide::ActivityContext;
use toygres_models::{Failure, FailureKind};

use crate::context::Context;
use crate::types::{DeletePostgresInput, DeletePostgresOutput, instance_key};

/// See [`DELETE_POSTGRES`](crate::names::activities::DELETE_POSTGRES).
pub async fn delete_postgres_activity(
    context: Context,
    ctx: ActivityContext,
    input: DeletePostgresInput,
) -> Result<DeletePostgresOutput, Failure> {
    let key = instance_key(&input.namespace, &input.instance_name)?;
    let operation = context.operation_context(&ctx).await?;
    if let Some((store, operation_id)) = context.operation(&ctx)
        && let Some(kind) = store.other_change_at_work(operation_id).await?
    {
        // It ends in a moment; removing while it still makes things would leave some behind.
        return Err(Failure::transient(FailureKind::Busy, format!("the {kind} of {key} is still being given up")));
    }
    let place = context.place(operation.as_ref()).await?;
    let deleted = place.platform.remove(&key).await?;
    // Last, so that a repeated deployment cut off by this deletion never lacks it. (On Kubernetes it
    // went with the rest; a password alone may still be there.)
    place.secrets.remove(&key).await?;
    if let Some(operation) = &operation {
        // Its creation may not have begun.
        place.secrets.discard(&key, operation.instance().id).await?;
    }
    Ok(DeletePostgresOutput { deleted })
}

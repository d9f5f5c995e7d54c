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
    if let Some((store, operation_id)) = context.operation(&ctx)
        && store.creation_at_work(operation_id).await?
    {
        // The creation sees that it isn't wanted any more at its next step; removing while it
        // still makes things would leave some behind.
        return Err(Failure::transient(FailureKind::Busy, format!("the creation of {key} is still being given up")));
    }
    let place = context.place(context.order(&ctx).await?.as_ref()).await?;
    let deleted = place.platform.remove(&key).await?;
    // Last, so that a repeated deployment cut off by this deletion never lacks it. (On Kubernetes it
    // went with the rest; a password alone may still be there.)
    place.secrets.remove(&key).await?;
    Ok(DeletePostgresOutput { deleted })
}

//! Delete a PostgreSQL instance: remove whatever there is of it, then free its name. It converges
//! from any state, a half-made instance included, and can be asked for again when it failed.

use duroxide::OrchestrationContext;

use crate::steps::Subject;
use crate::types::{DeleteInstanceInput, DeleteInstanceOutput};

/// See [`DELETE_INSTANCE`](crate::names::orchestrations::DELETE_INSTANCE).
///
/// # Errors
/// The failure of the step that failed, as JSON.
pub async fn delete_instance_orchestration(
    ctx: OrchestrationContext,
    input: DeleteInstanceInput,
) -> Result<DeleteInstanceOutput, String> {
    let subject = Subject {
        instance_id: input.instance_id,
        namespace: &input.namespace,
        instance_name: &input.instance_name,
        place: input.place.as_deref(),
    };
    let removed = subject.remove(&ctx, false).await.map_err(|failure| failure.encode())?;
    Ok(DeleteInstanceOutput { deleted: removed.deleted })
}

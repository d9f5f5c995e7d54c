//! Delete a PostgreSQL instance: remove whatever there is of it, then free its name. It converges
//! from any state, a half-made instance included, and can be asked for again when it failed.

use duroxide::OrchestrationContext;
use toygres_activities::names::activities;
use toygres_activities::{DeletePostgresInput, DeletePostgresOutput, UpdateMetadataInput, UpdateMetadataOutput};
use toygres_models::{Failure, InstanceState};

use crate::retry::{Patience, run};
use crate::types::{DeleteInstanceInput, DeleteInstanceOutput};

/// See [`DELETE_INSTANCE`](crate::names::orchestrations::DELETE_INSTANCE).
///
/// # Errors
/// The failure of the step that failed, as JSON.
pub async fn delete_instance_orchestration(
    ctx: OrchestrationContext,
    input: DeleteInstanceInput,
) -> Result<DeleteInstanceOutput, String> {
    let removed: Result<DeletePostgresOutput, Failure> = run(
        &ctx,
        activities::DELETE_POSTGRES,
        &DeletePostgresInput { namespace: input.namespace.clone(), instance_name: input.instance_name.clone() },
        Patience::STEP,
    )
    .await;
    let state = if removed.is_ok() { InstanceState::Deleted } else { InstanceState::Failed };
    let _: UpdateMetadataOutput = run(
        &ctx,
        activities::UPDATE_METADATA,
        &UpdateMetadataInput {
            instance_id: input.instance_id,
            instance_name: input.instance_name.clone(),
            state: state.to_string(),
            health_status: None,
            ip_connection_string: None,
            dns_connection_string: None,
            health_check_orchestration_id: None,
        },
        Patience::RECORD,
    )
    .await
    .map_err(|failure| failure.encode())?;
    match removed {
        Ok(output) => Ok(DeleteInstanceOutput { deleted: output.deleted }),
        Err(failure) => Err(failure.encode()),
    }
}

//! Update an instance's record in the metadata store.

use duroxide::ActivityContext;
use toygres_models::store::MetadataUpdate;
use toygres_models::{Failure, FailureKind};
use uuid::Uuid;

use crate::context::Context;
use crate::types::{UpdateMetadataInput, UpdateMetadataOutput};

/// See [`UPDATE_METADATA`](crate::names::activities::UPDATE_METADATA).
pub async fn update_metadata_activity(
    context: Context,
    ctx: ActivityContext,
    input: UpdateMetadataInput,
) -> Result<UpdateMetadataOutput, Failure> {
    let Some(store) = &context.store else {
        return Err(Failure::permanent(FailureKind::Store, "there is no metadata store to update: set DATABASE_URL"));
    };
    let update = MetadataUpdate {
        instance_id: input.instance_id,
        instance_name: input.instance_name,
        platform: context.platforms.default_name(),
        state: input.state.parse()?,
        health_status: input.health_status,
        ip_connection_string: input.ip_connection_string,
        dns_connection_string: input.dns_connection_string,
        health_check_orchestration_id: input.health_check_orchestration_id,
        operation_id: Uuid::parse_str(ctx.instance_id()).ok(),
        compensated: input.compensated,
    };
    let created = store.update_metadata(&update).await?;
    Ok(UpdateMetadataOutput { instance_id: input.instance_id, created })
}

//! Update an instance's record in the metadata store.

use duroxide::ActivityContext;
use toygres_models::store::{MetadataUpdate, StoreError};
use toygres_models::{Failure, FailureKind, InstanceKey, InstanceState, MemberStatus, Store};
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
    let state: InstanceState = input.state.parse()?;
    let update = MetadataUpdate {
        instance_id: input.instance_id,
        instance_name: input.instance_name,
        platform: context.platforms.default_name(),
        state,
        health_status: input.health_status.as_deref().map(str::parse).transpose()?,
        ip_connection_string: input.ip_connection_string,
        dns_connection_string: input.dns_connection_string,
        health_check_orchestration_id: input.health_check_orchestration_id,
        members: members(&context, store, input.instance_id, state).await?,
        operation_id: Uuid::parse_str(ctx.instance_id()).ok(),
    };
    let created = store.update_metadata(&update).await?;
    Ok(UpdateMetadataOutput { instance_id: input.instance_id, created })
}

/// The instance's servers as the platform sees them. `None`, which leaves what is known, where it can't be asked here.
async fn members(
    context: &Context,
    store: &Store,
    instance_id: Uuid,
    state: InstanceState,
) -> Result<Option<Vec<MemberStatus>>, Failure> {
    if !matches!(state, InstanceState::Running | InstanceState::Stopped) {
        return Ok(None);
    }
    let instance = match store.instance_by_id(instance_id).await {
        Err(StoreError::InstanceNotFound(_)) => return Ok(None),
        found => found?,
    };
    let (Ok(place), Ok(key)) = (context.platforms.of(&instance).await, InstanceKey::parse(&instance.namespace, &instance.name))
    else {
        return Ok(None);
    };
    Ok(place.platform.observe(&key).await.ok().flatten().map(|seen| vec![seen.member()]))
}

//! An instance's record with its health as it is seen now.

use toygres_activities::platform::health;
use toygres_models::store::Instance;
use toygres_models::{InstanceKey, InstanceState};

use crate::api::http::problem::ApiError;
use crate::api::state::AppState;

/// An instance's record, its health as it is seen now. Where it can't be looked at, the rest of the
/// record is worth having, and its health is `unknown`.
pub(super) async fn observed(state: &AppState, key: &InstanceKey) -> Result<Instance, ApiError> {
    let instance = state.store.instance(key).await?;
    if instance.state != InstanceState::Running {
        return Ok(instance);
    }
    let (could_look, is_fresh) = state.observations.share(instance.id, observe(state, key, &instance)).await;
    if !could_look {
        let mut instance = instance;
        instance.status.0.health_status = Some("unknown".into());
        return Ok(instance);
    }
    if is_fresh { Ok(state.store.instance(key).await?) } else { Ok(instance) }
}

/// Looks, and writes down what is new. `false` if that can't be done now.
async fn observe(state: &AppState, key: &InstanceKey, instance: &Instance) -> bool {
    let looked = async {
        let seen = state.platforms.of(instance).await?.platform.observe(key).await?;
        let (healthy, reason) = health(seen);
        let known = if healthy { "healthy" } else { "unhealthy" };
        if instance.status.health_status.as_deref() != Some(known) {
            state.store.record_health(key, healthy, &reason).await?;
        }
        Ok::<_, toygres_models::Failure>(())
    };
    looked
        .await
        .inspect_err(|failure| tracing::warn!(instance.name = %key, error = %failure, "the instance could not be looked at"))
        .is_ok()
}

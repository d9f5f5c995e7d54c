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
    let (was_observed, is_fresh) = state.observations.share(instance.id, observe(state, key, &instance)).await;
    if !was_observed {
        let mut instance = instance;
        instance.status.0.health_status = Some("unknown".into());
        return Ok(instance);
    }
    if is_fresh { Ok(state.store.instance(key).await?) } else { Ok(instance) }
}

/// Observes it, and records what is new. `false` if that can't be done now.
async fn observe(state: &AppState, key: &InstanceKey, instance: &Instance) -> bool {
    let recorded = async {
        let observation = state.platforms.of(instance).await?.platform.observe(key).await?;
        let (healthy, reason) = health(observation);
        let known = if healthy { "healthy" } else { "unhealthy" };
        if instance.status.health_status.as_deref() != Some(known) {
            state.store.record_health(key, healthy, &reason).await?;
        }
        Ok::<_, toygres_models::Failure>(())
    };
    recorded
        .await
        .inspect_err(|failure| tracing::warn!(instance.name = %key, error = %failure, "the instance could not be observed"))
        .is_ok()
}

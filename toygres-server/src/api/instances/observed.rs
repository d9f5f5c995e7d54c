//! An instance's record with its health as it is seen now.

use std::time::Duration;

use toygres_activities::diagnosis::passes_with_time;
use toygres_activities::platform::health;
use toygres_models::store::Instance;
use toygres_models::{InstanceKey, InstanceState};

use crate::api::http::problem::ApiError;
use crate::api::state::AppState;

/// How long an answer waits for what is seen.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// An instance's record, its health as it is seen now. Where it can't be looked at, the rest of the
/// record is worth having, and its health is `unknown`.
pub(super) async fn observed(state: &AppState, key: &InstanceKey) -> Result<Instance, ApiError> {
    let mut instance = state.store.instance(key).await?;
    match instance.state {
        InstanceState::Running => {}
        InstanceState::Failed => {
            let may_be_up = instance.status.failure.as_ref().is_some_and(|failure| passes_with_time(&failure.failure));
            if may_be_up && is_ready(state, key, &instance).await {
                let status = &mut instance.status.0;
                status.health_status = Some("healthy".into());
                status.health_reason = Some("its server came up after its operation had failed; start it to take it up".into());
            }
            return Ok(instance);
        }
        _ => return Ok(instance),
    }
    let observing = state.observations.share(instance.id, observe(state, key, &instance));
    // Of a server that hangs the record says it soon.
    let (was_observed, is_fresh) = tokio::time::timeout(TIME_LIMIT, observing).await.unwrap_or((false, false));
    if !was_observed && instance.status.health_status.as_deref() != Some("unhealthy") {
        instance.status.0.health_status = Some("unknown".into());
        return Ok(instance);
    }
    if is_fresh { Ok(state.store.instance(key).await?) } else { Ok(instance) }
}

async fn is_ready(state: &AppState, key: &InstanceKey, instance: &Instance) -> bool {
    let looking = async {
        let Ok(place) = state.platforms.of(instance).await else { return false };
        place.platform.observe(key).await.is_ok_and(|seen| seen.is_some_and(|seen| seen.ready))
    };
    let looking = state.observations.share(instance.id, looking);
    tokio::time::timeout(TIME_LIMIT, looking).await.is_ok_and(|(is_ready, _)| is_ready)
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

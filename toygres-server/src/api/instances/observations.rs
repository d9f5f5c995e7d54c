//! Looks at instances for those who ask about them: at most once a second each, however many ask and
//! however often, so that reading a record stays as cheap as that.

use std::time::Duration;

use moka::future::Cache;
use toygres_activities::platform::health;
use toygres_models::store::Instance;
use toygres_models::{InstanceKey, InstanceState};
use uuid::Uuid;

use crate::api::http::problem::ApiError;
use crate::api::state::AppState;

/// How long a look is good for. What happens meanwhile the platform's events write down.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Looks that are remembered at once; each takes some hundred bytes.
const MOST: u64 = 20_000;

/// Whether an instance could be looked at a moment ago.
#[derive(Debug, Clone)]
pub struct Observations {
    looks: Cache<Uuid, bool>,
}

impl Default for Observations {
    fn default() -> Self {
        Self { looks: Cache::builder().time_to_live(GOOD_FOR).max_capacity(MOST).build() }
    }
}

/// An instance's record, its health as it is seen now. Where it can't be looked at, the rest of the
/// record is worth having, and its health is `unknown`.
pub(super) async fn observed(state: &AppState, key: &InstanceKey) -> Result<Instance, ApiError> {
    let instance = state.store.instance(key).await?;
    if instance.state != InstanceState::Running {
        return Ok(instance);
    }
    let look = state.observations.looks.entry(instance.id).or_insert_with(look(state, key, &instance)).await;
    if !look.value() {
        return Ok(Instance { health_status: Some("unknown".into()), ..instance });
    }
    if look.is_fresh() { Ok(state.store.instance(key).await?) } else { Ok(instance) }
}

/// Looks, and writes down what is new. `false` if that can't be done now.
async fn look(state: &AppState, key: &InstanceKey, instance: &Instance) -> bool {
    let looked = async {
        let seen = state.platforms.of(instance).await?.platform.observe(key).await?;
        let (healthy, reason) = health(seen);
        let known = if healthy { "healthy" } else { "unhealthy" };
        if instance.health_status.as_deref() != Some(known) {
            state.store.record_health(key, healthy, &reason).await?;
        }
        Ok::<_, toygres_models::Failure>(())
    };
    looked
        .await
        .inspect_err(|failure| tracing::warn!(instance.name = %key, error = %failure, "the instance could not be looked at"))
        .is_ok()
}

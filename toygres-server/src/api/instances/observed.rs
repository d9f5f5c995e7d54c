//! An instance's record with its health as it is seen now.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use toygres_activities::diagnosis::passes_with_time;
use toygres_activities::platform::probe::Checked;
use toygres_models::store::{Instance, Sweep};
use toygres_models::{Health, HealthReasonKind, HealthStatus, InstanceKey, InstanceState};

use crate::api::http::problem::ApiError;
use crate::api::state::AppState;

/// How long an answer waits for what is seen.
const TIME_LIMIT: Duration = Duration::from_secs(7);
/// What was seen so short a time ago needn't be looked at again: reading a record stays as cheap as that, however many read.
const FRESH: Duration = Duration::from_secs(1);
/// What is older than so many intervals is not known any more.
const STALE_AFTER_INTERVALS: f64 = 3.0;

/// An instance's record, its health as it is seen now.
pub(super) async fn observed(state: &AppState, key: &InstanceKey) -> Result<Instance, ApiError> {
    Ok(look(state, key).await?.0)
}

/// The same, with what its server said.
pub(super) async fn look(state: &AppState, key: &InstanceKey) -> Result<(Instance, Option<Checked>), ApiError> {
    let mut instance = state.store.instance(key).await?;
    match instance.state {
        InstanceState::Running => {}
        InstanceState::Failed => {
            let may_be_up = instance.status.failure.as_ref().is_some_and(|failure| passes_with_time(&failure.failure));
            if may_be_up && is_ready(state, key, &instance).await {
                let words = "its server came up after its operation had failed; start it to take it up";
                instance.status.0.set_health(Some(Health::of(HealthStatus::Healthy, HealthReasonKind::CameUpLate, words)));
            }
            return Ok((instance, None));
        }
        _ => return Ok((instance, None)),
    }
    let begun_at = Utc::now();
    let looking = async {
        let place = state.platforms.of(&instance).await?;
        Ok::<_, toygres_models::Failure>(place.check(key, &instance.spec.owner, FRESH).await)
    };
    let unknown = |words: &str| Health::of(HealthStatus::Unknown, HealthReasonKind::NotObserved, words);
    match tokio::time::timeout(TIME_LIMIT, looking).await {
        Ok(Ok(checked)) => {
            // That this server can't look at it now says nothing about the instance.
            let is_for_the_record = checked.health.status != HealthStatus::Unknown;
            if instance.status.health().as_ref() == Some(&checked.health) {
                return Ok((instance, Some(checked)));
            }
            if is_for_the_record && state.store.record_health(instance.id, &checked.health, begun_at, None).await? {
                instance = state.store.instance(key).await?;
            } else {
                instance.status.0.set_health(Some(checked.health.clone()));
            }
            Ok((instance, Some(checked)))
        }
        Ok(Err(failure)) => {
            instance.status.0.set_health(Some(unknown(&failure.message)));
            Ok((instance, None))
        }
        Err(_) => {
            // Of a server that hangs, or is just being started, the record says it soon.
            if instance.status.health_status != Some(HealthStatus::Unhealthy) {
                instance.status.0.set_health(Some(unknown("there was no answer in time")));
            }
            Ok((instance, None))
        }
    }
}

async fn is_ready(state: &AppState, key: &InstanceKey, instance: &Instance) -> bool {
    let looking = async {
        let Ok(place) = state.platforms.of(instance).await else { return false };
        place.platform.observe(key).await.is_ok_and(|seen| seen.is_some_and(|seen| seen.ready))
    };
    let looking = state.observations.share(instance.id, looking);
    tokio::time::timeout(TIME_LIMIT, looking).await.unwrap_or(false)
}

/// Says of those that nobody has looked at of late that their health isn't known.
pub(super) fn mark_stale(instances: &mut [Instance], sweeps: &[Sweep], now: DateTime<Utc>) {
    for instance in instances.iter_mut().filter(|instance| instance.status.health_status.is_some()) {
        let last = sweeps.iter().filter(|sweep| sweep.place == instance.place()).min_by_key(|sweep| sweep.finished_at);
        // One that no sweep has seen yet is known by its operation.
        let known_at = last.map(|sweep| sweep.finished_at).max(instance.status.health_since);
        let interval_seconds = last.map_or(0.0, |sweep| sweep.interval_seconds.max(sweep.took_seconds)).max(10.0);
        let limit = TimeDelta::milliseconds((interval_seconds * STALE_AFTER_INTERVALS * 1000.0) as i64);
        if let Some(known_at) = known_at.filter(|known_at| now - *known_at > limit) {
            let words = format!(
                "nobody has looked at it since {}: no server that serves its platform runs, or it can't reach the platform",
                known_at.format("%F %T UTC")
            );
            instance.status.0.set_health(Some(Health::of(HealthStatus::Unknown, HealthReasonKind::NotObserved, &words)));
        }
    }
}

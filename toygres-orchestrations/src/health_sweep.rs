//! Look at a shard's instances for ever, a few minutes at a time.

use std::time::Duration;

use duroxide::OrchestrationContext;
use toygres_activities::SweepHealthInput;
use toygres_activities::names::activities;

/// After an activity that failed; one that was cut off is repeated by itself.
const PAUSE: Duration = Duration::from_secs(5);

/// See [`HEALTH_SWEEP`](crate::names::orchestrations::HEALTH_SWEEP). It never ends: each execution is one activity, which one
/// server has as long as it lives, and the next begins anew, so that the history stays short.
///
/// # Errors
/// If its own input can't be written, which is a fault.
pub async fn health_sweep_orchestration(ctx: OrchestrationContext, input: SweepHealthInput) -> Result<String, String> {
    let encoded = serde_json::to_string(&input).map_err(|error| error.to_string())?;
    let swept = ctx.schedule_activity(activities::SWEEP_HEALTH, encoded.clone()).with_tag(&input.shard.place).await;
    if let Err(error) = swept {
        ctx.trace_warn(format!("the sweep failed, and goes on in a moment: {error}"));
        ctx.schedule_timer(PAUSE).await;
    }
    ctx.continue_as_new(encoded).await
}

//! Look at a shard's instances for ever, a few minutes at a time.

use std::time::Duration;

use duroxide::OrchestrationContext;
use toygres_activities::names::activities;
use toygres_activities::{SweepHealthInput, SweepHealthOutput};

/// After an activity that failed; one that was cut off is repeated by itself.
const PAUSE: Duration = Duration::from_secs(5);
/// After one whose server stops: by then it is gone, and another looks, or the next.
const HANDOVER: Duration = Duration::from_secs(1);

/// See [`HEALTH_SWEEP`](crate::names::orchestrations::HEALTH_SWEEP). It never ends: each execution is one activity, which one
/// server has as long as it lives, and the next begins anew, so that the history stays short.
///
/// # Errors
/// If its own input can't be written, which is a fault.
pub async fn health_sweep_orchestration(ctx: OrchestrationContext, input: SweepHealthInput) -> Result<String, String> {
    let encoded = serde_json::to_string(&input).map_err(|error| error.to_string())?;
    let swept = ctx.schedule_activity(activities::SWEEP_HEALTH, encoded.clone()).with_tag(&input.shard.place).await;
    let output = swept.and_then(|swept| serde_json::from_str::<SweepHealthOutput>(&swept).map_err(|error| error.to_string()));
    match output {
        Ok(SweepHealthOutput { is_stopped: false, .. }) => {}
        // An activity that the server took up now would keep its lease when the server is gone, and the next one from it.
        Ok(_) => ctx.schedule_timer(HANDOVER).await,
        Err(error) => {
            ctx.trace_warn(format!("the sweep failed, and goes on in a moment: {error}"));
            ctx.schedule_timer(PAUSE).await;
        }
    }
    ctx.continue_as_new(encoded).await
}

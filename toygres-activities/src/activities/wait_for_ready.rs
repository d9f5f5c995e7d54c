//! Wait for a PostgreSQL instance to be ready.

use std::time::{Duration, Instant};

use duroxide::ActivityContext;
use toygres_models::{Failure, FailureKind};

use crate::context::{Context, run_while_valid};
use crate::types::{WaitForReadyInput, WaitForReadyOutput, instance_key};

/// See [`WAIT_FOR_READY`](crate::names::activities::WAIT_FOR_READY).
pub async fn wait_for_ready_activity(
    context: Context,
    ctx: ActivityContext,
    input: WaitForReadyInput,
) -> Result<WaitForReadyOutput, Failure> {
    let key = instance_key(&input.namespace, &input.instance_name)?;
    let operation = context.operation_context(&ctx).await?;
    let begun = Instant::now();
    let wait = async {
        let place = context.place(operation.as_ref()).await?;
        let seen = place.platform.wait_ready(&key, Duration::from_secs(input.timeout_seconds)).await?;
        if let Some(operation) = operation.as_ref().filter(|operation| seen.ready && operation.concerns_extensions()) {
            place.platform.set_extensions(&key, operation.target()).await?;
        }
        Ok(seen)
    };
    let seen = run_while_valid(operation.as_ref(), wait).await?;
    if seen.ready {
        return Ok(WaitForReadyOutput {
            pod_phase: seen.phase.as_str().to_owned(),
            ready_after_seconds: begun.elapsed().as_secs(),
        });
    }
    let reason = seen.reason.as_ref().map_or_else(|| format!("its phase is {}", seen.phase.as_str()), ToString::to_string);
    let evidence = seen.reason.map(|reason| reason.evidence).unwrap_or_default();
    // This may be one wait of many.
    let waited = operation.and_then(|operation| operation.waited(Duration::from_secs(input.timeout_seconds)));
    let failure = match waited.filter(|waited| *waited >= context.ready_timeout) {
        Some(_) => {
            let message = format!("{key} was not ready within {} s: {reason}", context.ready_timeout.as_secs());
            Failure::permanent(FailureKind::TimedOut, message)
        }
        None => Failure::transient(FailureKind::TimedOut, format!("{key} isn't ready yet: {reason}")),
    };
    Err(failure.with_evidence(evidence))
}

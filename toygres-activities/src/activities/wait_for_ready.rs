//! Wait for a PostgreSQL instance to be ready.

use std::time::{Duration, Instant};

use duroxide::ActivityContext;
use toygres_models::{Failure, FailureKind};

use crate::context::{Context, OperationContext, run_while_valid};
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
        // A new instance has none that would have to be removed.
        let is_new = |operation: &OperationContext| operation.instance().status.members.is_empty();
        if let Some(operation) =
            operation.as_ref().filter(|operation| seen.ready && !(is_new(operation) && operation.target().extensions.is_empty()))
        {
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
    let reason = seen.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let message = format!("{key} was not ready within {} s; its phase is {}{reason}", input.timeout_seconds, seen.phase.as_str());
    let evidence = seen.reason.map(|reason| reason.evidence).unwrap_or_default();
    Err(Failure::transient(FailureKind::TimedOut, message).with_evidence(evidence))
}

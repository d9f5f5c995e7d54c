//! Change how a PostgreSQL instance is reached: bring the platform in line with the record, wait until
//! the server is ready, learn its new address, try that, write it down. If a step fails for good the instance
//! runs on, and the operation says what is missing. If it is cancelled, the same steps put back what
//! was before.

use duroxide::OrchestrationContext;
use toygres_activities::{GetConnectionStringsOutput, UpdateMetadataInput};
use toygres_models::store::Exposure;
use toygres_models::{Failure, FailureKind, InstanceState};

use crate::retry::Patience;
use crate::steps::Subject;
use crate::types::{UpdateInstanceInput, UpdateInstanceOutput};

/// See [`UPDATE_INSTANCE`](crate::names::orchestrations::UPDATE_INSTANCE).
///
/// # Errors
/// The failure of the step that failed, as JSON.
pub async fn update_instance_orchestration(
    ctx: OrchestrationContext,
    input: UpdateInstanceInput,
) -> Result<UpdateInstanceOutput, String> {
    let wanted = Exposure { use_load_balancer: input.use_load_balancer, dns_label: input.dns_label.clone() };
    let ended = update(&ctx, &input, &wanted, Patience::CANCELLABLE_STEP).await;
    let ended = match &ended {
        Ok(strings) => record(&ctx, &input, Some(strings), false).await.and(ended),
        Err(failure) if failure.kind == FailureKind::Cancelled => ended,
        Err(_) => record(&ctx, &input, None, false).await.and(ended),
    };
    let ended = match (ended, &input.previous) {
        (Err(failure), Some(previous)) if failure.kind == FailureKind::Cancelled => {
            compensate(&ctx, &input, previous).await.and(Err(failure))
        }
        (ended, _) => ended,
    };
    match ended {
        Ok(strings) => Ok(UpdateInstanceOutput { ip_connection_string: strings.ip_connection_string }),
        Err(failure) => Err(failure.encode()),
    }
}

/// Goes back to how it was reached before.
async fn compensate(ctx: &OrchestrationContext, input: &UpdateInstanceInput, previous: &Exposure) -> Result<(), Failure> {
    let put_back = update(ctx, input, previous, Patience::STEP).await;
    record(ctx, input, put_back.as_ref().ok(), true).await?;
    put_back.map(drop)
}

async fn update(
    ctx: &OrchestrationContext,
    input: &UpdateInstanceInput,
    exposure: &Exposure,
    step: Patience,
) -> Result<GetConnectionStringsOutput, Failure> {
    let (strings, _) = subject(input).bring_up(ctx, &input.postgres_version, input.storage_size_gb, exposure, true, step).await?;
    Ok(strings)
}

/// With connection strings it is reached by them; without, the operation has failed.
async fn record(
    ctx: &OrchestrationContext,
    input: &UpdateInstanceInput,
    strings: Option<&GetConnectionStringsOutput>,
    compensated: bool,
) -> Result<(), Failure> {
    let state = if strings.is_some() { InstanceState::Running } else { InstanceState::Failed };
    let subject = subject(input);
    subject.record(ctx, &UpdateMetadataInput { compensated, ..subject.metadata(state, strings) }).await
}

fn subject(input: &UpdateInstanceInput) -> Subject<'_> {
    Subject {
        instance_id: input.instance_id,
        namespace: &input.namespace,
        instance_name: &input.instance_name,
        place: input.place.as_deref(),
    }
}

//! Create a PostgreSQL instance: deploy, wait until it is ready, learn how it is reached, try that,
//! write it down. If a step fails for good, what was made stays as evidence and the instance is
//! `failed`, until it is deleted. If it is cancelled, what was made is removed.

use duroxide::OrchestrationContext;
use toygres_activities::UpdateMetadataInput;
use toygres_models::store::Exposure;
use toygres_models::{Failure, FailureKind, InstanceState};

use crate::retry::Patience;
use crate::steps::Subject;
use crate::types::{CreateInstanceInput, CreateInstanceOutput};

/// See [`CREATE_INSTANCE`](crate::names::orchestrations::CREATE_INSTANCE).
///
/// # Errors
/// The failure of the step that failed, as JSON.
pub async fn create_instance_orchestration(
    ctx: OrchestrationContext,
    input: CreateInstanceInput,
) -> Result<CreateInstanceOutput, String> {
    create_instance(ctx, input, Patience::CANCELLABLE_STEP).await
}

/// The workflow, with that patience for its steps.
pub(crate) async fn create_instance(
    ctx: OrchestrationContext,
    input: CreateInstanceInput,
    step: Patience,
) -> Result<CreateInstanceOutput, String> {
    let subject = subject(&input);
    let ended = match create(&ctx, &input, step).await {
        Err(failure) if failure.kind != FailureKind::Cancelled => {
            subject.record(&ctx, &subject.metadata(InstanceState::Failed, None)).await.and(Err(failure))
        }
        ended => ended,
    };
    let ended = match ended {
        Err(failure) if failure.kind == FailureKind::Cancelled => subject.remove(&ctx, true).await.and(Err(failure)),
        ended => ended,
    };
    ended.map_err(|failure| failure.encode())
}

async fn create(
    ctx: &OrchestrationContext,
    input: &CreateInstanceInput,
    step: Patience,
) -> Result<CreateInstanceOutput, Failure> {
    let subject = subject(input);
    let exposure = Exposure { use_load_balancer: input.use_load_balancer, dns_label: input.dns_label.clone() };
    let (strings, tested) = subject.bring_up(ctx, &input.postgres_version, input.storage_size_gb, &exposure, false, step).await?;
    let running =
        UpdateMetadataInput { health_status: Some("healthy".into()), ..subject.metadata(InstanceState::Running, Some(&strings)) };
    subject.record(ctx, &running).await?;
    Ok(CreateInstanceOutput { version: tested.version, ip_connection_string: strings.ip_connection_string })
}

fn subject(input: &CreateInstanceInput) -> Subject<'_> {
    Subject {
        instance_id: input.instance_id,
        namespace: &input.namespace,
        instance_name: &input.instance_name,
        place: input.place.as_deref(),
    }
}

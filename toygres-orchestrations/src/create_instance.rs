//! Create a PostgreSQL instance: deploy, wait until it is ready, learn how it is reached, try that,
//! write it down. If a step fails for good, what was made stays as evidence and the instance is
//! `failed`, until it is deleted.

use duroxide::OrchestrationContext;
use toygres_activities::names::activities;
use toygres_activities::{
    DeployPostgresInput, DeployPostgresOutput, GetConnectionStringsInput, GetConnectionStringsOutput, TestConnectionInput,
    TestConnectionOutput, UpdateMetadataInput, UpdateMetadataOutput, WaitForReadyInput, WaitForReadyOutput,
};
use toygres_models::connection::with_password_reference;
use toygres_models::{Failure, InstanceKey, InstanceState, Password};

use crate::retry::{Patience, run};
use crate::types::{CreateInstanceInput, CreateInstanceOutput};

/// One look for readiness; between two of them the workflow can be told that it isn't wanted.
const LOOK_SECONDS: u64 = 5;
/// Looks until a creation is given up: five minutes.
const LOOKS: u32 = 60;

/// See [`CREATE_INSTANCE`](crate::names::orchestrations::CREATE_INSTANCE).
///
/// # Errors
/// The failure of the step that failed, as JSON.
pub async fn create_instance_orchestration(
    ctx: OrchestrationContext,
    input: CreateInstanceInput,
) -> Result<CreateInstanceOutput, String> {
    match create(&ctx, &input).await {
        Ok(output) => Ok(output),
        Err(failure) => {
            record(&ctx, &input, InstanceState::Failed, None).await.map_err(|failure| failure.encode())?;
            Err(failure.encode())
        }
    }
}

async fn create(ctx: &OrchestrationContext, input: &CreateInstanceInput) -> Result<CreateInstanceOutput, Failure> {
    let key = InstanceKey::parse(&input.namespace, &input.instance_name)?;
    let password = Password::reference(&key);
    let reference = String::from(password.clone());

    let _: DeployPostgresOutput = run(
        ctx,
        activities::DEPLOY_POSTGRES,
        &DeployPostgresInput {
            namespace: input.namespace.clone(),
            instance_name: input.instance_name.clone(),
            password: reference.clone(),
            postgres_version: input.postgres_version.clone(),
            storage_size_gb: input.storage_size_gb,
            use_load_balancer: input.use_load_balancer,
            dns_label: input.dns_label.clone(),
        },
        Patience::STEP,
    )
    .await?;

    let _: WaitForReadyOutput = run(
        ctx,
        activities::WAIT_FOR_READY,
        &WaitForReadyInput {
            namespace: input.namespace.clone(),
            instance_name: input.instance_name.clone(),
            timeout_seconds: LOOK_SECONDS,
        },
        Patience { longest_wait: Patience::STEP.first_wait, attempts: LOOKS, ..Patience::STEP },
    )
    .await?;

    let strings: GetConnectionStringsOutput = run(
        ctx,
        activities::GET_CONNECTION_STRINGS,
        &GetConnectionStringsInput {
            namespace: input.namespace.clone(),
            instance_name: input.instance_name.clone(),
            password: reference,
            use_load_balancer: input.use_load_balancer,
            dns_label: input.dns_label.clone(),
        },
        Patience::STEP,
    )
    .await?;

    let tested: TestConnectionOutput = run(
        ctx,
        activities::TEST_CONNECTION,
        &TestConnectionInput { connection_string: with_password_reference(&strings.ip_connection_string, &password) },
        Patience::STEP,
    )
    .await?;

    record(ctx, input, InstanceState::Running, Some(&strings)).await?;
    Ok(CreateInstanceOutput { version: tested.version, ip_connection_string: strings.ip_connection_string })
}

async fn record(
    ctx: &OrchestrationContext,
    input: &CreateInstanceInput,
    state: InstanceState,
    strings: Option<&GetConnectionStringsOutput>,
) -> Result<UpdateMetadataOutput, Failure> {
    run(
        ctx,
        activities::UPDATE_METADATA,
        &UpdateMetadataInput {
            instance_id: input.instance_id,
            instance_name: input.instance_name.clone(),
            state: state.to_string(),
            health_status: (state == InstanceState::Running).then(|| "healthy".to_owned()),
            ip_connection_string: strings.map(|strings| strings.ip_connection_string.clone()),
            dns_connection_string: strings.and_then(|strings| strings.dns_connection_string.clone()),
            health_check_orchestration_id: None,
        },
        Patience::RECORD,
    )
    .await
}

//! Sequences of steps that several workflows go through.

use duroxide::OrchestrationContext;
use toygres_activities::names::activities;
use toygres_activities::{
    DeletePostgresInput, DeletePostgresOutput, DeployPostgresInput, DeployPostgresOutput, GetConnectionStringsInput,
    GetConnectionStringsOutput, TestConnectionInput, TestConnectionOutput, UpdateMetadataInput, UpdateMetadataOutput,
    WaitForReadyInput, WaitForReadyOutput,
};
use toygres_models::connection::with_password_reference;
use toygres_models::store::Exposure;
use toygres_models::{Failure, InstanceKey, InstanceState, Password};
use uuid::Uuid;

use crate::registry::RECORDS;
use crate::retry::{Patience, run};

/// One look for readiness; between two of them the workflow can be told that it isn't wanted.
const LOOK_SECONDS: u64 = 5;
/// Looks until a server is given up: five minutes.
const LOOKS: u32 = 60;

/// Tests until a change is given up, nearly three minutes: the certificate for a new address takes up to
/// a minute and a half from its Secret to the server.
const TESTS_OF_CHANGE: u32 = 24;

/// An instance's name and id, and which servers can work on it.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub instance_id: Uuid,
    pub namespace: &'a str,
    pub instance_name: &'a str,
    pub place: Option<&'a str>,
}

impl Subject<'_> {
    /// Brings the platform in line with what is wanted, waits until the server is ready, learns how it is reached, and
    /// tries that.
    ///
    /// The longer steps of a change end when the exposure isn't wanted any more. A create's end by its instance's state,
    /// and the histories of version 1.0.0 have inputs without an exposure.
    pub async fn bring_up(
        self,
        ctx: &OrchestrationContext,
        postgres_version: &str,
        storage_size_gb: i32,
        exposure: &Exposure,
        is_change: bool,
        step: Patience,
    ) -> Result<(GetConnectionStringsOutput, TestConnectionOutput), Failure> {
        let key = InstanceKey::parse(self.namespace, self.instance_name)?;
        let password = Password::reference(&key);
        let changed_to = is_change.then(|| exposure.clone());
        let deploy = DeployPostgresInput {
            namespace: self.namespace.to_owned(),
            instance_name: self.instance_name.to_owned(),
            password: password.clone().into(),
            postgres_version: postgres_version.to_owned(),
            storage_size_gb,
            use_load_balancer: exposure.use_load_balancer,
            dns_label: exposure.dns_label.clone(),
        };
        let _: DeployPostgresOutput = run(ctx, activities::DEPLOY_POSTGRES, &deploy, self.place, step).await?;
        let ready = WaitForReadyInput {
            namespace: self.namespace.to_owned(),
            instance_name: self.instance_name.to_owned(),
            timeout_seconds: LOOK_SECONDS,
            exposure: changed_to.clone(),
        };
        let _: WaitForReadyOutput = run(ctx, activities::WAIT_FOR_READY, &ready, self.place, step.looking(LOOKS)).await?;
        let reached = GetConnectionStringsInput {
            namespace: deploy.namespace,
            instance_name: deploy.instance_name,
            password: deploy.password,
            use_load_balancer: deploy.use_load_balancer,
            dns_label: deploy.dns_label,
        };
        let strings: GetConnectionStringsOutput =
            run(ctx, activities::GET_CONNECTION_STRINGS, &reached, self.place, step).await?;
        let connection_string = with_password_reference(&strings.ip_connection_string, &password);
        let test = TestConnectionInput { connection_string, exposure: changed_to };
        let attempts = if is_change { TESTS_OF_CHANGE } else { step.attempts };
        let tested = run(ctx, activities::TEST_CONNECTION, &test, self.place, Patience { attempts, ..step }).await?;
        Ok((strings, tested))
    }

    /// Removes whatever there is of the instance, and records that. If that fails, what is left stays as evidence.
    pub async fn remove(self, ctx: &OrchestrationContext, compensated: bool) -> Result<DeletePostgresOutput, Failure> {
        let wanted = DeletePostgresInput { namespace: self.namespace.to_owned(), instance_name: self.instance_name.to_owned() };
        let removed: Result<DeletePostgresOutput, Failure> =
            run(ctx, activities::DELETE_POSTGRES, &wanted, self.place, Patience::STEP).await;
        let state = if removed.is_ok() { InstanceState::Deleted } else { InstanceState::Failed };
        self.record(ctx, &UpdateMetadataInput { compensated, ..self.metadata(state, None) }).await?;
        removed
    }

    /// Writes it down, however long the store can't be reached. Only servers that understand all of it do: one of the release
    /// before would take no notice of what was put back because of a cancel.
    pub async fn record(self, ctx: &OrchestrationContext, update: &UpdateMetadataInput) -> Result<(), Failure> {
        // Workflows that such a server began have no place, and histories in which this step has no tag.
        let tag = self.place.map(|_| RECORDS);
        let _: UpdateMetadataOutput = run(ctx, activities::UPDATE_METADATA, update, tag, Patience::RECORD).await?;
        Ok(())
    }

    /// That it is in that state, and is reached by those strings if there are any.
    pub fn metadata(self, state: InstanceState, strings: Option<&GetConnectionStringsOutput>) -> UpdateMetadataInput {
        UpdateMetadataInput {
            instance_id: self.instance_id,
            instance_name: self.instance_name.to_owned(),
            state: state.to_string(),
            health_status: None,
            ip_connection_string: strings.map(|strings| strings.ip_connection_string.clone()),
            dns_connection_string: strings.and_then(|strings| strings.dns_connection_string.clone()),
            health_check_orchestration_id: None,
            compensated: false,
        }
    }
}

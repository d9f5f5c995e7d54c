//! The steps that workflows are made of.

use duroxide::OrchestrationContext;
use toygres_activities::context::MAX_READY_TIMEOUT;
use toygres_activities::names::activities;
use toygres_activities::{
    DeletePostgresInput, DeletePostgresOutput, DeployPostgresInput, DeployPostgresOutput, GetConnectionStringsInput,
    GetConnectionStringsOutput, RestartPostgresInput, RestartPostgresOutput, RevertOperationInput, RevertOperationOutput,
    RotatePasswordInput, RotatePasswordOutput, TestConnectionInput, TestConnectionOutput, UpdateMetadataInput,
    UpdateMetadataOutput, WaitForReadyInput, WaitForReadyOutput,
};
use toygres_models::connection::with_password_reference;
use toygres_models::{Failure, InstanceKey, InstanceSpec, InstanceState, Password, Power};

use crate::retry::{RetryPolicy, run};
use crate::types::{OperationInput, OperationOutput};

/// How long one wait for readiness lasts; between two of them the workflow can be cancelled.
const WAIT_SECONDS: u64 = 5;
/// Waits until a server is given up whatever the setting says. Before that the activity gives it up.
const WAITS: u32 = 60 + (MAX_READY_TIMEOUT.as_secs() / WAIT_SECONDS) as u32;

/// The steps of one operation.
pub(crate) struct Steps<'a> {
    ctx: &'a OrchestrationContext,
    input: &'a OperationInput,
}

/// What was found of an instance at the end.
pub(crate) enum Found {
    Running { strings: GetConnectionStringsOutput, version: String },
    Stopped,
}

impl Found {
    pub fn output(self) -> OperationOutput {
        match self {
            Self::Running { strings, version } => OperationOutput {
                power: Power::Running,
                version: Some(version),
                ip_connection_string: Some(strings.ip_connection_string),
            },
            Self::Stopped => OperationOutput { power: Power::Stopped, version: None, ip_connection_string: None },
        }
    }
}

impl<'a> Steps<'a> {
    pub fn of(ctx: &'a OrchestrationContext, input: &'a OperationInput) -> Self {
        Self { ctx, input }
    }

    /// Brings the platform to `spec`, and reaches the server if it is to run.
    pub async fn bring_to(&self, spec: &InstanceSpec, policy: RetryPolicy) -> Result<Found, Failure> {
        let (namespace, instance_name) = self.names();
        let deploy = DeployPostgresInput {
            namespace,
            instance_name,
            password: self.password()?.into(),
            postgres_version: spec.postgres_version.to_string(),
            storage_size_gb: spec.storage_size_gb.gb(),
            use_load_balancer: spec.use_load_balancer,
            dns_label: spec.dns_label.as_ref().map(ToString::to_string),
        };
        let _: DeployPostgresOutput = self.run(activities::DEPLOY_POSTGRES, &deploy, policy).await?;
        match spec.power {
            Power::Running => self.reach(spec, policy).await,
            Power::Stopped => Ok(Found::Stopped),
        }
    }

    /// Waits until the server is ready, learns how it is reached, and logs in.
    pub async fn reach(&self, spec: &InstanceSpec, policy: RetryPolicy) -> Result<Found, Failure> {
        let password = self.password()?;
        let (namespace, instance_name) = self.names();
        let ready = WaitForReadyInput { namespace, instance_name, timeout_seconds: WAIT_SECONDS };
        let _: WaitForReadyOutput = self.run(activities::WAIT_FOR_READY, &ready, policy.repeated_at_once(WAITS)).await?;
        let (namespace, instance_name) = self.names();
        let reached = GetConnectionStringsInput {
            namespace,
            instance_name,
            password: password.clone().into(),
            use_load_balancer: spec.use_load_balancer,
            dns_label: spec.dns_label.as_ref().map(ToString::to_string),
        };
        let strings: GetConnectionStringsOutput = self.run(activities::GET_CONNECTION_STRINGS, &reached, policy).await?;
        let test = TestConnectionInput { connection_string: with_password_reference(&strings.ip_connection_string, &password) };
        let tested: TestConnectionOutput = self.run(activities::TEST_CONNECTION, &test, policy.for_log_in()).await?;
        Ok(Found::Running { strings, version: tested.version })
    }

    /// Restarts the server.
    pub async fn restart(&self, policy: RetryPolicy) -> Result<(), Failure> {
        let (namespace, instance_name) = self.names();
        let restart = RestartPostgresInput { namespace, instance_name };
        let _: RestartPostgresOutput = self.run(activities::RESTART_POSTGRES, &restart, policy).await?;
        Ok(())
    }

    /// Gives the user a new password.
    pub async fn rotate_password(&self, policy: RetryPolicy) -> Result<(), Failure> {
        let (namespace, instance_name) = self.names();
        let rotate = RotatePasswordInput { namespace, instance_name };
        let _: RotatePasswordOutput = self.run(activities::ROTATE_PASSWORD, &rotate, policy).await?;
        Ok(())
    }

    /// Removes whatever there is of the instance, and records that. If that fails, what is left stays as evidence.
    pub async fn remove(&self) -> Result<DeletePostgresOutput, Failure> {
        let (namespace, instance_name) = self.names();
        let delete = DeletePostgresInput { namespace, instance_name };
        let removed: Result<DeletePostgresOutput, Failure> =
            self.run(activities::DELETE_POSTGRES, &delete, RetryPolicy::STEP).await;
        let state = if removed.is_ok() { InstanceState::Deleted } else { InstanceState::Failed };
        self.record(&self.metadata(state)).await?;
        removed
    }

    /// Has the operation's steps bring about what was before. `false` if there is nothing to revert.
    pub async fn begin_revert(&self) -> Result<bool, Failure> {
        let revert = RevertOperationInput { instance_id: self.input.instance_id };
        let begun: RevertOperationOutput = self.run(activities::REVERT_OPERATION, &revert, RetryPolicy::RECORD).await?;
        Ok(begun.reverting)
    }

    /// Records what was found, which ends the operation.
    pub async fn record_found(&self, found: &Found) -> Result<(), Failure> {
        let update = match found {
            Found::Running { strings, .. } => UpdateMetadataInput {
                health_status: Some("healthy".into()),
                ip_connection_string: Some(strings.ip_connection_string.clone()),
                dns_connection_string: strings.dns_connection_string.clone(),
                ..self.metadata(InstanceState::Running)
            },
            Found::Stopped => self.metadata(InstanceState::Stopped),
        };
        self.record(&update).await
    }

    /// Records how a verb ended, which ends the operation, and gives the workflow's output.
    pub async fn record_end(&self, result: Result<Found, Failure>) -> Result<OperationOutput, String> {
        let ended = match result {
            Ok(found) => self.record_found(&found).await.map(|()| found),
            Err(failure) => self.record_failure().await.and(Err(failure)),
        };
        ended.map(Found::output).map_err(|failure| failure.encode())
    }

    /// Records that a step failed for good, which ends the operation.
    pub async fn record_failure(&self) -> Result<(), Failure> {
        self.record(&self.metadata(InstanceState::Failed)).await
    }

    /// Records, however long the store can't be reached.
    async fn record(&self, update: &UpdateMetadataInput) -> Result<(), Failure> {
        let _: UpdateMetadataOutput = self.run(activities::UPDATE_METADATA, update, RetryPolicy::RECORD).await?;
        Ok(())
    }

    async fn run<Input: serde::Serialize, Output: serde::de::DeserializeOwned>(
        &self,
        activity: &str,
        input: &Input,
        policy: RetryPolicy,
    ) -> Result<Output, Failure> {
        run(self.ctx, activity, input, &self.input.place, policy).await
    }

    fn names(&self) -> (String, String) {
        (self.input.namespace.clone(), self.input.instance_name.clone())
    }

    fn password(&self) -> Result<Password, Failure> {
        Ok(Password::reference(&InstanceKey::parse(&self.input.namespace, &self.input.instance_name)?))
    }

    fn metadata(&self, state: InstanceState) -> UpdateMetadataInput {
        UpdateMetadataInput {
            instance_id: self.input.instance_id,
            instance_name: self.input.instance_name.clone(),
            state: state.to_string(),
            health_status: None,
            ip_connection_string: None,
            dns_connection_string: None,
            health_check_orchestration_id: None,
        }
    }
}

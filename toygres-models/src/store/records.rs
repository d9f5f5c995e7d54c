//! The store's records. They are also the JSON that the API answers with: the same thing has the
//! same name in SQL, Rust and JSON. None of them holds a secret.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Failure, InstanceState, Labels, OperationKind, OperationState, PlatformName, StepState};

/// Why an instance is `failed`: the step that failed, and its failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepFailure {
    /// The step's name.
    pub step: String,
    /// What went wrong.
    #[serde(flatten)]
    pub failure: Failure,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx_macros::FromRow, ToSchema)]
pub struct Instance {
    /// Its id, never used again.
    pub id: Uuid,
    /// Its namespace.
    pub namespace: String,
    /// Its name, unique among its namespace's live instances.
    pub name: String,
    /// Where it runs.
    pub platform: PlatformName,
    /// PostgreSQL's version, full where the platform knows it.
    pub postgres_version: String,
    /// Storage in GB, as asked for.
    pub storage_size_gb: i32,
    /// Whether it may be reached from outside the platform's network.
    pub use_load_balancer: bool,
    /// Label of its public DNS name.
    pub dns_label: Option<String>,
    /// Processor time that is its own, such as `500m`; the platform's default if none was asked for.
    pub cpu: Option<String>,
    /// Memory that is its own, such as `2Gi`; the platform's default if none was asked for.
    pub memory: Option<String>,
    /// The class of its volume; the platform's default if none was asked for.
    pub storage_class: Option<String>,
    /// Which cluster, or on the local platform which machine, it runs on, where that is known.
    pub cluster_id: Option<String>,
    /// Labels, for the people who sort them.
    #[serde(default)]
    #[schema(value_type = HashMap<String, String>)]
    pub labels: Json<Labels>,
    /// Whether it can't be deleted until that is taken back.
    #[serde(default)]
    pub delete_protection: bool,
    /// Counts the changes of everything but health; it is the ETag.
    #[serde(default)]
    pub revision: i64,
    /// Where it is in its life.
    pub state: InstanceState,
    /// `healthy`, `unhealthy`, `unknown` where it can't be looked at now, or none before it ran.
    pub health_status: Option<String>,
    /// How it is reached by address, without the password.
    pub ip_connection_string: Option<String>,
    /// How it is reached by public name, without the password.
    pub dns_connection_string: Option<String>,
    /// The workflow that watches its health.
    pub health_check_orchestration_id: Option<String>,
    /// Why it is `failed`.
    #[schema(value_type = Option<StepFailure>)]
    pub failure: Option<Json<StepFailure>>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When its record last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was gone.
    pub deleted_at: Option<DateTime<Utc>>,
}

impl Instance {
    /// From where it is to be reached.
    #[must_use]
    pub fn exposure(&self) -> Exposure {
        Exposure { use_load_balancer: self.use_load_balancer, dns_label: self.dns_label.clone() }
    }
}

/// An operation: one change of an instance, from the request to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx_macros::FromRow, ToSchema)]
pub struct Operation {
    /// Its id, which is also its workflow's.
    pub id: Uuid,
    /// What it does.
    pub kind: OperationKind,
    /// The instance.
    pub instance_id: Uuid,
    /// The instance's namespace.
    pub namespace: String,
    /// The instance's name.
    pub instance_name: String,
    /// Where it is.
    pub state: OperationState,
    /// Who asked, and for what.
    pub cause: String,
    /// Which token's holder asked, or `toygres`.
    #[serde(default)]
    pub actor: String,
    /// Which failed operation it tries again.
    #[serde(default)]
    pub retry_of: Option<Uuid>,
    /// When somebody asked to cancel it.
    #[serde(default)]
    pub cancel_requested_at: Option<DateTime<Utc>>,
    /// Who asked to cancel it.
    #[serde(default)]
    pub cancel_requested_by: Option<String>,
    /// What was there before: a delete's [`PreviousState`], an update's [`Exposure`].
    #[serde(skip)]
    pub previous: Option<Json<serde_json::Value>>,
    /// Why it failed.
    #[schema(value_type = Option<StepFailure>)]
    pub error: Option<Json<StepFailure>>,
    /// Counts the changes of the operation and its steps.
    pub revision: i64,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When its first step began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Its steps so far, in order.
    #[sqlx(skip)]
    pub steps: Vec<Step>,
    /// What the step at work is busy with, where it takes long: a download, say.
    #[sqlx(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// How long it takes in all, going by the last ones of its kind on its platform; only while it is
    /// at work, and only where there were any.
    #[sqlx(skip)]
    #[serde(default)]
    pub expected_seconds: Option<f64>,
}

/// From where an instance may be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// Whether it may be reached from outside the platform's network.
    pub use_load_balancer: bool,
    /// Label of its public DNS name.
    pub dns_label: Option<String>,
}

/// What an instance was before its deletion was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreviousState {
    /// Its state.
    pub state: InstanceState,
    /// Why it was `failed`.
    pub failure: Option<Json<StepFailure>>,
}

impl Operation {
    /// How its instance was reached before, where it is an update.
    #[must_use]
    pub fn previous_exposure(&self) -> Option<Exposure> {
        self.previous_as(OperationKind::Update)
    }

    /// What its instance was before, where it is a delete.
    pub(super) fn previous_state(&self) -> Option<PreviousState> {
        self.previous_as(OperationKind::Delete)
    }

    fn previous_as<T: serde::de::DeserializeOwned>(&self, kind: OperationKind) -> Option<T> {
        let previous = self.previous.as_ref().filter(|_| self.kind == kind)?;
        serde_json::from_value(previous.0.clone()).ok()
    }
}

/// A step of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx_macros::FromRow, ToSchema)]
pub struct Step {
    /// Its name: the activity's, such as `deploy-postgres`.
    pub name: String,
    /// Where it is.
    pub state: StepState,
    /// How often it was begun, repeats after a crash included.
    pub attempts: i32,
    /// When it was first begun.
    pub started_at: DateTime<Utc>,
    /// When its last attempt ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Why its last attempt failed.
    #[schema(value_type = Option<Failure>)]
    pub error: Option<Json<Failure>>,
}

/// Something that happened, mostly to an instance, and its cause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx_macros::FromRow, ToSchema)]
pub struct Event {
    /// Its number; later events have greater ones.
    pub id: i64,
    /// The instance; none where it is about something else.
    pub instance_id: Option<Uuid>,
    /// The namespace, where it is about an instance or a namespace.
    pub namespace: Option<String>,
    /// The instance's name.
    pub instance_name: Option<String>,
    /// A stable word, such as `create_requested` or `server_restarted`.
    pub kind: String,
    /// What happened, for a person.
    pub message: String,
    /// Who or what brought it about.
    pub cause: String,
    /// Which token's holder did it, or `toygres`.
    #[serde(default)]
    pub actor: String,
    /// The operation it belongs to.
    pub operation_id: Option<Uuid>,
    /// When.
    pub created_at: DateTime<Utc>,
}

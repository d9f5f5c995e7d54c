//! The store's records. They are also the JSON that the API answers with: the same thing has the
//! same name in SQL, Rust and JSON. None of them holds a secret.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use uuid::Uuid;

use crate::{Failure, InstanceState, OperationKind, OperationState, PlatformName, StepState};

/// Why an instance is `failed`: the step that failed, and its failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepFailure {
    /// The step's name.
    pub step: String,
    /// What went wrong.
    #[serde(flatten)]
    pub failure: Failure,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx::FromRow)]
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
    /// Which cluster it runs on, where that is known.
    pub cluster_id: Option<String>,
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
    pub failure: Option<Json<StepFailure>>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When its record last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was gone.
    pub deleted_at: Option<DateTime<Utc>>,
}

/// An operation: one change of an instance, from the request to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx::FromRow)]
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
    /// Why it failed.
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
}

/// A step of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx::FromRow)]
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
    pub error: Option<Json<Failure>>,
}

/// Something that happened to an instance, and its cause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx::FromRow)]
pub struct Event {
    /// Its number; later events have greater ones.
    pub id: i64,
    /// The instance.
    pub instance_id: Uuid,
    /// The instance's namespace.
    pub namespace: String,
    /// The instance's name.
    pub instance_name: String,
    /// A stable word, such as `create_requested` or `server_restarted`.
    pub kind: String,
    /// What happened, for a person.
    pub message: String,
    /// Who or what brought it about.
    pub cause: String,
    /// The operation it belongs to.
    pub operation_id: Option<Uuid>,
    /// When.
    pub created_at: DateTime<Utc>,
}

//! The store's records. They are also the JSON that the API answers with: the same thing has the
//! same name in SQL, Rust and JSON. None of them holds a secret.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Failure, InstanceSpec, InstanceState, InstanceStatus, OperationKind, OperationState, StepFailure, StepState};

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx_macros::FromRow, ToSchema)]
pub struct Instance {
    /// Its id, never used again.
    pub id: Uuid,
    /// Its namespace.
    pub namespace: String,
    /// Its name, unique among its namespace's live instances.
    pub name: String,
    /// Which cluster, or on the local platform which machine, it runs on, where that is known.
    pub cluster_id: Option<String>,
    /// What it is to be.
    #[schema(value_type = InstanceSpec)]
    pub spec: Json<InstanceSpec>,
    /// Counts the changes of the spec; it is the ETag.
    pub generation: i64,
    /// Where it is in its life.
    pub state: InstanceState,
    /// What was seen of it.
    #[schema(value_type = InstanceStatus)]
    pub status: Json<InstanceStatus>,
    /// The generation that the platform was last brought to.
    pub observed_generation: i64,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When its record last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was gone.
    pub deleted_at: Option<DateTime<Utc>>,
}

impl Instance {
    /// The columns of a record.
    pub(super) const COLUMNS: &str = "id, namespace, name, cluster_id, spec, generation, state, status, observed_generation,
        created_at, updated_at, deleted_at";

    /// Its namespace and name.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Which servers can work on it: those that serve its cluster or machine, or, where that isn't known, its
    /// platform.
    #[must_use]
    pub fn place(&self) -> &str {
        self.cluster_id.as_deref().unwrap_or(self.spec.platform.as_str())
    }

    /// Whether the platform may be otherwise than the spec, since the last change of it did not come to its end.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        // A failed delete may have taken something away.
        self.observed_generation < self.generation || self.state == InstanceState::Failed
    }
}

/// An operation: a request that is kept, from its beginning to its end.
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
    /// Which servers can work on it: the id of a machine or a cluster, or the platform's name.
    pub place: String,
    /// What it does, for a person: the kind, or for an update what changes, such as `stop`.
    pub summary: String,
    /// What was asked for beyond the spec.
    #[schema(value_type = Object)]
    pub input: Json<serde_json::Value>,
    /// The instance's spec before it.
    #[schema(value_type = InstanceSpec)]
    pub spec_before: Json<InstanceSpec>,
    /// The spec that it brings about.
    #[schema(value_type = InstanceSpec)]
    pub spec: Json<InstanceSpec>,
    /// The generation that it brings the platform to.
    pub generation: i64,
    /// The instance's state when it was asked for.
    pub state_before: InstanceState,
    /// Where it is.
    pub state: OperationState,
    /// Whether it failed or was cancelled, and what was before is being restored.
    pub reverting: bool,
    /// Who asked, and for what.
    pub cause: String,
    /// Which token's holder asked, or `toygres`.
    pub actor: String,
    /// Which failed operation it tries again.
    pub retry_of: Option<Uuid>,
    /// When somebody asked to cancel it.
    pub cancel_requested_at: Option<DateTime<Utc>>,
    /// Who asked to cancel it.
    pub cancel_requested_by: Option<String>,
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
    /// What the step at work waits for, where that takes long: a download, say.
    #[sqlx(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// How long it takes in all: the median of the last ones like it on its platform. Only while it is
    /// at work, and only where there were any.
    #[sqlx(skip)]
    #[serde(default)]
    pub expected_seconds: Option<f64>,
}

impl Operation {
    /// The columns of a record.
    pub(super) const COLUMNS: &str = "id, kind, instance_id, namespace, instance_name, place, summary, input, spec_before, spec,
        generation, state_before, state, reverting, cause, actor, retry_of, cancel_requested_at, cancel_requested_by, error,
        revision, created_at, started_at, finished_at";

    /// The spec that its steps bring about now: of one that is being reverted, the one of before.
    #[must_use]
    pub fn target(&self) -> &InstanceSpec {
        if self.reverting { &self.spec_before } else { &self.spec }
    }

    /// Whether it changes the spec.
    #[must_use]
    pub fn changes_spec(&self) -> bool {
        self.spec != self.spec_before
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

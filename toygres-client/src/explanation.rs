//! Why an instance isn't what it should be: the answer of `GET /v1/instances/{name}/why`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use toygres_models::{InstanceState, Verdict};
use utoipa::ToSchema;

/// Answer of `GET /v1/instances/{name}/why`. Holds no statement and no password.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The instance's namespace.
    pub namespace: String,
    /// The instance's name.
    pub name: String,
    /// Its state.
    pub state: InstanceState,
    /// What is likely wrong, and what to do.
    pub verdict: Verdict,
    /// What led to it, oldest first.
    pub timeline: Vec<Moment>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Moment {
    /// When; words of the platform without a time of their own have that of the step that met them.
    pub at: DateTime<Utc>,
    /// Who tells of it.
    pub source: MomentSource,
    /// What it is, in a stable word: a step, an event's kind.
    pub what: String,
    /// What happened, for a person.
    pub text: String,
    /// How often it happened until then, in the part of the log that is looked at. Of a line that repeats, the first and the
    /// last time are told.
    pub times: u32,
}

/// Who tells of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MomentSource {
    /// The instance's last operation.
    Operation,
    /// The instance's events.
    Event,
    /// The platform: a pod's conditions and events, what is seen now.
    Platform,
    /// The instance's own server, by its log.
    Postgres,
}

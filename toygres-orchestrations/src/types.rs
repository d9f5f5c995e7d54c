//! Input and output types for Toygres orchestrations. Durable histories hold them as JSON: fields
//! are only ever added, with a default.

use serde::{Deserialize, Serialize};
use toygres_models::store::Exposure;
use uuid::Uuid;

/// Input of [`CREATE_INSTANCE`](crate::names::orchestrations::CREATE_INSTANCE). Holds no secret:
/// the password is in the secret store before the workflow starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateInstanceInput {
    /// Instance ID (UUID)
    pub instance_id: Uuid,
    /// Namespace
    pub namespace: String,
    /// Instance name
    pub instance_name: String,
    /// PostgreSQL version, resolved
    pub postgres_version: String,
    /// Storage size in GB
    pub storage_size_gb: i32,
    /// Whether it may be reached from outside the platform's network
    pub use_load_balancer: bool,
    /// DNS label of its public name
    pub dns_label: Option<String>,
    /// Which servers can do it (see [`run`](crate::retry::run)); any if there is none
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// Output of [`CREATE_INSTANCE`](crate::names::orchestrations::CREATE_INSTANCE).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateInstanceOutput {
    /// What the server answered to `SELECT version()`
    pub version: String,
    /// How it is reached, without the password
    pub ip_connection_string: String,
}

/// Input of [`UPDATE_INSTANCE`](crate::names::orchestrations::UPDATE_INSTANCE): what the instance is to
/// be. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateInstanceInput {
    /// Instance ID (UUID)
    pub instance_id: Uuid,
    /// Namespace
    pub namespace: String,
    /// Instance name
    pub instance_name: String,
    /// PostgreSQL version, as it is
    pub postgres_version: String,
    /// Storage size in GB, as it is
    pub storage_size_gb: i32,
    /// Whether it may be reached from outside the platform's network
    pub use_load_balancer: bool,
    /// DNS label of its public name
    pub dns_label: Option<String>,
    /// From where it was reached before: what is put back if the change is cancelled
    #[serde(default)]
    pub previous: Option<Exposure>,
    /// Which servers can do it (see [`run`](crate::retry::run)); any if there is none
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// Output of [`UPDATE_INSTANCE`](crate::names::orchestrations::UPDATE_INSTANCE).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateInstanceOutput {
    /// How it is reached now, without the password
    pub ip_connection_string: String,
}

/// Input of [`DELETE_INSTANCE`](crate::names::orchestrations::DELETE_INSTANCE).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteInstanceInput {
    /// Instance ID (UUID)
    pub instance_id: Uuid,
    /// Namespace
    pub namespace: String,
    /// Instance name
    pub instance_name: String,
    /// Which servers can do it (see [`run`](crate::retry::run)); any if there is none
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// Output of [`DELETE_INSTANCE`](crate::names::orchestrations::DELETE_INSTANCE).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteInstanceOutput {
    /// Whether there was anything to delete
    pub deleted: bool,
}

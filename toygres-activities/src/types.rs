//! Input and output types for Toygres activities
//!
//! The fields are public contract. Durable histories hold them as JSON: what was written once must
//! stay readable (see `tests/it/payloads.rs`).

use std::fmt;

use serde::{Deserialize, Serialize};
use toygres_models::store::Shard;
use toygres_models::{InstanceKey, Invalid};
use uuid::Uuid;

// ============================================================================
// Deploy PostgreSQL Activity
// ============================================================================

/// Input of [`DEPLOY_POSTGRES`](crate::names::activities::DEPLOY_POSTGRES).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployPostgresInput {
    /// Namespace
    pub namespace: String,
    /// Instance name (used for the platform's resource names)
    pub instance_name: String,
    /// PostgreSQL password, or a reference to it: `secret://namespace/instance`
    pub password: String,
    /// PostgreSQL version (e.g., "16", "18", "17.4")
    pub postgres_version: String,
    /// Storage size in GB
    pub storage_size_gb: i32,
    /// Use LoadBalancer (true) or ClusterIP (false); the local platform has only the latter's like
    pub use_load_balancer: bool,
    /// Optional DNS label for Azure DNS (`<label>.<region>.cloudapp.azure.com`)
    pub dns_label: Option<String>,
}

/// Output of [`DEPLOY_POSTGRES`](crate::names::activities::DEPLOY_POSTGRES).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployPostgresOutput {
    /// Instance name
    pub instance_name: String,
    /// Namespace
    pub namespace: String,
    /// Whether resources were created (false if already existed)
    pub created: bool,
}

// ============================================================================
// Delete PostgreSQL Activity
// ============================================================================

/// Input of [`DELETE_POSTGRES`](crate::names::activities::DELETE_POSTGRES).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletePostgresInput {
    /// Namespace
    pub namespace: String,
    /// Instance name
    pub instance_name: String,
}

/// Output of [`DELETE_POSTGRES`](crate::names::activities::DELETE_POSTGRES).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletePostgresOutput {
    /// Whether resources were deleted (false if didn't exist)
    pub deleted: bool,
}

// ============================================================================
// Wait For Ready Activity
// ============================================================================

/// Input of [`WAIT_FOR_READY`](crate::names::activities::WAIT_FOR_READY).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitForReadyInput {
    /// Namespace
    pub namespace: String,
    /// Instance name
    pub instance_name: String,
    /// Timeout in seconds
    pub timeout_seconds: u64,
}

/// Output of [`WAIT_FOR_READY`](crate::names::activities::WAIT_FOR_READY).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitForReadyOutput {
    /// Pod phase (e.g., "Running"); the local platform uses the same words
    pub pod_phase: String,
    /// Time taken to become ready (seconds)
    pub ready_after_seconds: u64,
}

// ============================================================================
// Get Connection Strings Activity
// ============================================================================

/// Input of [`GET_CONNECTION_STRINGS`](crate::names::activities::GET_CONNECTION_STRINGS).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetConnectionStringsInput {
    /// Namespace
    pub namespace: String,
    /// Instance name
    pub instance_name: String,
    /// PostgreSQL password, or a reference to it: `secret://namespace/instance`
    pub password: String,
    /// Whether LoadBalancer was used
    pub use_load_balancer: bool,
    /// DNS label (if used)
    pub dns_label: Option<String>,
}

/// Output of [`GET_CONNECTION_STRINGS`](crate::names::activities::GET_CONNECTION_STRINGS).
///
/// The connection strings have the password in them only if the input did.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetConnectionStringsOutput {
    /// IP-based connection string
    pub ip_connection_string: String,
    /// DNS-based connection string (if DNS label provided)
    pub dns_connection_string: Option<String>,
    /// External IP address (if LoadBalancer)
    pub external_ip: Option<String>,
    /// Azure DNS name (if DNS label provided)
    pub dns_name: Option<String>,
}

// ============================================================================
// Test Connection Activity
// ============================================================================

/// Input of [`TEST_CONNECTION`](crate::names::activities::TEST_CONNECTION).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestConnectionInput {
    /// Connection string to test; the password in it may be a reference, percent-encoded
    pub connection_string: String,
}

/// Output of [`TEST_CONNECTION`](crate::names::activities::TEST_CONNECTION).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestConnectionOutput {
    /// PostgreSQL version string
    pub version: String,
    /// Whether connection succeeded
    pub connected: bool,
}

// ============================================================================
// Update Metadata Activity
// ============================================================================

/// Input of [`UPDATE_METADATA`](crate::names::activities::UPDATE_METADATA).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateMetadataInput {
    /// Instance ID (UUID)
    pub instance_id: Uuid,
    /// Instance name
    pub instance_name: String,
    /// Current state
    pub state: String,
    /// Health status
    pub health_status: Option<String>,
    /// IP connection string
    pub ip_connection_string: Option<String>,
    /// DNS connection string
    pub dns_connection_string: Option<String>,
    /// Health check orchestration ID
    pub health_check_orchestration_id: Option<String>,
}

/// Output of [`UPDATE_METADATA`](crate::names::activities::UPDATE_METADATA).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateMetadataOutput {
    /// Instance ID
    pub instance_id: Uuid,
    /// Whether record was created (true) or updated (false)
    pub created: bool,
}

// ============================================================================
// Restart PostgreSQL Activity
// ============================================================================

/// Input of [`RESTART_POSTGRES`](crate::names::activities::RESTART_POSTGRES).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPostgresInput {
    /// Namespace
    pub namespace: String,
    /// Instance name
    pub instance_name: String,
}

/// Output of [`RESTART_POSTGRES`](crate::names::activities::RESTART_POSTGRES).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPostgresOutput {
    /// Whether the server was restarted (false if this operation had done so before)
    pub restarted: bool,
}

// ============================================================================
// Rotate Password Activity
// ============================================================================

/// Input of [`ROTATE_PASSWORD`](crate::names::activities::ROTATE_PASSWORD).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotatePasswordInput {
    /// Namespace
    pub namespace: String,
    /// Instance name
    pub instance_name: String,
}

/// Output of [`ROTATE_PASSWORD`](crate::names::activities::ROTATE_PASSWORD).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotatePasswordOutput {}

// ============================================================================
// Revert Operation Activity
// ============================================================================

/// Input of [`REVERT_OPERATION`](crate::names::activities::REVERT_OPERATION).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevertOperationInput {
    /// Instance ID (UUID)
    pub instance_id: Uuid,
}

/// Output of [`REVERT_OPERATION`](crate::names::activities::REVERT_OPERATION).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevertOperationOutput {
    /// Whether the operation's steps bring about what was before from now on
    pub reverting: bool,
}

// ============================================================================
// Sweep Health Activity
// ============================================================================

/// Input of [`SWEEP_HEALTH`](crate::names::activities::SWEEP_HEALTH).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepHealthInput {
    /// Which instances
    pub shard: Shard,
}

/// Output of [`SWEEP_HEALTH`](crate::names::activities::SWEEP_HEALTH).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepHealthOutput {
    /// How many times they were looked at
    pub cycles: u32,
    /// Whether it ended early, since its server stops
    pub is_stopped: bool,
}

// ============================================================================
// Debug without secrets
// ============================================================================

const REDACTED: &str = "[redacted]";

/// A password's place in debug output: a reference is shown, a password never.
fn shown(password: &str) -> &str {
    if password.starts_with("secret://") { password } else { REDACTED }
}

impl fmt::Debug for DeployPostgresInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeployPostgresInput")
            .field("namespace", &self.namespace)
            .field("instance_name", &self.instance_name)
            .field("password", &shown(&self.password))
            .field("postgres_version", &self.postgres_version)
            .field("storage_size_gb", &self.storage_size_gb)
            .field("use_load_balancer", &self.use_load_balancer)
            .field("dns_label", &self.dns_label)
            .finish()
    }
}

impl fmt::Debug for GetConnectionStringsInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetConnectionStringsInput")
            .field("namespace", &self.namespace)
            .field("instance_name", &self.instance_name)
            .field("password", &shown(&self.password))
            .field("use_load_balancer", &self.use_load_balancer)
            .field("dns_label", &self.dns_label)
            .finish()
    }
}

impl fmt::Debug for GetConnectionStringsOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetConnectionStringsOutput")
            .field("ip_connection_string", &REDACTED)
            .field("dns_connection_string", &self.dns_connection_string.as_ref().map(|_| REDACTED))
            .field("external_ip", &self.external_ip)
            .field("dns_name", &self.dns_name)
            .finish()
    }
}

impl fmt::Debug for TestConnectionInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestConnectionInput").field("connection_string", &REDACTED).finish()
    }
}

impl fmt::Debug for UpdateMetadataInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateMetadataInput")
            .field("instance_id", &self.instance_id)
            .field("instance_name", &self.instance_name)
            .field("state", &self.state)
            .field("health_status", &self.health_status)
            .field("health_check_orchestration_id", &self.health_check_orchestration_id)
            .finish_non_exhaustive()
    }
}

/// The names of an input, checked; an error says `instance_name`, as the field is called here.
pub(crate) fn instance_key(namespace: &str, instance_name: &str) -> Result<InstanceKey, Invalid> {
    Ok(InstanceKey {
        namespace: namespace.parse()?,
        name: instance_name.parse().map_err(|invalid: Invalid| Invalid { field: "instance_name", ..invalid })?,
    })
}

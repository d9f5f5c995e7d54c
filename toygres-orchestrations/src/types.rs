//! Input and output types for Toygres orchestrations.

use serde::{Deserialize, Serialize};
use toygres_models::store::Operation;
use toygres_models::{InstanceSpec, Power};
use uuid::Uuid;

/// Input of every workflow, made from its operation alone. Holds no secret: passwords are in the secret store before a
/// workflow starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationInput {
    /// Operation ID (UUID), which is also the workflow's
    pub operation_id: Uuid,
    /// Instance ID (UUID)
    pub instance_id: Uuid,
    /// Namespace
    pub namespace: String,
    /// Instance name
    pub instance_name: String,
    /// Which servers can do it: the id of a machine or a cluster, or the platform's name
    pub place: String,
    /// What the instance is to be
    pub spec: InstanceSpec,
    /// What it was to be before
    pub spec_before: InstanceSpec,
}

impl From<&Operation> for OperationInput {
    fn from(operation: &Operation) -> Self {
        Self {
            operation_id: operation.id,
            instance_id: operation.instance_id,
            namespace: operation.namespace.clone(),
            instance_name: operation.instance_name.clone(),
            place: operation.place.clone(),
            spec: operation.spec.0.clone(),
            spec_before: operation.spec_before.0.clone(),
        }
    }
}

/// Output of every workflow that brings an instance to a spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationOutput {
    /// Whether the server runs now
    pub power: Power,
    /// What the server answered to `SELECT version()`, if it runs
    pub version: Option<String>,
    /// How it is reached, without the password, if it runs
    pub ip_connection_string: Option<String>,
}

/// Output of [`DELETE_INSTANCE`](crate::names::orchestrations::DELETE_INSTANCE).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteInstanceOutput {
    /// Whether there was anything to delete
    pub deleted: bool,
}

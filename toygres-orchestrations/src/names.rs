//! Name constants for Toygres orchestrations
//!
//! Following the Duroxide naming convention: `{crate-name}::{type}::{name}`

/// Orchestration names. Each is the workflow of one kind of operation: its input is an
/// [`OperationInput`](crate::types::OperationInput), its id the operation's.
pub mod orchestrations {
    /// Create a PostgreSQL instance
    ///
    /// **Output:** [`crate::types::OperationOutput`]
    pub const CREATE_INSTANCE: &str = "toygres-orchestrations::orchestration::create-instance";

    /// Bring a PostgreSQL instance to a new spec
    ///
    /// **Output:** [`crate::types::OperationOutput`]
    pub const UPDATE_INSTANCE: &str = "toygres-orchestrations::orchestration::update-instance";

    /// Restart a PostgreSQL instance's server
    ///
    /// **Output:** [`crate::types::OperationOutput`]
    pub const RESTART_INSTANCE: &str = "toygres-orchestrations::orchestration::restart-instance";

    /// Give a PostgreSQL instance's user a new password
    ///
    /// **Output:** [`crate::types::OperationOutput`]
    pub const ROTATE_PASSWORD: &str = "toygres-orchestrations::orchestration::rotate-password";

    /// Delete a PostgreSQL instance
    ///
    /// **Output:** [`crate::types::DeleteInstanceOutput`]
    pub const DELETE_INSTANCE: &str = "toygres-orchestrations::orchestration::delete-instance";

    /// Look at the health of a shard's instances for ever
    ///
    /// The one that is no operation's: its input is a [`SweepHealthInput`](toygres_activities::SweepHealthInput), its id the
    /// shard's.
    pub const HEALTH_SWEEP: &str = "toygres-orchestrations::orchestration::health-sweep";
}

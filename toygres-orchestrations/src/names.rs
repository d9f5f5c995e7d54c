//! Name constants for Toygres orchestrations
//!
//! Following the Duroxide naming convention: `{crate-name}::{type}::{name}`

/// Orchestration names
pub mod orchestrations {
    /// Create a PostgreSQL instance
    ///
    /// **Input:** [`crate::types::CreateInstanceInput`]
    /// **Output:** [`crate::types::CreateInstanceOutput`]
    /// **Id:** the operation's
    pub const CREATE_INSTANCE: &str = "toygres-orchestrations::orchestration::create-instance";

    /// Change how a PostgreSQL instance is reached
    ///
    /// **Input:** [`crate::types::UpdateInstanceInput`]
    /// **Output:** [`crate::types::UpdateInstanceOutput`]
    /// **Id:** the operation's
    pub const UPDATE_INSTANCE: &str = "toygres-orchestrations::orchestration::update-instance";

    /// Delete a PostgreSQL instance
    ///
    /// **Input:** [`crate::types::DeleteInstanceInput`]
    /// **Output:** [`crate::types::DeleteInstanceOutput`]
    /// **Id:** the operation's
    pub const DELETE_INSTANCE: &str = "toygres-orchestrations::orchestration::delete-instance";
}

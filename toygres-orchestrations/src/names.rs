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

    /// Delete a PostgreSQL instance
    ///
    /// **Input:** [`crate::types::DeleteInstanceInput`]
    /// **Output:** [`crate::types::DeleteInstanceOutput`]
    /// **Id:** the operation's
    pub const DELETE_INSTANCE: &str = "toygres-orchestrations::orchestration::delete-instance";
}

//! Name constants for Toygres activities
//!
//! Following the Duroxide naming convention: `{crate-name}::{type}::{name}`

/// Activity names
pub mod activities {
    /// Deploy a PostgreSQL instance
    ///
    /// **Input:** [`crate::types::DeployPostgresInput`]
    /// **Output:** [`crate::types::DeployPostgresOutput`]
    /// **Idempotent:** Yes (every resource is brought to what the input says; `created` is false
    /// when all of them were there)
    /// **Operations:**
    /// - Creates the storage (locally a data directory, checksums on)
    /// - Creates the server (locally a process) with TLS and the password set
    /// - Creates the way to reach it (locally a loopback port)
    pub const DEPLOY_POSTGRES: &str = "toygres-activities::activity::deploy-postgres";

    /// Delete a PostgreSQL instance
    ///
    /// **Input:** [`crate::types::DeletePostgresInput`]
    /// **Output:** [`crate::types::DeletePostgresOutput`]
    /// **Idempotent:** Yes (removes whatever is left; `deleted` is false if there was nothing)
    /// **Operations:**
    /// - Deletes the way to reach it
    /// - Deletes the server, stopping it cleanly
    /// - Deletes the storage, then the stored password
    /// - Waits until all of it is gone
    pub const DELETE_POSTGRES: &str = "toygres-activities::activity::delete-postgres";

    /// Wait for a PostgreSQL instance to be ready
    ///
    /// **Input:** [`crate::types::WaitForReadyInput`]
    /// **Output:** [`crate::types::WaitForReadyOutput`]
    /// **Idempotent:** Yes (returns immediately if already ready)
    /// **Operations:**
    /// - Watches the server until it answers SQL
    /// - Fails at once, with the reason, when waiting can't help
    /// - Fails as retryable after the configured duration
    pub const WAIT_FOR_READY: &str = "toygres-activities::activity::wait-for-ready";

    /// Get connection strings for a PostgreSQL instance
    ///
    /// **Input:** [`crate::types::GetConnectionStringsInput`]
    /// **Output:** [`crate::types::GetConnectionStringsOutput`]
    /// **Idempotent:** Yes
    /// **Operations:**
    /// - Asks the platform for the instance's endpoint
    /// - Constructs the address-based connection string
    /// - Constructs the DNS-based connection string (if a DNS label was provided)
    /// - Leaves the password out of both if the input has a reference in its place
    pub const GET_CONNECTION_STRINGS: &str = "toygres-activities::activity::get-connection-strings";

    /// Test a PostgreSQL connection
    ///
    /// **Input:** [`crate::types::TestConnectionInput`]
    /// **Output:** [`crate::types::TestConnectionOutput`]
    /// **Idempotent:** Yes
    /// **Operations:**
    /// - Connects to PostgreSQL; a reference in the password's place is resolved
    /// - Runs a SELECT version() query
    /// - Returns the version string
    pub const TEST_CONNECTION: &str = "toygres-activities::activity::test-connection";

    /// Update an instance's record in the metadata store
    ///
    /// **Input:** [`crate::types::UpdateMetadataInput`]
    /// **Output:** [`crate::types::UpdateMetadataOutput`]
    /// **Idempotent:** Yes (upsert; a field that is `null` leaves what is stored)
    /// **Operations:**
    /// - Checks that the state may follow the stored one
    /// - Updates the record, and ends the operation that the state is the goal or the failure of
    /// - Writes the event
    pub const UPDATE_METADATA: &str = "toygres-activities::activity::update-metadata";

    /// Restart a PostgreSQL instance's server
    ///
    /// **Input:** [`crate::types::RestartPostgresInput`]
    /// **Output:** [`crate::types::RestartPostgresOutput`]
    /// **Idempotent:** Yes (one restart for each operation, however often it is repeated)
    /// **Operations:**
    /// - Stops the server cleanly, unless this operation did so before
    /// - Starts it again
    pub const RESTART_POSTGRES: &str = "toygres-activities::activity::restart-postgres";

    /// Give the user of a PostgreSQL instance a new password
    ///
    /// **Input:** [`crate::types::RotatePasswordInput`]
    /// **Output:** [`crate::types::RotatePasswordOutput`]
    /// **Idempotent:** Yes (each repeat makes another one, and what is kept last is what the server has)
    /// **Operations:**
    /// - Makes a password and keeps it
    /// - Sets it in the server, over toygres's own way in
    pub const ROTATE_PASSWORD: &str = "toygres-activities::activity::rotate-password";

    /// Mark the operation as being reverted
    ///
    /// **Input:** [`crate::types::RevertOperationInput`]
    /// **Output:** [`crate::types::RevertOperationOutput`]
    /// **Idempotent:** Yes
    /// **Operations:**
    /// - Notes why: the step that failed, unless the operation was cancelled
    /// - From then on the operation's activities bring about the spec of before
    pub const REVERT_OPERATION: &str = "toygres-activities::activity::revert-operation";

    /// Look at the instances of a shard, again and again
    ///
    /// **Input:** [`crate::types::SweepHealthInput`]
    /// **Output:** [`crate::types::SweepHealthOutput`]
    /// **Idempotent:** Yes
    /// **Operations:**
    /// - Probes those that are to run, side by side, over connections that are kept
    /// - Records what changed of their health
    pub const SWEEP_HEALTH: &str = "toygres-activities::activity::sweep-health";
}

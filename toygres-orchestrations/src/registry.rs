//! Registry builders for Toygres orchestrations

use duroxide::OrchestrationRegistry;

use crate::create_instance::create_instance_orchestration;
use crate::delete_instance::delete_instance_orchestration;
use crate::names::orchestrations;

/// Version under which the workflows are registered. A change of a workflow's steps is a new
/// version beside the old one, since running executions replay the version they began with.
pub const VERSION: &str = "1.0.0";

/// Create an [`OrchestrationRegistry`] with all Toygres orchestrations
#[must_use]
pub fn create_orchestration_registry() -> OrchestrationRegistry {
    // The names are different constants, so there is no error that `build` could drop.
    OrchestrationRegistry::builder()
        .register_versioned_typed(orchestrations::CREATE_INSTANCE, VERSION, create_instance_orchestration)
        .register_versioned_typed(orchestrations::DELETE_INSTANCE, VERSION, delete_instance_orchestration)
        .build()
}

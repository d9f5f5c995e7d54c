//! Registry builders for Toygres orchestrations

use duroxide::OrchestrationRegistry;

use crate::create_instance::{create_instance, create_instance_orchestration};
use crate::delete_instance::delete_instance_orchestration;
use crate::names::orchestrations;
use crate::retry::Patience;
use crate::update_instance::update_instance_orchestration;

/// The version that new executions get. A change of a workflow's steps is a new version beside the old
/// one, since running executions replay the version they began with.
pub const VERSION: &str = "1.1.0";
/// The tag of the step that writes down how an operation went. Any server of this release or a later one does it, wherever
/// the instance is; one of an older release does only what has no tag.
pub const RECORDS: &str = "records-2";
/// Executions that a cancel doesn't wake from a wait.
const DEAF_TO_CANCEL: &str = "1.0.0";

/// Create an [`OrchestrationRegistry`] with all Toygres orchestrations
#[must_use]
pub fn create_orchestration_registry() -> OrchestrationRegistry {
    // The names are different constants, so there is no error that `build` could drop.
    OrchestrationRegistry::builder()
        .register_versioned_typed(orchestrations::CREATE_INSTANCE, DEAF_TO_CANCEL, |ctx, input| {
            create_instance(ctx, input, Patience::STEP)
        })
        .register_versioned_typed(orchestrations::CREATE_INSTANCE, VERSION, create_instance_orchestration)
        .register_versioned_typed(orchestrations::UPDATE_INSTANCE, VERSION, update_instance_orchestration)
        // It has no waits that a cancel could end, and differs by its `place` only, which old inputs lack.
        .register_versioned_typed(orchestrations::DELETE_INSTANCE, DEAF_TO_CANCEL, delete_instance_orchestration)
        .register_versioned_typed(orchestrations::DELETE_INSTANCE, VERSION, delete_instance_orchestration)
        .build()
}

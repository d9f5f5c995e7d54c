//! Registry builders for Toygres orchestrations

use duroxide::OrchestrationRegistry;
use toygres_models::OperationKind;

use crate::create_instance::create_instance_orchestration;
use crate::delete_instance::delete_instance_orchestration;
use crate::health_sweep::health_sweep_orchestration;
use crate::names::orchestrations;
use crate::restart_instance::restart_instance_orchestration;
use crate::rotate_password::rotate_password_orchestration;
use crate::update_instance::update_instance_orchestration;

/// The workflow of each kind of operation.
const WORKFLOWS: &[(OperationKind, &str)] = &[
    (OperationKind::CREATE, orchestrations::CREATE_INSTANCE),
    // It brings the instance to the spec that it carries.
    (OperationKind::ADOPT, orchestrations::UPDATE_INSTANCE),
    (OperationKind::UPDATE, orchestrations::UPDATE_INSTANCE),
    (OperationKind::RESTART, orchestrations::RESTART_INSTANCE),
    (OperationKind::ROTATE_PASSWORD, orchestrations::ROTATE_PASSWORD),
    (OperationKind::DELETE, orchestrations::DELETE_INSTANCE),
];

/// The name of the workflow that carries out operations of that kind; `None` if there is none, which a test rules out.
#[must_use]
pub fn workflow_of(kind: OperationKind) -> Option<&'static str> {
    WORKFLOWS.iter().find(|(known, _)| *known == kind).map(|(_, name)| *name)
}

/// Create an [`OrchestrationRegistry`] with all Toygres orchestrations
#[must_use]
pub fn create_orchestration_registry() -> OrchestrationRegistry {
    // The names are different constants, so there is no error that `build` could drop.
    OrchestrationRegistry::builder()
        .register_typed(orchestrations::CREATE_INSTANCE, create_instance_orchestration)
        .register_typed(orchestrations::UPDATE_INSTANCE, update_instance_orchestration)
        .register_typed(orchestrations::RESTART_INSTANCE, restart_instance_orchestration)
        .register_typed(orchestrations::ROTATE_PASSWORD, rotate_password_orchestration)
        .register_typed(orchestrations::DELETE_INSTANCE, delete_instance_orchestration)
        .register_typed(orchestrations::HEALTH_SWEEP, health_sweep_orchestration)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_workflow() {
        assert!(OperationKind::ALL.iter().all(|kind| workflow_of(*kind).is_some()));
    }
}

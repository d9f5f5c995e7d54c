//! Records and a display for this folder's unit tests.

use chrono::{TimeDelta, Utc};
use toygres_models::store::{Instance, Operation, Step};
use toygres_models::{InstanceState, OperationKind, OperationState, StepState};
use uuid::Uuid;

use super::ui::{Style, Ui};
use crate::settings::OutputFormat;

/// Speaks as into a pipe, and keeps quiet.
pub fn ui() -> Ui {
    let plain = Style { is_on: false };
    Ui { format: OutputFormat::Table, quiet: true, live: false, out: plain, err: plain }
}

/// A running instance.
pub fn instance(name: &str) -> Instance {
    Instance {
        id: Uuid::nil(),
        namespace: "default".into(),
        name: name.into(),
        platform: "local".into(),
        postgres_version: "15.18".into(),
        storage_size_gb: 10,
        use_load_balancer: false,
        dns_label: None,
        state: InstanceState::Running,
        health_status: Some("healthy".into()),
        ip_connection_string: Some("postgresql://postgres@127.0.0.1:20001/postgres?sslmode=require".into()),
        dns_connection_string: None,
        health_check_orchestration_id: None,
        failure: None,
        created_at: Utc::now() - TimeDelta::seconds(61),
        updated_at: Utc::now(),
        deleted_at: None,
    }
}

/// An operation on `demo` that took 0.31 s.
pub fn operation(kind: OperationKind) -> Operation {
    let created_at = Utc::now();
    Operation {
        id: Uuid::nil(),
        kind,
        instance_id: Uuid::nil(),
        namespace: "default".into(),
        instance_name: "demo".into(),
        state: OperationState::Running,
        cause: "a test".into(),
        error: None,
        revision: 1,
        created_at,
        started_at: Some(created_at),
        finished_at: Some(created_at + TimeDelta::milliseconds(310)),
        steps: Vec::new(),
        progress: None,
    }
}

/// A step in its first attempt.
pub fn step(name: &str, state: StepState) -> Step {
    Step { name: name.into(), state, attempts: 1, started_at: Utc::now(), finished_at: Some(Utc::now()), error: None }
}

//! Records and a display for this folder's unit tests.

use std::path::Path;

use chrono::{TimeDelta, Utc};
use clap::Parser;
use secrecy::ExposeSecret;
use toygres_client::resources::Connection;
use toygres_models::store::{Instance, Operation, Step};
use toygres_models::{InstanceSpec, InstanceState, InstanceStatus, OperationKind, OperationState, PlatformName, StepState};
use uuid::Uuid;

use crate::args::Cli;
use crate::output::ui::{Style, Ui};
use crate::settings::{OutputFormat, Settings};

/// Speaks as into a pipe, and keeps quiet.
pub fn ui() -> Ui {
    let plain = Style { is_on: false };
    Ui { format: OutputFormat::Table, quiet: true, live: false, out: plain, err: plain }
}

fn spec() -> InstanceSpec {
    InstanceSpec::new(PlatformName::Local, "15.18".parse().unwrap())
}

/// A running instance.
pub fn instance(name: &str) -> Instance {
    Instance {
        id: Uuid::nil(),
        namespace: "default".into(),
        name: name.into(),
        cluster_id: None,
        spec: sqlx::types::Json(spec()),
        generation: 1,
        state: InstanceState::Running,
        status: sqlx::types::Json(InstanceStatus {
            health_status: Some(toygres_models::HealthStatus::Healthy),
            ip_connection_string: Some("postgresql://postgres@127.0.0.1:20001/postgres?sslmode=require".into()),
            ..InstanceStatus::default()
        }),
        observed_generation: 1,
        created_at: Utc::now() - TimeDelta::seconds(61),
        updated_at: Utc::now(),
        deleted_at: None,
    }
}

/// The settings of a command that uses this state directory.
pub fn settings(state_dir: &Path) -> Settings {
    let cli = Cli::parse_from(["toygres", "list", "--state-dir", &state_dir.to_string_lossy()]);
    Settings::resolve(&cli.settings).unwrap()
}

/// How `demo` is reached.
pub fn connection(password: &str) -> Connection {
    let address =
        toygres_models::ServerAddress { host: "127.0.0.1".into(), port: 20_001, ca_certificate_path: Some("/a b/ca.crt".into()) };
    Connection {
        host: address.host.clone(),
        port: address.port,
        user: "app".into(),
        password: password.into(),
        database: "app".into(),
        valid_until: None,
        sslmode: "verify-full".into(),
        ca_certificate_path: address.ca_certificate_path.clone(),
        ca_certificate: None,
        platform: PlatformName::Local,
        cluster_id: None,
        internal: false,
        uri: address.uri("app", "app").with_secret(&password.into()).expose_secret().to_owned(),
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
        place: "local".into(),
        summary: kind.to_string(),
        input: sqlx::types::Json::default(),
        spec_before: sqlx::types::Json(spec()),
        spec: sqlx::types::Json(spec()),
        generation: 1,
        state_before: InstanceState::Running,
        reverting: false,
        state: OperationState::Running,
        actor: "root".into(),
        retry_of: None,
        cancel_requested_at: None,
        cancel_requested_by: None,
        cause: "a test".into(),
        error: None,
        revision: 1,
        created_at,
        started_at: Some(created_at),
        finished_at: Some(created_at + TimeDelta::milliseconds(310)),
        steps: Vec::new(),
        progress: None,
        expected_seconds: None,
    }
}

/// A step in its first attempt.
pub fn step(name: &str, state: StepState) -> Step {
    Step { name: name.into(), state, attempts: 1, started_at: Utc::now(), finished_at: Some(Utc::now()), error: None }
}

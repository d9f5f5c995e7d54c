//! `toygres stop` and `start`, and verbs such as `restart`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use toygres_client::resources::InstanceManifest;
use toygres_client::{Applied, Client};
use toygres_models::store::Operation;
use toygres_models::{HealthStatus, InstanceKey, InstanceName, OperationKind, OperationState, Power};

use crate::error::Outcome;
use crate::operations::watch;
use crate::output::display::{self, between};
use crate::output::ui::Ui;
use crate::session::Session;
use crate::settings::Settings;
use crate::values::instance_name;

/// An instance to which something is done.
#[derive(Debug, Args)]
pub struct Target {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// Return as soon as the work is under way
    #[arg(long)]
    pub no_wait: bool,
}

/// Makes the instance's spec say `power`.
pub async fn set(power: Power, target: Target, settings: &Settings, ui: &Ui) -> Outcome {
    let mut session = Session::open(settings, ui).await?;
    let key = session.key(target.name);
    let mut manifest = InstanceManifest::of(key.name.to_string());
    manifest.set("power", Some(json!(power)));
    let word = match power {
        Power::Running => "started",
        Power::Stopped => "stopped",
    };
    match session.change(async |client: &Client| client.change_instance(&key, &manifest).await).await? {
        Applied::Begun(operation) => finish(&mut session, &key, *operation, target.no_wait, word).await,
        Applied::Done(instance) if ui.is_for_people() => {
            ui.print(format_args!("{} is {} already", key.name, display::state(&instance)))?;
            if instance.status.health_status == Some(HealthStatus::Unhealthy) {
                ui.note(format_args!("It doesn't work; what is wrong: toygres why {}", key.name));
            }
            Ok(ExitCode::SUCCESS)
        }
        Applied::Done(instance) => {
            ui.print_record(&instance)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Asks for a verb, such as a restart.
pub async fn request(verb: OperationKind, target: Target, settings: &Settings, ui: &Ui) -> Outcome {
    let mut session = Session::open(settings, ui).await?;
    let key = session.key(target.name);
    let request = async |client: &Client| client.request_verb(&key, verb).await;
    let submitted = watch::submit(&mut session, &key, request).await?;
    finish(&mut session, &key, submitted.operation, target.no_wait, verb.participle).await
}

/// Waits for the operation, unless nobody wants to, and tells how it ended.
pub async fn finish(session: &mut Session<'_>, key: &InstanceKey, operation: Operation, no_wait: bool, word: &str) -> Outcome {
    let ui = session.ui;
    if no_wait {
        return watch::print_started(ui, &operation);
    }
    let operation = watch::until_final(session, operation).await?;
    if !ui.is_for_people() {
        ui.print_record(&operation)?;
    }
    if operation.state != OperationState::Succeeded {
        return Err(watch::failed(&operation));
    }
    if ui.is_for_people() {
        let took = between(operation.created_at, operation.finished_at.unwrap_or(operation.created_at));
        ui.print(format_args!("{} is {word} ({})", key.name, display::seconds(took)))?;
    }
    Ok(ExitCode::SUCCESS)
}

//! `toygres extension`: the extensions of an instance's database.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;
use toygres_client::resources::InstanceManifest;
use toygres_client::{Applied, Client};
use toygres_models::{Extensions, InstanceName, Power};

use super::power;
use crate::error::{CliError, Outcome};
use crate::output::ui::Ui;
use crate::session::Session;
use crate::settings::Settings;
use crate::values::instance_name;

#[derive(Debug, Subcommand)]
pub enum Extension {
    /// Make an extension in an instance's database
    Add(Change),
    /// Take one out of the spec; it is removed if toygres made it, and refused while something needs it
    Remove(Change),
    /// The extensions that toygres makes for owners
    List,
}

#[derive(Debug, Args)]
pub struct Change {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// The extension's name, such as postgres_fdw
    #[arg(value_name = "EXTENSION")]
    pub extension: String,

    /// Return as soon as the work is under way
    #[arg(long)]
    pub no_wait: bool,
}

pub async fn run(command: Extension, settings: &Settings, ui: &Ui) -> Outcome {
    match command {
        Extension::List => {
            ui.print(Extensions::ALLOWED.join("\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Extension::Add(change) => run_change(change, true, settings, ui).await,
        Extension::Remove(change) => run_change(change, false, settings, ui).await,
    }
}

/// Asks for the spec with the extension in its list, or without it, if the spec is still the one that was read.
async fn run_change(change: Change, is_wanted: bool, settings: &Settings, ui: &Ui) -> Outcome {
    let Change { name, extension, no_wait } = change;
    if is_wanted {
        Extensions::try_from(BTreeSet::from([extension.clone()])).map_err(|invalid| CliError::usage(invalid.problem))?;
    }
    let mut session = Session::open(settings, ui).await?;
    let key = session.key(name);
    let instance = session.call(async |client: &Client| client.instance(&key).await).await?;
    let mut extensions: BTreeSet<String> = instance.spec.0.extensions.clone().into();
    let is_new = match is_wanted {
        true => extensions.insert(extension.clone()),
        false => extensions.remove(&extension),
    };
    if !is_new && is_wanted {
        ui.print(format_args!("the spec of {} names {extension} already", key.name))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !is_new {
        return Err(CliError::failed(format!("the spec of {} names no extension {extension}; nothing was changed", key.name))
            .hint(format!("what the owner or an admin made, one of them removes: DROP EXTENSION {extension}")));
    }
    let mut manifest = InstanceManifest::of(key.name.to_string());
    manifest.set("extensions", Some(json!(extensions)));
    let word = match (is_wanted, instance.spec.power) {
        (true, Power::Running) => format!("changed: it has the extension {extension}"),
        (true, Power::Stopped) => format!("changed: it gets the extension {extension} when it starts"),
        (false, Power::Running) => format!("changed: the extension {extension} is removed"),
        (false, Power::Stopped) => format!("changed: it loses the extension {extension} when it starts"),
    };
    let apply = async |client: &Client| client.apply_instance(&key, &manifest, Some(instance.generation)).await;
    match session.change(apply).await? {
        Applied::Begun(operation) => power::finish(&mut session, &key, *operation, no_wait, &word).await,
        Applied::Done(_) => Ok(ExitCode::SUCCESS),
    }
}

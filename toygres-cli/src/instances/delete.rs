//! `toygres delete`.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use chrono::Utc;
use clap::Args;
use toygres_client::Client;
use toygres_models::store::Instance;
use toygres_models::{InstanceKey, InstanceName, OperationState};

use crate::error::{CliError, Outcome};
use crate::operations::watch;
use crate::output::display;
use crate::output::ui::{Ui, ask};
use crate::session::Session;
use crate::settings::Settings;
use crate::values::instance_name;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres delete demo
  toygres delete demo --yes

On a terminal it tells what will be lost and asks for the name; elsewhere --yes is needed.
With -o json or yaml the operation is printed.")]
pub struct Delete {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// Don't ask
    #[arg(short, long)]
    pub yes: bool,

    /// Return as soon as the work is under way
    #[arg(long)]
    pub no_wait: bool,
}

pub async fn run(arguments: Delete, settings: &Settings, ui: &Ui) -> Outcome {
    let someone_is_there = io::stdin().is_terminal() && io::stderr().is_terminal();
    if !arguments.yes && !someone_is_there {
        return Err(CliError::usage(format!(
            "deleting {} needs a yes: there is no terminal to ask on, and nothing was deleted",
            arguments.name
        ))
        .hint("if all its data may go for good, give --yes"));
    }
    let mut session = Session::open(settings, ui).await?;
    let key = session.key(arguments.name);
    if !arguments.yes {
        let instance = session.call(async |client: &Client| client.instance(&key).await).await?;
        if instance.delete_protection {
            return Err(CliError::protected(format!("{key} is protected from deletion; nothing was changed")));
        }
        confirm(ui, &key, &instance).await?;
    }
    let delete = async |client: &Client| client.delete_instance(&key).await;
    let submitted = watch::submit(&mut session, &key, delete).await?;
    if arguments.no_wait {
        return watch::print_started(ui, &submitted.operation);
    }
    let operation = watch::until_final(&mut session, submitted.operation).await?;
    if !ui.is_for_people() {
        ui.print_record(&operation)?;
    }
    if operation.state != OperationState::Succeeded {
        return Err(watch::failed(&operation));
    }
    if ui.is_for_people() {
        let took = operation.finished_at.map(|finished| display::between(operation.created_at, finished)).unwrap_or_default();
        ui.print(format_args!("{} is deleted ({})", key.name, display::seconds(took)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells what will be lost, and goes on only if the name is typed.
async fn confirm(ui: &Ui, key: &InstanceKey, instance: &Instance) -> Result<(), CliError> {
    let style = ui.err;
    let warning = style.bold("All its data will be gone for good.");
    let question = format!("{}\n{warning}\nType {} to delete it: ", loss(instance), style.bold(&key.name));
    let typed = ask(question).await?;
    if typed.trim() == key.name.as_str() {
        return Ok(());
    }
    Err(CliError::failed("that is not its name; nothing was deleted"))
}

fn loss(instance: &Instance) -> String {
    let Instance { name, namespace, postgres_version, storage_size_gb, .. } = instance;
    let place = display::endpoint(instance).map(|endpoint| format!(" on {endpoint}")).unwrap_or_default();
    let age = display::age(instance.created_at, Utc::now());
    let state = display::state(instance);
    format!(
        "This deletes {name} in namespace {namespace}: PostgreSQL {postgres_version}{place}, {storage_size_gb} GB, {state}, {age} old."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_question_tells_what_will_be_lost() {
        let text = loss(&testing::instance("demo"));
        assert!(
            text.starts_with("This deletes demo in namespace default: PostgreSQL 15.18 on 127.0.0.1:20001, 10 GB, running, "),
            "{text}"
        );
    }
}

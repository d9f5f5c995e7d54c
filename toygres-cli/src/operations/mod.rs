//! `toygres operations`, with what can be done about one.

pub mod board;
pub mod watch;

use std::process::ExitCode;

use chrono::Utc;
use clap::{Args, Subcommand};
use comfy_table::{Cell, Color};
use toygres_client::{Client, all_pages};
use toygres_models::store::{Operation, Step};
use toygres_models::{InstanceName, OperationState, StepState};
use uuid::Uuid;

use crate::error::{CliError, Outcome};
use crate::output::display::{self, age, between, moment, seconds};
use crate::output::ui::{Style, Ui};
use crate::session::Session;
use crate::values::instance_name;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  toygres operations
  toygres operations demo
  toygres operations watch 019ab3f2-7c1e-7d3a-9f54-0c6f1f0f7a11
  toygres operations cancel 019ab3f2-7c1e-7d3a-9f54-0c6f1f0f7a11

Without a command they are listed."
)]
pub struct Operations {
    #[command(flatten)]
    pub list: List,

    #[command(subcommand)]
    pub command: Option<OperationsCommand>,
}

#[derive(Debug, Args)]
pub struct List {
    /// Only this instance's
    #[arg(value_parser = instance_name)]
    pub name: Option<InstanceName>,

    /// How many of the latest operations to show
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

#[derive(Debug, Subcommand)]
pub enum OperationsCommand {
    /// List operations, the latest first
    List(List),
    /// Show one operation and its steps
    Get {
        /// The operation's id
        id: Uuid,
    },
    /// Wait for an operation, showing its steps; the exit status tells how it ended
    Watch {
        /// The operation's id
        id: Uuid,
    },
    /// Cancel an operation that is at work: what it did is put back
    #[command(after_help = "\
A create leaves nothing, and its name is free again. A change is put back. A delete can be cancelled
only until it has begun.")]
    Cancel(Submit),
    /// Try an operation that failed again, from where it failed
    Retry(Submit),
}

#[derive(Debug, Args)]
pub struct Submit {
    /// The operation's id
    pub id: Uuid,

    /// Return as soon as the work is under way
    #[arg(long)]
    pub no_wait: bool,
}

pub async fn run(arguments: Operations, session: &mut Session<'_>) -> Outcome {
    let ui = session.ui;
    match arguments.command {
        None => list(arguments.list, session).await,
        Some(OperationsCommand::List(arguments)) => list(arguments, session).await,
        Some(OperationsCommand::Get { id }) => {
            let operation = session.call(async |client: &Client| client.operation(id).await).await?;
            if ui.is_for_people() {
                ui.print(details(ui, &operation))?
            } else {
                ui.print_record(&operation)?
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(OperationsCommand::Watch { id }) => {
            let operation = session.call(async |client: &Client| client.operation(id).await).await?;
            finish(session, operation, OperationState::Succeeded, false).await
        }
        Some(OperationsCommand::Cancel(Submit { id, no_wait })) => {
            let cancel = async |client: &Client| client.cancel_operation(id).await;
            let submitted = session.change(cancel).await?;
            finish(session, submitted.operation, OperationState::Cancelled, no_wait).await
        }
        Some(OperationsCommand::Retry(Submit { id, no_wait })) => {
            let retry = async |client: &Client| client.retry_operation(id).await;
            let submitted = session.change(retry).await?;
            finish(session, submitted.operation, OperationState::Succeeded, no_wait).await
        }
    }
}

/// Waits for an operation's end, which is to be `wanted`, and tells of it.
async fn finish(session: &mut Session<'_>, operation: Operation, wanted: OperationState, no_wait: bool) -> Outcome {
    let ui = session.ui;
    if no_wait {
        return watch::print_started(ui, &operation);
    }
    let operation = watch::until_final(session, operation).await?;
    if !ui.is_for_people() {
        ui.print_record(&operation)?;
    }
    if operation.state != wanted {
        return Err(unexpected(&operation));
    }
    if ui.is_for_people() {
        ui.print(ended(&operation))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn unexpected(operation: &Operation) -> CliError {
    match operation.state {
        OperationState::Failed | OperationState::Cancelled => watch::failed(operation),
        state => CliError::failed(format!("the {} of {} has {state}", operation.kind, operation.instance_name)),
    }
}

fn ended(operation: &Operation) -> String {
    let what = match (operation.state, operation.kind) {
        (OperationState::Cancelled, kind) => {
            format!("was not {}: that was cancelled, and {}", kind.participle, kind.cancelled_words)
        }
        (_, kind) => format!("is {}", kind.participle),
    };
    let took = operation.finished_at.map(|finished| format!(" ({})", seconds(between(operation.created_at, finished))));
    format!("{} {what}{}", operation.instance_name, took.unwrap_or_default())
}

async fn list(arguments: List, session: &mut Session<'_>) -> Outcome {
    let ui = session.ui;
    let limit = Some(arguments.limit as usize);
    let name = arguments.name;
    // An instance's name means one in a namespace; without a name all namespaces are looked at.
    let namespace = match name {
        Some(_) => Some(session.settings.namespace_or_default()),
        None => session.settings.namespace.clone(),
    };
    let of = name.as_ref().map(|name| format!(" of {}", session.key(name.clone()))).unwrap_or_default();
    let operations = session
        .call(async |client: &Client| {
            all_pages(limit, async |page: &_| client.operations(namespace.as_ref(), name.as_ref(), page).await).await
        })
        .await?;
    if !ui.is_for_people() {
        ui.print_record(&operations)?;
    } else if operations.is_empty() {
        ui.note(format_args!("No operations{of} are known."));
    } else {
        ui.print(list_table(ui, &operations))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list_table(ui: &Ui, operations: &[Operation]) -> String {
    let now = Utc::now();
    let row = |operation: &Operation| {
        vec![
            Cell::new(operation.id),
            Cell::new(operation.kind),
            Cell::new(if operation.summary == operation.kind.name { "-" } else { &operation.summary }),
            Cell::new(format_args!("{}/{}", operation.namespace, operation.instance_name)),
            state_cell(ui.out, operation.state),
            Cell::new(took(operation)),
            Cell::new(age(operation.created_at, now)),
        ]
    };
    display::table(ui, &["ID", "KIND", "CHANGE", "INSTANCE", "STATE", "TOOK", "AGE"], &[], operations.iter().map(row).collect())
}

fn took(operation: &Operation) -> String {
    operation.finished_at.map_or_else(|| "-".into(), |finished| seconds(between(operation.created_at, finished)))
}

fn state_cell(style: Style, state: OperationState) -> Cell {
    let colour = match state {
        OperationState::Succeeded => Color::DarkGreen,
        OperationState::Failed => Color::DarkRed,
        OperationState::Pending | OperationState::Running | OperationState::Cancelled => Color::DarkYellow,
    };
    display::coloured(style, state, colour)
}

fn details(ui: &Ui, operation: &Operation) -> String {
    let style = ui.out;
    let state = match operation.state {
        OperationState::Succeeded => style.green(operation.state),
        OperationState::Failed => style.red(operation.state),
        OperationState::Pending | OperationState::Running | OperationState::Cancelled => style.yellow(operation.state),
    };
    let title = format!("{} {}/{}", operation.summary, operation.namespace, operation.instance_name);
    let fields = [
        ("Operation", operation.id.to_string()),
        ("Cause", operation.cause.clone()),
        ("Retry of", operation.retry_of.map(|id| id.to_string()).unwrap_or_default()),
        ("Cancelled by", operation.cancel_requested_by.clone().unwrap_or_default()),
        ("Asked for", format!("{} ({} ago)", moment(operation.created_at), age(operation.created_at, Utc::now()))),
        ("Took", took(operation)),
        ("Usually takes", operation.expected_seconds.map(watch::about).unwrap_or_default()),
    ];
    let fields: Vec<_> = fields.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let mut text = format!("{}  {state}\n\n{}", style.bold(title), display::fields(ui, &fields));
    if !operation.steps.is_empty() {
        text.push('\n');
    }
    for step in &operation.steps {
        text.push('\n');
        text.push_str(&step_line(style, step));
    }
    if let Some(error) = &operation.error {
        text.push_str(&format!("\n\n{}", display::failure(style, error)));
    }
    text
}

fn step_line(style: Style, step: &Step) -> String {
    let succeeded = match step.state {
        StepState::Succeeded => Some(true),
        StepState::Failed => Some(false),
        StepState::Running => None,
    };
    let took = step.finished_at.map(|finished| between(step.started_at, finished));
    display::step_line(style, succeeded, &step.name, took, &watch::attempts(step))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use toygres_models::OperationKind;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::testing;

    #[test]
    fn an_operation_shows_its_steps_with_their_times() {
        let mut operation = testing::operation(OperationKind::CREATE);
        operation.steps =
            vec![testing::step("deploy-postgres", StepState::Succeeded), testing::step("wait-for-ready", StepState::Running)];
        operation.steps[1].attempts = 2;
        operation.steps[1].finished_at = None;
        let text = details(&testing::ui(), &operation);
        assert!(text.starts_with("create default/demo  running\n"), "{text}");
        assert!(
            text.contains("\n  ✓ deploy-postgres                 0.00s\n  … wait-for-ready                         2 attempts"),
            "{text}"
        );
        assert_eq!(ended(&operation), "demo is created (0.31s)");
    }

    #[test]
    fn a_cancelled_operation_tells_what_is_left() {
        let mut operation = testing::operation(OperationKind::CREATE);
        operation.state = OperationState::Cancelled;
        operation.cancel_requested_by = Some("alice".into());
        assert!(ended(&operation).contains("what was made of it is removed"), "{}", ended(&operation));
        assert!(unexpected(&operation).message.contains("cancelled by alice"), "{:?}", unexpected(&operation));
        assert!(details(&testing::ui(), &operation).contains("Cancelled by  alice"), "{}", details(&testing::ui(), &operation));
    }

    #[test]
    fn an_operation_command_and_an_instance_are_told_apart() {
        let parse = |arguments: &[&str]| Cli::try_parse_from([&["toygres", "operations"], arguments].concat());
        let Command::Operations(operations) = parse(&["demo", "--limit", "3"]).unwrap().command else {
            panic!("another command")
        };
        assert_eq!((operations.list.name.unwrap().as_str(), operations.list.limit), ("demo", 3));
        let Command::Operations(operations) = parse(&["list", "demo"]).unwrap().command else { panic!("another command") };
        assert!(matches!(operations.command, Some(OperationsCommand::List(List { name: Some(_), limit: 20 }))));
        for command in ["get", "watch", "cancel", "retry"] {
            assert!(parse(&[command, "not-an-id"]).is_err() && parse(&[command]).is_err());
        }
    }
}

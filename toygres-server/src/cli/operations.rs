//! `toygres operations`, with `get` and `watch`.

use std::process::ExitCode;

use chrono::Utc;
use comfy_table::{Cell, Color};
use toygres_models::store::{Operation, Step};
use toygres_models::{OperationKind, OperationState, StepState};

use super::args::{Operations, OperationsCommand};
use super::display::{self, age, between, moment, seconds};
use super::error::Outcome;
use super::session::Session;
use super::ui::{Style, Ui};
use super::watch;
use crate::client::{self, Client};

pub async fn run(arguments: Operations, session: &mut Session<'_>) -> Outcome {
    let ui = session.ui;
    match arguments.command {
        None => return list(arguments, session).await,
        Some(OperationsCommand::Get { id }) => {
            let operation = session.call(async |client: &Client| client.operation(id).await).await?;
            if ui.is_for_people() { ui.print(details(ui, &operation))? } else { ui.print_record(&operation)? }
        }
        Some(OperationsCommand::Watch { id }) => {
            let operation = session.call(async |client: &Client| client.operation(id).await).await?;
            let operation = watch::until_final(session, operation).await?;
            if !ui.is_for_people() {
                ui.print_record(&operation)?;
            }
            if operation.state == OperationState::Failed {
                return Err(watch::failed(&operation));
            }
            if ui.is_for_people() {
                ui.print(ended(&operation))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ended(operation: &Operation) -> String {
    let what = match operation.kind {
        OperationKind::Create => "created",
        OperationKind::Delete => "deleted",
    };
    let took = operation.finished_at.map(|finished| format!(" ({})", seconds(between(operation.created_at, finished))));
    format!("{} is {what}{}", operation.instance_name, took.unwrap_or_default())
}

async fn list(arguments: Operations, session: &mut Session<'_>) -> Outcome {
    let ui = session.ui;
    let limit = Some(arguments.limit as usize);
    let name = arguments.name;
    // An instance's name means one in a namespace; without a name all namespaces are looked at.
    let namespace = match name {
        Some(_) => Some(session.settings.namespace_or_default()),
        None => session.settings.namespace.clone(),
    };
    let operations = session
        .call(async |client: &Client| {
            client::all_pages(limit, async |page: &_| client.operations(namespace.as_ref(), name.as_ref(), page).await).await
        })
        .await?;
    if !ui.is_for_people() {
        ui.print_record(&operations)?;
    } else if operations.is_empty() {
        ui.note("No operations yet.");
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
            Cell::new(format_args!("{}/{}", operation.namespace, operation.instance_name)),
            state_cell(ui.out, operation.state),
            Cell::new(took(operation)),
            Cell::new(age(operation.created_at, now)),
        ]
    };
    display::table(ui, &["ID", "KIND", "INSTANCE", "STATE", "TOOK", "AGE"], &[], operations.iter().map(row).collect())
}

fn took(operation: &Operation) -> String {
    operation.finished_at.map_or_else(|| "-".into(), |finished| seconds(between(operation.created_at, finished)))
}

fn state_cell(style: Style, state: OperationState) -> Cell {
    let colour = match state {
        OperationState::Succeeded => Color::DarkGreen,
        OperationState::Failed => Color::DarkRed,
        OperationState::Pending | OperationState::Running => Color::DarkYellow,
    };
    display::coloured(style, state, colour)
}

fn details(ui: &Ui, operation: &Operation) -> String {
    let style = ui.out;
    let state = match operation.state {
        OperationState::Succeeded => style.green(operation.state),
        OperationState::Failed => style.red(operation.state),
        OperationState::Pending | OperationState::Running => style.yellow(operation.state),
    };
    let title = format!("{} {}/{}", operation.kind, operation.namespace, operation.instance_name);
    let fields = [
        ("Operation", operation.id.to_string()),
        ("Cause", operation.cause.clone()),
        ("Asked for", format!("{} ({} ago)", moment(operation.created_at), age(operation.created_at, Utc::now()))),
        ("Took", took(operation)),
    ];
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
    use super::*;
    use crate::cli::testing;

    #[test]
    fn an_operation_shows_its_steps_with_their_times() {
        let mut operation = testing::operation(OperationKind::Create);
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
}

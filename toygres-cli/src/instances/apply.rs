//! `toygres apply`: instances are made, or made to be, what documents say.
//!
//! All documents are checked by the server before the first one is begun. Then they are carried out
//! side by side; one that fails doesn't hold up the others.

use std::process::ExitCode;

use clap::Args;
use futures::stream::{self, StreamExt};
use serde::Serialize;
use toygres_client::resources::{FieldChange, Plan, PlanAction};
use toygres_client::{Applied, Client};
use toygres_models::store::Operation;
use toygres_models::{InstanceKey, OperationKind, OperationState};
use uuid::Uuid;

use super::documents::{self, Document};
use crate::error::{CliError, Outcome};
use crate::operations::board::Board;
use crate::operations::watch;
use crate::output::display::{self, between};
use crate::output::interrupt::interrupted;
use crate::output::ui::Ui;
use crate::session::Session;
use crate::settings::Settings;

/// How many documents are checked, or at work, at the same time.
const AT_ONCE: usize = 32;
/// How often a document is planned anew whose instance others change meanwhile.
const ROUNDS: usize = 5;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres apply -f instances.yaml
  toygres apply -f instances.yaml --dry-run
  toygres get demo -o yaml | toygres apply -f -

A file holds YAML (or JSON): one instance a document, or a list of them.

  # yaml-language-server: $schema=./toygres.schema.json      (made by `toygres schema`)
  name: shop
  postgres_version: 17
  labels: { team: a }
  delete_protection: true
  ---
  name: blog
  namespace: team
  platform: kubernetes
  use_load_balancer: true

What is missing is created. Of what is there, labels, delete protection, and whether it is public
are changed; what can't be changed yet is refused by name, before anything starts. What a document
doesn't name is left as it is, or the server's default. No instance is ever deleted.
The exit status is 1 if anything failed; the others are carried out all the same.")]
pub struct Apply {
    #[command(flatten)]
    pub input: Input,

    /// Only check, and tell what would be done
    #[arg(long)]
    pub dry_run: bool,

    /// Return as soon as the work is under way
    #[arg(long)]
    pub no_wait: bool,
}

/// The documents of `apply` and `diff`.
#[derive(Debug, Args)]
pub struct Input {
    /// File with instances; `-` is standard input. May be given several times
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    pub files: Vec<String>,
}

/// What became of a document, as `-o json` has it.
#[derive(Debug, Serialize)]
struct Applying {
    namespace: String,
    name: String,
    result: Became,
    /// The fields that were changed.
    changed: Vec<String>,
    /// The operation that does it, or did.
    operation_id: Option<Uuid>,
    /// Why it failed.
    error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Became {
    Created,
    Changed,
    Unchanged,
    /// An operation is at it, and nobody waits for its end.
    Begun,
    Failed,
}

pub async fn run(arguments: &Apply, settings: &Settings, ui: &Ui) -> Outcome {
    let documents = documents::read(&arguments.input.files, &settings.namespace_or_default())?;
    let session = Session::open(settings, ui).await?;
    let plans = plans(&session, &documents).await?;
    refuse(&documents, &plans)?;
    if arguments.dry_run {
        return print_plans(ui, &documents, &plans);
    }
    let board = Board::new(ui);
    let each = stream::iter(documents.iter().zip(plans).enumerate()).map(|(number, (document, plan))| {
        let (session, board) = (session.clone(), &board);
        async move { (number, apply(session, document, plan, board, arguments.no_wait).await) }
    });
    // In the order in which they end: in that of the documents, a slow one would keep others from being begun.
    let mut results: Vec<(usize, Result<Applying, CliError>)> = tokio::select! {
        results = each.buffer_unordered(AT_ONCE).collect() => results,
        () = interrupted() => {
            board.clear();
            return Err(CliError::failed("stopped waiting; what was begun goes on")
                .hint("what is at work: toygres operations")
                .hint("to wait for all of it: repeat the command"));
        }
    };
    board.clear();
    results.sort_by_key(|(number, _)| *number);
    let results = results.into_iter().map(|(_, result)| result).collect::<Result<Vec<_>, _>>()?;
    if !ui.is_for_people() {
        ui.print_record(&results)?;
    }
    let failed = results.iter().filter(|result| result.result == Became::Failed).count();
    if failed > 0 {
        return Err(CliError::failed(format!("{failed} of {} could not be applied", results.len())));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the server would do with each document. Nothing is changed.
///
/// # Errors
/// Everything that it refuses about the documents themselves, each with its place; or why it can't be
/// asked.
pub async fn plans(session: &Session<'_>, documents: &[Document]) -> Result<Vec<Plan>, CliError> {
    let answers: Vec<_> =
        stream::iter(documents)
            .map(|document| {
                let mut session = session.clone();
                async move {
                    session.call(async |client: &Client| client.plan_instance(&document.key, &document.manifest).await).await
                }
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
    let mut plans = Vec::new();
    let mut refusals = Vec::new();
    let mut exit_status = 1;
    for (document, answer) in documents.iter().zip(answers) {
        match answer {
            Ok(plan) => plans.push(plan),
            // Of the others it would be the same.
            Err(error)
                if error.problem.as_ref().is_none_or(|problem| problem.name() == "unauthorized" || problem.status >= 500) =>
            {
                return Err(error);
            }
            Err(error) => {
                exit_status = exit_status.max(error.exit_status);
                let field = error.problem.as_ref().and_then(|problem| problem.field.as_deref());
                refusals.push(format!("{}: {}", document.origin.of(field), about(&document.key, &error.message)));
            }
        }
    }
    if refusals.is_empty() {
        return Ok(plans);
    }
    Err(CliError { exit_status, ..CliError::failed("the documents can't be applied; nothing was changed") }.evidence(refusals))
}

/// Fails if any document can't be applied as things are.
fn refuse(documents: &[Document], plans: &[Plan]) -> Result<(), CliError> {
    let refusals: Vec<_> = documents.iter().zip(plans).flat_map(|(document, plan)| refusals(document, plan)).collect();
    if refusals.is_empty() {
        return Ok(());
    }
    Err(CliError::failed("this can't be applied; nothing was changed").evidence(refusals))
}

/// A message that names the instance, once.
fn about(key: &InstanceKey, message: &str) -> String {
    if message.contains(&key.to_string()) { message.to_owned() } else { format!("{key}: {message}") }
}

/// What can't be done with a document as things are, a line each.
pub fn refusals(document: &Document, plan: &Plan) -> Vec<String> {
    let key = &document.key;
    let of_field = |change: &FieldChange| {
        let place = document.origin.of(Some(&change.field));
        match change.field.as_str() {
            "password" => format!("{place}: {key} has another password, which can't be changed yet"),
            field => {
                format!("{place}: {field} of {key} is {}, and can't be changed yet to {}", shown(&change.from), shown(&change.to))
            }
        }
    };
    let reason = plan.reason.iter().map(|reason| format!("{}: {key} {reason}", document.origin.of(None)));
    reason.chain(plan.refused.iter().map(of_field)).collect()
}

/// A value as a person writes it.
fn shown(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "(none)".into(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What a change of an instance that is there does, a line for each field and for the whole.
pub fn effects(plan: &Plan) -> Vec<String> {
    if plan.action != PlanAction::Update {
        return Vec::new();
    }
    let of_field = |change: &FieldChange| {
        let effect = serde_json::to_value(change.effect).unwrap_or_default();
        let reverted = if change.can_revert { "a cancel or a failure reverts it" } else { "it can't be reverted" };
        format!("{}: {} to {} ({}; {reverted})", change.field, shown(&change.from), shown(&change.to), shown(&effect))
    };
    let mut lines: Vec<_> = plan.changes.iter().map(of_field).collect();
    lines.extend(plan.unavailable.iter().map(|words| format!("clients notice: {words}")));
    lines.extend(plan.expected_seconds.map(|seconds| format!("takes about {seconds:.1} s")));
    lines
}

fn fields(plan: &Plan) -> Vec<String> {
    plan.changes.iter().map(|change| change.field.clone()).collect()
}

fn print_plans(ui: &Ui, documents: &[Document], plans: &[Plan]) -> Outcome {
    if !ui.is_for_people() {
        #[derive(Serialize)]
        struct Planned<'a> {
            namespace: &'a str,
            name: &'a str,
            #[serde(flatten)]
            plan: &'a Plan,
        }
        let planned = |(document, plan): (&'_ Document, &'_ Plan)| {
            serde_json::to_value(Planned { namespace: document.key.namespace.as_str(), name: document.key.name.as_str(), plan })
        };
        let planned: Result<Vec<_>, _> = documents.iter().zip(plans).map(planned).collect();
        ui.print_record(&planned.map_err(|error| CliError::failed(error.to_string()))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (Document { key, .. }, plan) in documents.iter().zip(plans) {
        match plan.action {
            PlanAction::Create => ui.print(format_args!("{key} would be created"))?,
            PlanAction::Update if plan.changes.is_empty() => {
                ui.print(format_args!("{key} would be made again what it is to be"))?;
            }
            PlanAction::Update => ui.print(format_args!("{key} would be changed ({})", fields(plan).join(", ")))?,
            PlanAction::None | PlanAction::Refuse => ui.print(format_args!("{key} unchanged"))?,
        }
        for effect in effects(plan) {
            ui.print(format_args!("  {effect}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Carries out one document, and tells how it went.
///
/// # Errors
/// If that can't be told.
async fn apply(
    mut session: Session<'_>,
    document: &Document,
    plan: Plan,
    board: &Board<'_>,
    no_wait: bool,
) -> Result<Applying, CliError> {
    let ui = session.ui;
    let key = &document.key;
    let mut applying = Applying {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        result: Became::Failed,
        changed: Vec::new(),
        operation_id: None,
        error: None,
    };
    match carry_out(&mut session, document, plan, board, no_wait, &mut applying).await {
        Ok(words) if ui.is_for_people() => board.print(words)?,
        Ok(_) => {}
        Err(error) => {
            applying.result = Became::Failed;
            applying.error = Some(error.message.clone());
            board.print_error(&CliError { message: about(key, &error.message), ..error });
        }
    }
    Ok(applying)
}

/// Sends a document until it was carried out on the instance that it was planned on; what became of
/// it, in words.
async fn carry_out(
    session: &mut Session<'_>,
    document: &Document,
    mut plan: Plan,
    board: &Board<'_>,
    no_wait: bool,
    applying: &mut Applying,
) -> Result<String, CliError> {
    let Document { key, manifest, .. } = document;
    let mut line = board.line(&key.to_string());
    for _ in 0..ROUNDS {
        if let Some(refusal) = refusals(document, &plan).into_iter().next() {
            return Err(CliError::failed(refusal));
        }
        // Another round is another request.
        let send = async |client: &Client| client.apply_instance(key, manifest, plan.generation).await;
        match session.change(send).await {
            Ok(Applied::Done(_)) => {
                applying.changed = fields(&plan);
                let unchanged = plan.action == PlanAction::None;
                applying.result = if unchanged { Became::Unchanged } else { Became::Changed };
                return Ok(if unchanged { format!("{key} unchanged") } else { changed(document, &plan, None) });
            }
            Ok(Applied::Begun(operation)) => {
                applying.changed = fields(&plan);
                applying.operation_id = Some(operation.id);
                if no_wait {
                    applying.result = Became::Begun;
                    let what = if operation.kind == OperationKind::CREATE { "being created" } else { "being changed" };
                    return Ok(format!("{key} is {what} (operation {})", operation.id));
                }
                let operation = watch::follow(session, *operation, &mut line).await?;
                if operation.state != OperationState::Succeeded {
                    return Err(watch::failed(&operation));
                }
                let created = operation.kind == OperationKind::CREATE;
                applying.result = if created { Became::Created } else { Became::Changed };
                return Ok(match created {
                    true => format!("{key} created ({})", took(&operation)),
                    false => changed(document, &plan, Some(&operation)),
                });
            }
            Err(error) if error.problem.as_ref().is_some_and(|problem| problem.name() == "precondition_failed") => {
                let plan_again = async |client: &Client| client.plan_instance(key, manifest).await;
                plan = session.call(plan_again).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Err(CliError::failed("it keeps being changed by others; nothing was changed by this command"))
}

fn changed(document: &Document, plan: &Plan, operation: Option<&Operation>) -> String {
    let took = operation.map(|operation| format!(" ({})", took(operation))).unwrap_or_default();
    let fields = fields(plan);
    let fields = if fields.is_empty() { String::new() } else { format!(" ({})", fields.join(", ")) };
    format!("{} changed{fields}{took}", document.key)
}

fn took(operation: &Operation) -> String {
    let ended = operation.finished_at.unwrap_or(operation.created_at);
    display::seconds(between(operation.created_at, ended))
}

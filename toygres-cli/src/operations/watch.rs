//! Watching an operation until it ends: what create, delete and `operations watch` share.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::time::{sleep, timeout};
use toygres_client::{Client, ClientError, Submitted};
use toygres_models::kind::{OnCancel, OnFailure};
use toygres_models::store::{Operation, Step};
use toygres_models::{InstanceKey, Namespace, OperationState, StepState};
use uuid::Uuid;

use crate::error::CliError;
use crate::output::display::between;
use crate::output::interrupt::interrupted;
use crate::output::progress::Progress;
use crate::output::ui::Ui;
use crate::session::{PAUSE, RETRY_TIMEOUT, Session, is_gone};

/// How long the server holds a request while nothing happens.
const LONG_POLL: Duration = Duration::from_secs(20);
/// How long nothing shows between two steps, and before the first; mostly it is shorter.
const STILL: Duration = Duration::from_millis(400);
/// How often the server on this machine is started again while an operation gets nowhere.
const RESTARTS: usize = 5;

/// Sends the request that begins an operation, once.
///
/// # Errors
/// If it was refused; or if Ctrl-C was pressed meanwhile, and nobody knows whether it got through.
pub async fn submit(
    session: &mut Session<'_>,
    key: &InstanceKey,
    request: impl AsyncFn(&Client) -> Result<Submitted, ClientError>,
) -> Result<Submitted, CliError> {
    let ui = session.ui;
    tokio::select! {
        submitted = session.change(request) => submitted,
        () = interrupted() => {
            ui.end_line();
            let flags = Namespace::flag(key.namespace.as_str());
            Err(CliError::failed("interrupted while the server was asked")
                .hint(format!("whether it has begun: toygres operations {}{flags}", key.name)))
        }
    }
}

/// Shows an operation's steps until it ends, and returns it as it ended.
///
/// # Errors
/// If Ctrl-C was pressed or the server stays away; the work goes on either way.
pub async fn until_final(session: &mut Session<'_>, operation: Operation) -> Result<Operation, CliError> {
    let (id, kind) = (operation.id, operation.kind);
    let mut steps = Steps::new(session.ui);
    tokio::select! {
        ended = follow(session, operation, &mut steps) => ended,
        () = interrupted() => {
            steps.progress.clear();
            let stopped =
                CliError::failed("stopped waiting; the work goes on").hint(format!("to watch it again: {}", watch_command(id)));
            Err(match kind.on_cancel {
                OnCancel::Remove | OnCancel::Revert => stopped.hint(format!("to cancel it: {}", cancel_command(id))),
                // It has begun, most likely, and can't be taken back.
                OnCancel::BeforeFirstStep => stopped,
            })
        }
    }
}

/// Where an operation shows while it is at work.
pub trait Display {
    /// Shows it as it is now.
    fn show(&mut self, operation: &Operation);
    /// Tells that nothing happens for a moment.
    fn show_stillness(&mut self, operation: &Operation);
    /// Shows a note beside it.
    fn note(&mut self, text: &str);
}

/// Shows an operation until it ends, through restarts of the server, and returns it as it ended.
///
/// # Errors
/// If the server stays away; the work goes on.
pub async fn follow(
    session: &mut Session<'_>,
    mut operation: Operation,
    display: &mut impl Display,
) -> Result<Operation, CliError> {
    let mut last_answer = Instant::now();
    let mut restarts = 0;
    loop {
        display.show(&operation);
        if operation.state.is_final() {
            return Ok(operation);
        }
        let asked = Instant::now();
        let answer = {
            let client = session.client.clone();
            let answer = client.operation_after(operation.id, operation.revision, LONG_POLL);
            tokio::pin!(answer);
            match timeout(STILL, &mut answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    display.show_stillness(&operation);
                    answer.await
                }
            }
        };
        match answer {
            Ok(next) => {
                last_answer = Instant::now();
                if next.revision == operation.revision && asked.elapsed() < PAUSE {
                    // A server that is shutting down doesn't hold requests.
                    sleep(PAUSE).await;
                }
                if next.revision > operation.revision {
                    restarts = 0;
                }
                operation = next;
            }
            Err(error) if is_gone(&error) && session.is_local() && restarts < RESTARTS => {
                restarts += 1;
                display.note("the server went away; the work goes on when it is back");
                session.reopen().await?;
            }
            Err(error) if error.is_passing() && last_answer.elapsed() < RETRY_TIMEOUT => sleep(PAUSE).await,
            Err(error) => return Err(lost(session, error, operation.id)),
        }
    }
}

fn lost(session: &Session<'_>, error: ClientError, id: Uuid) -> CliError {
    session.explain(error).hint(format!("the work goes on when the server is back; to watch it again: {}", watch_command(id)))
}

fn watch_command(id: Uuid) -> String {
    format!("toygres operations watch {id}")
}

fn retry_command(id: Uuid) -> String {
    format!("toygres operations retry {id}")
}

fn cancel_command(id: Uuid) -> String {
    format!("toygres operations cancel {id}")
}

/// A time that is expected: `about 3 s`, `about 2 min`.
pub fn about(seconds: f64) -> String {
    match seconds {
        ..1.0 => "about a second".to_owned(),
        ..100.0 => format!("about {seconds:.0} s"),
        _ => format!("about {:.0} min", seconds / 60.0),
    }
}

/// How much of the expected time is left; nothing is said of what takes longer than expected.
fn time_left(operation: &Operation) -> Option<String> {
    let left = operation.expected_seconds? - between(operation.created_at, Utc::now()).as_secs_f64();
    (left > 0.0).then(|| format!("{} left", about(left)))
}

/// What of an operation's steps was shown already.
struct Steps<'a> {
    ui: &'a Ui,
    progress: Progress<'a>,
    /// How many steps' ends were shown.
    ended: usize,
    /// The step and attempt whose failure was shown last.
    tried: Option<(usize, i32)>,
    /// Whether it was told how long it takes.
    expected_time_shown: bool,
}

impl<'a> Steps<'a> {
    fn new(ui: &'a Ui) -> Self {
        Self { ui, progress: Progress::begin(ui), ended: 0, tried: None, expected_time_shown: false }
    }

    fn show_at_work(&mut self, operation: &Operation, index: usize, step: &Step) {
        let detail = match &step.error {
            Some(error) => {
                // One that isn't tried again is told of at the end.
                let tries_again = step.state == StepState::Failed && error.retryable;
                if tries_again && self.tried != Some((index, step.attempts)) {
                    self.progress.step_tried(&step.name, step.attempts, &error.message);
                    self.tried = Some((index, step.attempts));
                }
                // Where lines stay, it was just said, or is said at the end.
                let attempt = || format!("attempt {}: {}", step.attempts, error.message);
                self.progress.is_live().then(attempt).unwrap_or_default()
            }
            None => self.detail_or_time_left(operation),
        };
        self.progress.step_running(&step.name, between(step.started_at, Utc::now()), &detail);
    }
}

impl Steps<'_> {
    /// What it is busy with, or else how long that goes on.
    fn detail_or_time_left(&self, operation: &Operation) -> String {
        let left = || time_left(operation).filter(|_| self.progress.is_live());
        operation.progress.clone().or_else(left).unwrap_or_default()
    }
}

impl Display for Steps<'_> {
    fn show(&mut self, operation: &Operation) {
        if let Some(seconds) = operation.expected_seconds.filter(|_| !self.expected_time_shown) {
            self.progress.show_expected_time(&about(seconds));
            self.expected_time_shown = true;
        }
        for (index, step) in operation.steps.iter().enumerate().skip(self.ended) {
            // The last step's own end may be written down after the operation's.
            let ended = operation.state.is_final();
            if step.state != StepState::Succeeded && !ended {
                return self.show_at_work(operation, index, step);
            }
            let succeeded = step.state == StepState::Succeeded || operation.state == OperationState::Succeeded;
            let took = step.finished_at.or(operation.finished_at).map(|finished| between(step.started_at, finished));
            self.progress.step_ended(&step.name, succeeded, took, &attempts(step));
            self.ended = index + 1;
        }
        if operation.progress.is_some() {
            self.show_stillness(operation);
        }
    }

    fn show_stillness(&mut self, operation: &Operation) {
        if self.ended == operation.steps.len() {
            let what = if operation.steps.is_empty() { "waiting for a worker" } else { "waiting for the next step" };
            let since = between(operation.created_at, Utc::now());
            self.progress.step_running(what, since, &self.detail_or_time_left(operation));
        }
    }

    fn note(&mut self, text: &str) {
        self.progress.clear();
        self.ui.note(text);
    }
}

/// How often a step was begun, if more than once.
pub fn attempts(step: &Step) -> String {
    if step.attempts > 1 { format!("{} attempts", step.attempts) } else { String::new() }
}

/// Why an operation didn't succeed, what is left, and what to do.
pub fn failed(operation: &Operation) -> CliError {
    let name = &operation.instance_name;
    let what = operation.kind.participle;
    let flags = Namespace::flag(&operation.namespace);
    if operation.state == OperationState::Cancelled {
        let who = operation.cancel_requested_by.as_deref().unwrap_or("somebody");
        return CliError::failed(format!(
            "{name} was not {what}: that was cancelled by {who}, and what was done of it is reverted"
        ));
    }
    let mut error = match &operation.error {
        Some(failure) => CliError::failed(format!("{name} could not be {what}: {}: {}", failure.step, failure.failure.message))
            .evidence(failure.failure.evidence.clone()),
        None => CliError::failed(format!("{name} could not be {what}")),
    };
    let again = format!("to try again once the cause is gone: {}", retry_command(operation.id));
    error = match operation.kind.on_failure {
        OnFailure::MarkFailed if operation.kind.removes_data => error
            .hint(format!("what is left of {name} is kept, and its name stays taken"))
            .hint(format!("to try again: toygres delete {name}{flags}")),
        OnFailure::MarkFailed => error
            .hint(again)
            .hint(format!("what was made of {name} is kept for you to look at: toygres logs {name}{flags}"))
            .hint(format!("to clear it away and free the name: toygres delete {name}{flags}")),
        OnFailure::KeepState => error.hint(format!("what {name} is now: toygres get {name}{flags}")).hint(again),
    };
    error
}

/// Tells that an operation is under way, for those who don't wait for it.
pub fn print_started(ui: &Ui, operation: &Operation) -> Result<ExitCode, CliError> {
    if !ui.is_for_people() {
        ui.print_record(operation)?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = match operation.kind {
        _ if operation.state.is_final() => "as it was before".to_owned(),
        _ if operation.cancel_requested_at.is_some() => "being reverted".to_owned(),
        kind => format!("being {}", kind.participle),
    };
    ui.print(format_args!("{} is {what} (operation {})", operation.instance_name, operation.id))?;
    ui.note(format_args!("\n  {}   watch it", ui.err.cyan(watch_command(operation.id))));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use toygres_models::{Failure, FailureKind, OperationKind, StepFailure};

    use super::*;
    use crate::testing;

    #[test]
    fn a_failure_tells_the_step_the_reason_the_evidence_and_what_to_do() {
        let mut operation = testing::operation(OperationKind::CREATE);
        operation.namespace = "team".into();
        let failure = Failure::permanent(FailureKind::StartFailed, "the server ended while starting")
            .with_evidence(vec!["FATAL:  could not create lock file".into()]);
        operation.error = Some(sqlx::types::Json(StepFailure { step: "deploy-postgres".into(), failure }));
        let error = failed(&operation);
        assert_eq!(error.message, "demo could not be created: deploy-postgres: the server ended while starting");
        assert_eq!(error.evidence, ["FATAL:  could not create lock file"]);
        assert!(error.hints.iter().any(|hint| hint.ends_with("toygres delete demo -n team")), "{error:?}");
        assert_eq!(error.exit_status, 1);
    }

    #[test]
    fn every_step_is_shown_once() {
        let ui = testing::ui();
        let mut steps = Steps::new(&ui);
        let mut operation = testing::operation(OperationKind::CREATE);
        steps.show(&operation);
        assert_eq!(steps.ended, 0);
        operation.steps =
            vec![testing::step("deploy-postgres", StepState::Succeeded), testing::step("wait-for-ready", StepState::Failed)];
        steps.show(&operation);
        assert_eq!(steps.ended, 1, "a failed attempt isn't the step's end");
        operation.steps[1].state = StepState::Succeeded;
        steps.show(&operation);
        steps.show(&operation);
        assert_eq!(steps.ended, 2);
    }
}

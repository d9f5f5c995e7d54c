//! Several operations side by side: on a terminal a line for each that is drawn again and again;
//! elsewhere only what they say of themselves.

use std::cell::RefCell;
use std::fmt::Display;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use toygres_models::StepState;
use toygres_models::store::Operation;

use super::watch;
use crate::error::CliError;
use crate::output::progress::{TICK, style};
use crate::output::ui::{self, Ui};

/// The lines of all.
pub struct Board<'a> {
    ui: &'a Ui,
    lines: MultiProgress,
    /// What was last said beside them.
    last_noted: RefCell<String>,
}

impl<'a> Board<'a> {
    /// Nothing shows yet.
    pub fn new(ui: &'a Ui) -> Self {
        let draws = ui.live && !ui.quiet;
        let target = if draws { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { ui, lines: MultiProgress::with_draw_target(target), last_noted: RefCell::default() }
    }

    /// A line for one operation.
    pub fn line(&self, name: &str) -> Line<'_> {
        let line = self.lines.add(ProgressBar::new_spinner().with_style(style(self.ui.err.is_on)).with_prefix(name.to_owned()));
        line.enable_steady_tick(TICK);
        Line { board: self, name: name.to_owned(), line, last_noted: String::new() }
    }

    /// Prints a result above the lines.
    pub fn print(&self, text: impl Display) -> Result<(), CliError> {
        self.lines.suspend(|| self.ui.print(text))
    }

    /// Prints an error above the lines.
    pub fn print_error(&self, error: &CliError) {
        self.lines.suspend(|| ui::print_error(error));
    }

    /// Takes all lines away.
    pub fn clear(&self) {
        // Where a terminal can't be drawn on, there is nothing to take away.
        let _ = self.lines.clear();
    }
}

/// One operation's line; it goes when this is dropped.
pub struct Line<'a> {
    board: &'a Board<'a>,
    name: String,
    line: ProgressBar,
    /// The step whose words were last said, where lines stay.
    last_noted: String,
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.line.finish_and_clear();
        self.board.lines.remove(&self.line);
    }
}

impl watch::Display for Line<'_> {
    fn show(&mut self, operation: &Operation) {
        let Some(step) = operation.steps.iter().rfind(|step| step.state != StepState::Succeeded) else { return };
        let detail = match &step.error {
            Some(error) => format!("attempt {}: {}", step.attempts, error.message),
            None => operation.progress.clone().unwrap_or_default(),
        };
        let words = if detail.is_empty() { step.name.clone() } else { format!("{}: {detail}", step.name) };
        if !self.board.ui.live && !detail.is_empty() && self.last_noted != step.name && !operation.state.is_final() {
            // Once for a step: where lines stay, each new number would be another one.
            self.board.ui.note(format_args!("  {}: {words}", self.name));
            step.name.clone_into(&mut self.last_noted);
        }
        self.line.set_message(ui::harmless(&words));
    }

    fn show_stillness(&mut self, operation: &Operation) {
        if operation.steps.is_empty() {
            self.line.set_message("waiting for a worker");
        }
    }

    fn note(&mut self, text: &str) {
        // All of them may have it to say at once.
        let before = self.board.last_noted.replace(text.to_owned());
        if before != text {
            self.board.lines.suspend(|| self.board.ui.note(text));
        }
    }
}

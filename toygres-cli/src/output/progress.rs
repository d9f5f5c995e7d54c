//! Tells how work goes: one line that is drawn again and again on a terminal, a line for each
//! thing that is done elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::display::{self, STEP_WIDTH};
use super::ui::{Ui, harmless};

/// How often a line is drawn again.
pub const TICK: Duration = Duration::from_millis(100);

/// The display of one piece of work.
pub struct Progress<'a> {
    ui: &'a Ui,
    began: Instant,
    /// The line at the bottom, on a terminal.
    line: Option<(String, ProgressBar)>,
    /// What was last said elsewhere.
    last_shown: String,
}

impl<'a> Progress<'a> {
    /// Nothing shows yet.
    pub fn begin(ui: &'a Ui) -> Self {
        Self { ui, began: Instant::now(), line: None, last_shown: String::new() }
    }

    /// Whether one line is drawn again and again.
    pub fn is_live(&self) -> bool {
        self.ui.live
    }

    /// Tells what is being done; it takes the place of what was told before.
    pub fn busy(&mut self, message: &str) {
        if self.ui.live {
            let since = self.began.elapsed();
            self.show(message, since, "");
        } else if message != self.last_shown {
            self.ui.note(format_args!("  {message}"));
        }
        message.clone_into(&mut self.last_shown);
    }

    /// How long it takes, where lines stay; a line that is drawn tells that with each step.
    pub fn show_expected_time(&mut self, time: &str) {
        if !self.ui.live {
            self.ui.note(format_args!("  usually takes {time}"));
        }
    }

    /// A step is at work, since a while, with what it says of itself.
    pub fn step_running(&mut self, name: &str, since: Duration, detail: &str) {
        if self.ui.live {
            self.show(name, since, detail);
        } else if !detail.is_empty() && self.last_shown != name {
            // Once: where lines stay, each new number would be another one.
            self.ui.note(format_args!("  {name}: {detail}"));
            name.clone_into(&mut self.last_shown);
        }
    }

    /// A step failed and will be tried again.
    pub fn step_tried(&mut self, name: &str, attempt: i32, reason: &str) {
        if !self.ui.live {
            self.ui.note(format_args!("  {name}: attempt {attempt} failed, trying again: {reason}"));
        }
    }

    /// A step ended.
    pub fn step_ended(&mut self, name: &str, succeeded: bool, took: Option<Duration>, detail: &str) {
        self.clear();
        self.ui.note(display::step_line(self.ui.err, Some(succeeded), name, took, detail));
    }

    /// All is done.
    pub fn done(mut self, message: &str) {
        let took = self.began.elapsed();
        self.step_ended(message, true, Some(took), "");
    }

    fn show(&mut self, name: &str, since: Duration, detail: &str) {
        if self.ui.quiet {
            return;
        }
        if self.line.as_ref().is_none_or(|(shown, _)| shown != name) {
            self.clear();
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
                .with_elapsed(since)
                .with_style(style(self.ui.err.is_on))
                .with_prefix(name.to_owned())
                .with_message(detail.to_owned());
            // Only now, with all of it, is it drawn.
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.enable_steady_tick(TICK);
            self.line = Some((name.to_owned(), bar));
        } else if let Some((_, bar)) = &self.line
            && bar.message() != detail
        {
            bar.set_message(harmless(detail));
        }
    }

    /// Takes the drawn line away; what was said stays.
    pub fn clear(&mut self) {
        if let Some((_, bar)) = self.line.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How such a line looks: a spinner, a name, a time, a detail.
pub fn style(coloured: bool) -> ProgressStyle {
    let template = if coloured {
        format!("  {{spinner:.cyan}} {{prefix:{STEP_WIDTH}}} {{time:>8.dim}}  {{wide_msg:.dim}}")
    } else {
        format!("  {{spinner}} {{prefix:{STEP_WIDTH}}} {{time:>8}}  {{wide_msg}}")
    };
    let time = |state: &indicatif::ProgressState, text: &mut dyn std::fmt::Write| {
        // Tenths are enough for a time that still runs.
        let _ = write!(text, "{:.1}s", state.elapsed().as_secs_f64());
    };
    // The template is ours and a test sees that it is one; should it not be, the default serves.
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_spinner()).with_key("time", time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_one() {
        for coloured in [true, false] {
            let _ = style(coloured);
        }
        assert!(ProgressStyle::with_template("  {spinner:.cyan} {prefix:28} {time:>8.dim}  {wide_msg:.dim}").is_ok());
    }
}

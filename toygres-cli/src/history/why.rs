//! `toygres why`.

use std::process::ExitCode;

use clap::Args;
use toygres_client::Client;
use toygres_client::explanation::{Explanation, Moment, MomentSource};
use toygres_models::InstanceName;

use crate::error::Outcome;
use crate::output::display::moment;
use crate::output::ui::{Style, Ui};
use crate::session::Session;
use crate::values::instance_name;

/// How wide sources and words are shown, so that texts stand below each other.
const SOURCE_WIDTH: usize = 9;
const WHAT_WIDTH: usize = 24;

/// What `toygres why` takes.
#[derive(Debug, Args)]
pub struct Why {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,
}

pub async fn run(arguments: Why, session: &mut Session<'_>) -> Outcome {
    let key = session.key(arguments.name);
    let explanation = session.call(async |client: &Client| client.why(&key).await).await?;
    let ui = session.ui;
    if ui.is_for_people() {
        ui.print(render(ui, &explanation))?;
    } else {
        ui.print_record(&explanation)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn render(ui: &Ui, explanation: &Explanation) -> String {
    let style = ui.out;
    let verdict = &explanation.verdict;
    let mut text = match verdict.likely_cause {
        Some(_) => style.red(&verdict.summary),
        None => style.green(&verdict.summary),
    };
    for line in &verdict.evidence {
        text.push_str(&format!("\n  {} {line}", style.dim("|")));
    }
    if !verdict.fix.is_empty() {
        text.push_str(&format!("\n\n{}", style.bold("What to do")));
    }
    for (number, step) in verdict.fix.iter().enumerate() {
        text.push_str(&format!("\n  {}. {step}", number + 1));
    }
    if !explanation.timeline.is_empty() {
        text.push_str(&format!("\n\n{}", style.bold("How it came")));
    }
    for moment in &explanation.timeline {
        text.push('\n');
        text.push_str(&moment_line(style, moment));
    }
    text
}

fn moment_line(style: Style, told: &Moment) -> String {
    let source = match told.source {
        MomentSource::Operation => "operation",
        MomentSource::Event => "event",
        MomentSource::Platform => "platform",
        MomentSource::Postgres => "postgres",
    };
    let is_bad = ["failed", "exited", "unhealthy"].iter().any(|bad| told.what.ends_with(bad) || told.text.starts_with(bad))
        || ["FATAL:", "PANIC:"].iter().any(|level| told.text.contains(level));
    let what = format!("{:WHAT_WIDTH$}", told.what);
    let what = if is_bad { style.red(what) } else { what };
    let source = style.cyan(format_args!("{source:SOURCE_WIDTH$}"));
    let text = told.text.replace('\n', &format!("\n{:indent$}", "", indent = 23 + SOURCE_WIDTH + 2 + WHAT_WIDTH + 2));
    let times = if told.times > 1 { style.dim(format_args!("  ({} times)", told.times)).to_string() } else { String::new() };
    format!("  {}  {source}  {what}  {text}{times}", style.dim(moment(told.at))).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use toygres_models::{Cause, InstanceState, Verdict};

    use super::*;
    use crate::testing;

    #[test]
    fn the_verdict_comes_first_then_what_to_do_then_the_timeline() {
        let moment =
            Moment { at: Utc::now(), source: MomentSource::Postgres, what: "log".into(), text: "FATAL:  no".into(), times: 3 };
        let explanation = Explanation {
            namespace: "default".into(),
            name: "demo".into(),
            state: InstanceState::Failed,
            verdict: Verdict {
                summary: "default/demo failed: the disk is full".into(),
                likely_cause: Some(Cause::DiskFull),
                fix: vec!["free some room".into(), "create it again".into()],
                evidence: vec!["No space left on device".into()],
            },
            timeline: vec![moment],
        };
        let text = render(&testing::ui(), &explanation);
        let expected = "default/demo failed: the disk is full\n  | No space left on device\n\nWhat to do\n  1. free some room\n  2. \
                        create it again\n\nHow it came\n  ";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with("  postgres   log                       FATAL:  no  (3 times)"), "{text}");
    }
}

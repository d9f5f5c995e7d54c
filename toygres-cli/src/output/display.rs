//! Records as people read them: tables, times, addresses.

use std::io::{self, IsTerminal};
use std::time::Duration;

use chrono::{DateTime, Local, TimeDelta, Utc};
use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, presets};
use toygres_models::store::Instance;
use toygres_models::{HealthStatus, InstanceState, StepFailure};
use url::Url;

use super::ui::{Style, Ui};

/// How wide names of steps are shown, so that times stand below each other.
pub const STEP_WIDTH: usize = 28;
/// Blanks between a table's columns.
const COLUMN_GAP: u16 = 3;
/// Below this width, columns would be torn into single characters.
const MIN_WIDTH: u16 = 60;

/// A table without lines around it, like kubectl's. On a terminal too narrow for it, the columns of
/// `prose` are wrapped, and no others: ids and addresses are there to be copied. Elsewhere a row is
/// always one line.
pub fn table(ui: &Ui, headers: &[&str], prose: &[&str], rows: Vec<Vec<Cell>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(width) = terminal_width().filter(|_| !prose.is_empty()) {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    if ui.out.is_on {
        table.enforce_styling();
    }
    table.set_header(headers.iter().map(|header| dim(ui.out, Cell::new(header)))).add_rows(rows);
    let last = headers.len().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { COLUMN_GAP }));
        if !headers.get(index).is_some_and(|header| prose.contains(header)) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table.trim_fmt()
}

/// A step of an operation: `✓ deploy-postgres   0.12s  2 attempts`. Without `succeeded` it goes on.
pub fn step_line(style: Style, succeeded: Option<bool>, name: &str, took: Option<Duration>, detail: &str) -> String {
    let mark = match succeeded {
        Some(true) => style.green("✓"),
        Some(false) => style.red("✗"),
        None => style.yellow("…"),
    };
    let took = took.map(seconds).unwrap_or_default();
    let line = format!("  {mark} {name:STEP_WIDTH$} {}  {}", style.dim(format_args!("{took:>8}")), style.dim(detail));
    line.trim_end().to_owned()
}

/// A failure with its step, and the platform's own words below it.
pub fn failure(style: Style, failure: &StepFailure) -> String {
    let mut text = format!("{} {}: {}", style.red("Failed in"), failure.step, failure.failure.message);
    for line in &failure.failure.evidence {
        text.push_str(&format!("\n  {} {line}", style.dim("|")));
    }
    text
}

/// The width of the terminal that results go to. Some call themselves terminals and have none, or
/// one too small for any table: those get lines of any length.
fn terminal_width() -> Option<u16> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten()?;
    Some(size.ws_col).filter(|columns| *columns >= MIN_WIDTH)
}

/// Names and what they stand for, below each other.
pub fn fields(ui: &Ui, fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 2;
    let line = |(name, value): &(&str, String)| format!("  {}{value}", ui.out.dim(format_args!("{name:width$}")));
    fields.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn dim(style: Style, cell: Cell) -> Cell {
    if style.is_on { cell.add_attribute(Attribute::Dim) } else { cell }
}

/// How an instance is, in one or two words.
pub fn state(instance: &Instance) -> String {
    match &instance.status.health_status {
        Some(health) if instance.state == InstanceState::Running && *health != HealthStatus::Healthy => {
            format!("running ({health})")
        }
        _ => instance.state.to_string(),
    }
}

/// The same in a table, in its colour.
pub fn state_cell(style: Style, instance: &Instance) -> Cell {
    let text = state(instance);
    let colour = match instance.state {
        InstanceState::Running if text == "running" => Color::DarkGreen,
        InstanceState::Running => health_colour(instance.status.health_status),
        InstanceState::Failed => Color::DarkRed,
        InstanceState::Creating | InstanceState::Deleting | InstanceState::Stopped => Color::DarkYellow,
        InstanceState::Deleted => Color::DarkGrey,
    };
    coloured(style, text, colour)
}

/// The colour of a health.
pub fn health_colour(health: Option<HealthStatus>) -> Color {
    match health {
        Some(HealthStatus::Healthy) => Color::DarkGreen,
        Some(HealthStatus::Degraded) => Color::DarkYellow,
        Some(HealthStatus::Unhealthy) => Color::DarkRed,
        Some(HealthStatus::Unknown) | None => Color::DarkGrey,
    }
}

/// A table's cell in a colour, where there are colours.
pub fn coloured(style: Style, text: impl ToString, colour: Color) -> Cell {
    let cell = Cell::new(text);
    if style.is_on { cell.fg(colour) } else { cell }
}

/// The version of PostgreSQL that an instance runs, or, where that isn't known, is to run.
pub fn version(instance: &Instance) -> String {
    let runs = instance.status.members.iter().find_map(|member| member.postgres_version.clone());
    runs.unwrap_or_else(|| instance.spec.postgres_version.to_string())
}

/// `host:port` of an instance, where it has one.
pub fn endpoint(instance: &Instance) -> Option<String> {
    let uri = instance.status.dns_connection_string.as_ref().or(instance.status.ip_connection_string.as_ref())?;
    let uri = Url::parse(uri).ok()?;
    Some(format!("{}:{}", uri.host_str()?, uri.port().unwrap_or(5432)))
}

/// How long ago that was, short: `5s`, `3m`, `2h`, `4d`. A clock that was set back makes it 0.
pub fn age(since: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = (now - since).num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A moment, in the reader's time zone.
pub fn moment(at: DateTime<Utc>) -> String {
    at.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string()
}

/// A time that something took: `0.12s`, `1m 05s`.
pub fn seconds(took: Duration) -> String {
    match took.as_secs() {
        0..60 => format!("{:.2}s", took.as_secs_f64()),
        seconds => format!("{}m {:02}s", seconds / 60, seconds % 60),
    }
}

/// From one moment to another; 0 if a clock was set back in between.
pub fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).max(TimeDelta::zero()).to_std().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use toygres_models::InstanceState;

    use super::*;
    use crate::testing;

    #[test]
    fn ages_are_short_and_never_negative() {
        let now = Utc::now();
        for (seconds, text) in [(-90, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (3_599, "59m"), (7_200, "2h"), (200_000, "2d")] {
            assert_eq!(age(now - TimeDelta::seconds(seconds), now), text);
        }
        assert_eq!(between(now, now - TimeDelta::seconds(1)), Duration::ZERO);
        assert_eq!(seconds(Duration::from_millis(123)), "0.12s");
        assert_eq!(seconds(Duration::from_secs(65)), "1m 05s");
    }

    #[test]
    fn an_endpoint_is_read_out_of_the_uri() {
        let mut instance = testing::instance("demo");
        assert_eq!(endpoint(&instance).unwrap(), "127.0.0.1:20001");
        instance.status.ip_connection_string = Some("postgresql://postgres@[::1]:20002/postgres?sslmode=require".into());
        assert_eq!(endpoint(&instance).unwrap(), "[::1]:20002");
        instance.status.ip_connection_string = None;
        assert_eq!(endpoint(&instance), None);
    }

    #[test]
    fn health_shows_only_where_it_says_something() {
        let mut instance = testing::instance("demo");
        assert_eq!(state(&instance), "running");
        instance.status.health_status = Some(HealthStatus::Unhealthy);
        assert_eq!(state(&instance), "running (unhealthy)");
        instance.state = InstanceState::Deleting;
        assert_eq!(state(&instance), "deleting");
    }

    #[test]
    fn a_table_is_plain_text_where_nobody_looks() {
        let text = table(&testing::ui(), &["NAME", "STATE"], &[], vec![vec![Cell::new("demo"), Cell::new("running")]]);
        assert_eq!(text, "NAME   STATE\ndemo   running");
    }
}

//! `toygres top`.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use comfy_table::Cell;
use tokio::time::sleep;
use toygres_client::Client;
use toygres_client::resources::{InstanceActivity, InstanceUsage};
use toygres_models::text::one_line;
use toygres_models::{ClientSession, InstanceName, Namespace, SessionEnd};

use crate::error::{CliError, Outcome};
use crate::output::display::{self, coloured, health_colour};
use crate::output::interrupt::interrupted;
use crate::output::ui::{Ui, clear_screen};
use crate::session::Session;
use crate::values::instance_name;

/// How much of a statement is shown.
const STATEMENT: usize = 60;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres top                      every instance that runs, until Ctrl-C
  toygres top demo                 one instance, and what its clients do
  toygres top demo --once
  toygres top demo --cancel 4711   end the statement of that session
  toygres top demo --terminate 4711

Rates are averages over the time between two looks: for all instances, those of the server. Only
editors see statements.")]
pub struct Top {
    /// The instance's name; every instance that runs without it
    #[arg(value_parser = instance_name)]
    name: Option<InstanceName>,

    /// Print once, and end
    #[arg(long)]
    once: bool,

    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval_seconds: u64,

    /// Cancel the statement of the session in that process
    #[arg(long, value_name = "PID", requires = "name", conflicts_with = "terminate", value_parser = clap::value_parser!(i32).range(1..))]
    cancel: Option<i32>,

    /// End the session in that process
    #[arg(long, value_name = "PID", requires = "name", value_parser = clap::value_parser!(i32).range(1..))]
    terminate: Option<i32>,
}

pub async fn run(arguments: Top, session: &mut Session<'_>) -> Outcome {
    let ui = session.ui;
    let end =
        arguments.cancel.map(|pid| (pid, SessionEnd::Cancel)).or(arguments.terminate.map(|pid| (pid, SessionEnd::Terminate)));
    if let (Some(name), Some((pid, end))) = (&arguments.name, end) {
        return end_session(name, pid, end, session).await;
    }
    let is_live = !arguments.once && ui.is_for_people() && std::io::stdout().is_terminal();
    let mut rates = Rates::default();
    let show = async {
        let mut text = look(arguments.name.as_ref(), &mut rates, session).await?;
        loop {
            let Some(shown) = text else { return Ok(()) };
            if is_live {
                clear_screen();
            }
            ui.print(shown)?;
            if !is_live {
                return Ok(());
            }
            sleep(Duration::from_secs(arguments.interval_seconds)).await;
            // A server that somebody stopped isn't started again by that.
            text = match session.find_again().await? {
                true => look(arguments.name.as_ref(), &mut rates, session)
                    .await
                    .or_else(|error| Ok::<_, CliError>(Some(error.message)))?,
                false => Some("the server is away; going on when it is back".to_owned()),
            };
        }
    };
    tokio::select! {
        ended = show => ended.map(|()| ExitCode::SUCCESS),
        // The usual end.
        () = interrupted(), if is_live => {
            ui.end_line();
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn end_session(name: &InstanceName, pid: i32, end: SessionEnd, session: &mut Session<'_>) -> Outcome {
    let key = session.key(name.clone());
    let activity = session.call(async |client: &Client| client.instance_activity(&key).await).await?;
    let sessions = activity.sessions.ok_or_else(|| CliError::failed(activity.problem.unwrap_or_default()))?;
    let Some(found) = sessions.into_iter().find(|session| session.pid == pid) else {
        let message = format!("{key} has no session of a client in the process {pid}; nothing was done");
        return Err(CliError::failed(message).hint(format!("`toygres top {}` shows them", key.argument())));
    };
    session.call(async |client: &Client| client.end_session(&key, &found, end).await).await?;
    session.ui.print(match end {
        SessionEnd::Cancel => format!("the statement of the process {pid} is cancelled"),
        SessionEnd::Terminate => format!("the session in the process {pid} has ended"),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `None` where a record was printed.
async fn look(name: Option<&InstanceName>, rates: &mut Rates, session: &mut Session<'_>) -> Result<Option<String>, CliError> {
    match name {
        Some(name) => one(name, rates, session).await,
        None => all(rates, session).await,
    }
}

async fn all(rates: &mut Rates, session: &mut Session<'_>) -> Result<Option<String>, CliError> {
    let ui = session.ui;
    let namespace = session.settings.namespace.clone();
    let usage = session.call(async |client: &Client| client.usage(namespace.as_ref()).await).await?;
    if !ui.is_for_people() {
        ui.print_record(&usage.items)?;
        return Ok(None);
    }
    if usage.items.is_empty() {
        return Ok(Some("No instance runs.".to_owned()));
    }
    Ok(Some(usage_table(ui, &usage.items, rates)))
}

async fn one(name: &InstanceName, rates: &mut Rates, session: &mut Session<'_>) -> Result<Option<String>, CliError> {
    let ui = session.ui;
    let key = session.key(name.clone());
    let activity = session.call(async |client: &Client| client.instance_activity(&key).await).await?;
    if !ui.is_for_people() {
        ui.print_record(&activity)?;
        return Ok(None);
    }
    Ok(Some(activity_text(ui, &activity, rates)))
}

fn activity_text(ui: &Ui, activity: &InstanceActivity, rates: &mut Rates) -> String {
    let table = usage_table(ui, std::slice::from_ref(&activity.usage), rates);
    let Some(sessions) = &activity.sessions else {
        return format!("{table}\n\n{}", activity.problem.as_deref().unwrap_or_default());
    };
    if sessions.is_empty() {
        return format!("{table}\n\nNo client is connected.");
    }
    let headers = ["PID", "ROLE", "DATABASE", "APPLICATION", "CLIENT", "STATE", "XACT AGE", "QUERY AGE", "WAITS FOR", "SQL"];
    let rows = sessions.iter().map(session_row);
    format!("{table}\n\n{}", display::table(ui, &headers, &["SQL"], rows.collect()))
}

fn session_row(session: &ClientSession) -> Vec<Cell> {
    let text = |text: Option<&str>| text.filter(|text| !text.is_empty()).map_or_else(|| "-".to_owned(), start_of);
    let blocked: Vec<_> = session.blocked_by.iter().map(ToString::to_string).collect();
    let waits_for = match (blocked.is_empty(), &session.wait_event) {
        (false, _) => format!("lock of {}", blocked.join(", ")),
        (true, event) => text(event.as_deref()),
    };
    vec![
        Cell::new(session.pid),
        Cell::new(text(session.role.as_deref())),
        Cell::new(text(session.database.as_deref())),
        Cell::new(text(Some(&session.application_name))),
        Cell::new(text(Some(&session.client_address))),
        Cell::new(text(session.state.as_deref())),
        Cell::new(seconds(session.transaction_seconds)),
        Cell::new(seconds(session.statement_seconds)),
        Cell::new(waits_for),
        Cell::new(text(session.statement.as_deref())),
    ]
}

/// The start of it, with as little white space as will do.
fn start_of(text: &str) -> String {
    one_line(&text.split_whitespace().collect::<Vec<_>>().join(" "), STATEMENT)
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1}s"))
}

fn usage_table(ui: &Ui, usage: &[InstanceUsage], rates: &mut Rates) -> String {
    let with_namespace = usage.iter().any(|usage| usage.namespace != Namespace::default().as_str());
    let mut headers = vec![
        "NAME",
        "HEALTH",
        "CONNECTIONS",
        "ACTIVE",
        "WAITING",
        "TRANSACTIONS/S",
        "CACHE HITS",
        "OLDEST",
        "SIZE",
        "DISK",
        "LAG",
    ];
    if with_namespace {
        headers.insert(0, "NAMESPACE");
    }
    let number = |number: Option<i64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let row = |usage: &InstanceUsage| {
        let rate = rates.of(usage);
        let health = usage.health_status.map_or_else(|| "-".to_owned(), |health| health.to_string());
        let mut row = vec![
            Cell::new(&usage.name),
            coloured(ui.out, health, health_colour(usage.health_status)),
            Cell::new(format!("{}/{}", number(usage.connections), number(usage.max_connections))),
            Cell::new(number(usage.active)),
            Cell::new(number(usage.waiting_for_lock)),
            Cell::new(rate.transactions_per_second.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))),
            Cell::new(rate.cache_hit_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0))),
            Cell::new(seconds(usage.longest_transaction_seconds)),
            Cell::new(usage.databases_bytes.map_or_else(|| "-".to_owned(), |bytes| size(bytes as f64))),
            Cell::new(disk(usage)),
            Cell::new(seconds(usage.replication_lag_seconds)),
        ];
        if with_namespace {
            row.insert(0, Cell::new(&usage.namespace));
        }
        row
    };
    display::table(ui, &headers, &[], usage.iter().map(row).collect())
}

fn disk(usage: &InstanceUsage) -> String {
    match (usage.volume_used_bytes, usage.volume_size_bytes) {
        (Some(used), Some(all)) if all > 0 => format!("{:.0} % of {}", used as f64 / all as f64 * 100.0, size(all as f64)),
        _ => "-".to_owned(),
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        bytes if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        bytes => format!("{:.0} MB", bytes / 1e6),
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Rate {
    transactions_per_second: Option<f64>,
    /// Of the time between two looks; of all that was counted, at the first.
    cache_hit_ratio: Option<f64>,
}

/// Differences between two looks at each instance.
#[derive(Default)]
struct Rates(HashMap<(String, String), (InstanceUsage, Rate)>);

impl Rates {
    fn of(&mut self, usage: &InstanceUsage) -> Rate {
        let key = (usage.namespace.clone(), usage.name.clone());
        let last = self.0.get(&key);
        if let Some((last, rate)) = last
            && last.at == usage.at
        {
            return *rate;
        }
        // The instance's superuser says what he likes.
        let ratio = |hit: f64, read: f64| (hit + read > 0.0).then(|| hit / (hit + read));
        let since = |of: fn(&InstanceUsage) -> Option<i64>| {
            let (now, before) = (of(usage)?, last.and_then(|(last, _)| of(last))?);
            // They were reset, or the server crashed.
            (now >= before).then_some(now as f64 - before as f64)
        };
        let seconds = last.and_then(|(last, _)| Some((usage.at? - last.at?).as_seconds_f64())).filter(|seconds| *seconds > 0.0);
        let between = since(|usage| usage.blocks_hit).zip(since(|usage| usage.blocks_read));
        let all = usage.blocks_hit.map(|hit| hit as f64).zip(usage.blocks_read.map(|read| read as f64));
        let rate = Rate {
            transactions_per_second: since(|usage| usage.transactions).zip(seconds).map(|(count, seconds)| count / seconds),
            cache_hit_ratio: between.or(all).and_then(|(hit, read)| ratio(hit, read)),
        };
        self.0.insert(key, (usage.clone(), rate));
        rate
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};

    use super::*;
    use crate::testing;

    fn usage(at: Option<DateTime<Utc>>, transactions: i64, hit: i64, read: i64) -> InstanceUsage {
        InstanceUsage {
            namespace: "default".into(),
            name: "demo".into(),
            health_status: None,
            at,
            connections: Some(3),
            max_connections: Some(97),
            active: Some(1),
            waiting_for_lock: Some(0),
            transactions: Some(transactions),
            blocks_hit: Some(hit),
            blocks_read: Some(read),
            longest_transaction_seconds: Some(0.0),
            databases_bytes: Some(23_000_000),
            volume_used_bytes: Some(5_000_000_000),
            volume_size_bytes: Some(10_000_000_000),
            replication_lag_seconds: None,
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let (mut rates, begun) = (Rates::default(), Utc::now());
        let first = rates.of(&usage(Some(begun), 100, 90, 10));
        assert_eq!(first, Rate { transactions_per_second: None, cache_hit_ratio: Some(0.9) });
        assert_eq!(rates.of(&usage(Some(begun), 100, 90, 10)), first, "the same look");
        let second = rates.of(&usage(Some(begun + TimeDelta::seconds(2)), 120, 91, 12));
        assert_eq!(second, Rate { transactions_per_second: Some(10.0), cache_hit_ratio: Some(1.0 / 3.0) });
        // It was restarted after a crash.
        let third = rates.of(&usage(Some(begun + TimeDelta::seconds(4)), 1, 0, 0));
        assert_eq!(third, Rate { transactions_per_second: None, cache_hit_ratio: None });
    }

    #[test]
    fn what_is_not_known_is_a_dash_and_a_statement_one_line() {
        let nothing = InstanceUsage {
            connections: None,
            max_connections: None,
            blocks_hit: None,
            databases_bytes: None,
            volume_size_bytes: None,
            ..usage(None, i64::MAX, 1, i64::MAX)
        };
        let text = usage_table(&testing::ui(), &[nothing], &mut Rates::default());
        assert!(text.contains("-/-"), "{text}");
        let text = usage_table(&testing::ui(), &[usage(None, 1, i64::MAX, i64::MAX)], &mut Rates::default());
        assert!(text.contains("3/97") && text.contains("50 % of 10.0 GB") && text.contains("23 MB"), "{text}");
        assert_eq!(start_of("SELECT\n  1\u{1b}[31m"), "SELECT 1 [31m");
    }
}

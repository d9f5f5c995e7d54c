//! `toygres health`.

use std::process::ExitCode;

use chrono::Utc;
use clap::Args;
use comfy_table::Cell;
use toygres_client::resources::InstanceHealth;
use toygres_client::{Client, InstanceQuery, all_pages};
use toygres_models::store::Instance;
use toygres_models::{HealthReason, HealthStatus, InstanceName, InstanceState, Namespace};

use crate::error::Outcome;
use crate::output::display::{self, age, coloured, health_colour, moment};
use crate::output::ui::Ui;
use crate::session::Session;
use crate::values::instance_name;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres health               every instance that runs, as the server last saw it
  toygres health demo          one instance, as it is now, and when that changed

A probe is a write: an instance is healthy when its transaction's end is on disk. The server looks at all of them every
10 seconds.")]
pub struct Health {
    /// The instance's name; every instance that runs without it
    #[arg(value_parser = instance_name)]
    pub name: Option<InstanceName>,
}

pub async fn run(arguments: Health, session: &mut Session<'_>) -> Outcome {
    match arguments.name {
        Some(name) => one(name, session).await,
        None => all(session).await,
    }
}

async fn all(session: &mut Session<'_>) -> Outcome {
    let ui = session.ui;
    let query = InstanceQuery {
        namespace: session.settings.namespace.clone(),
        state: Some(InstanceState::Running),
        ..InstanceQuery::default()
    };
    let instances = session
        .call(async |client: &Client| all_pages(None, async |page: &_| client.instances(&query, page).await).await)
        .await?;
    if !ui.is_for_people() {
        ui.print_record(&instances.iter().map(InstanceHealth::from).collect::<Vec<_>>())?;
    } else if instances.is_empty() {
        ui.note("No instance runs.");
    } else {
        ui.print(table(ui, &instances))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(ui: &Ui, instances: &[Instance]) -> String {
    let now = Utc::now();
    let default = Namespace::default();
    let with_namespace = instances.iter().any(|instance| instance.namespace != default.as_str());
    let mut headers = vec!["NAME", "HEALTH", "SINCE", "REASONS"];
    if with_namespace {
        headers.insert(0, "NAMESPACE");
    }
    let row = |instance: &Instance| {
        let status = &instance.status;
        let mut row = vec![
            Cell::new(&instance.name),
            coloured(ui.out, word(status.health_status), health_colour(status.health_status)),
            Cell::new(status.health_since.map_or_else(|| "-".into(), |since| age(since, now))),
            Cell::new(words(&status.health_reasons)),
        ];
        if with_namespace {
            row.insert(0, Cell::new(&instance.namespace));
        }
        row
    };
    display::table(ui, &headers, &[], instances.iter().map(row).collect())
}

fn word(health: Option<HealthStatus>) -> String {
    health.map_or_else(|| "-".into(), |health| health.to_string())
}

fn words(reasons: &[HealthReason]) -> String {
    if reasons.is_empty() {
        return "-".into();
    }
    reasons.iter().map(|reason| reason.message.as_str()).collect::<Vec<_>>().join("; ")
}

async fn one(name: InstanceName, session: &mut Session<'_>) -> Outcome {
    let ui = session.ui;
    let key = session.key(name);
    let health = session.call(async |client: &Client| client.instance_health(&key).await).await?;
    if ui.is_for_people() {
        ui.print(details(ui, &health))?;
    } else {
        ui.print_record(&health)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn details(ui: &Ui, health: &InstanceHealth) -> String {
    let style = ui.out;
    let now = Utc::now();
    let shown = match health.health_status {
        Some(HealthStatus::Healthy) => style.green("healthy"),
        Some(status @ HealthStatus::Degraded) => style.yellow(status),
        Some(status) => style.red(status),
        None => style.yellow(format_args!("no health: it is {}", health.state)),
    };
    let mut lines = vec![format!("{}  {shown}", style.bold(&health.name))];
    lines.extend(health.health_reasons.iter().map(|reason| format!("  {} {}", style.dim("|"), reason.message)));
    let mut fields = Vec::new();
    fields.extend(health.health_since.map(|since| ("Since", format!("{} ({} ago)", moment(since), age(since, now)))));
    fields.extend(health.latency_milliseconds.map(|latency| ("Latency", format!("{latency:.1} ms, with a write to its disk"))));
    fields.extend(health.answered_at.map(|at| ("Answered", format!("{} ago", age(at, now)))));
    lines.push(display::fields(ui, &fields));
    if health.changes.len() > 1 {
        lines.push(format!("\n{}", style.bold("How it was")));
        for change in &health.changes {
            let words = words(&change.reasons);
            let words = if words == "-" { String::new() } else { format!("  {words}") };
            lines.push(format!("  {}  {:9}{words}", style.dim(moment(change.at)), change.status));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use toygres_models::HealthReasonKind;

    use super::*;
    use crate::testing;

    #[test]
    fn every_reason_is_shown() {
        let mut instance = testing::instance("demo");
        instance.status.health_status = Some(HealthStatus::Degraded);
        let reason = |kind, message: &str| HealthReason { kind, message: message.into() };
        instance.status.health_reasons = vec![
            reason(HealthReasonKind::DiskNearlyFull, "its disk is 81 % full"),
            reason(HealthReasonKind::RestartPending, "it has to be restarted"),
        ];
        let text = table(&testing::ui(), std::slice::from_ref(&instance));
        assert!(text.ends_with("its disk is 81 % full; it has to be restarted"), "{text}");
        let text = details(&testing::ui(), &InstanceHealth::from(&instance));
        assert!(text.starts_with("demo  degraded\n  | its disk is 81 % full\n  | it has to be restarted\n"), "{text}");
    }
}

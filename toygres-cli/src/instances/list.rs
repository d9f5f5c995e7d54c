//! `toygres list` and `toygres get`. As YAML they print documents that `toygres apply` takes; as JSON,
//! the API's records.

use std::process::ExitCode;

use chrono::Utc;
use clap::Args;
use comfy_table::Cell;
use toygres_client::resources::InstanceManifest;
use toygres_client::{Client, InstanceQuery, all_pages};
use toygres_models::store::Instance;
use toygres_models::{HealthStatus, InstanceName, InstanceState, LabelSelector, Namespace, PlatformName};

use super::documents;
use crate::error::Outcome;
use crate::output::display::{self, age, moment};
use crate::output::ui::Ui;
use crate::session::Session;
use crate::settings::OutputFormat;
use crate::values::{instance_state, label_selector, platform};

#[derive(Debug, Args)]
pub struct List {
    /// Every namespace's, whatever TOYGRES_NAMESPACE says [the default without --namespace]
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,

    /// Only with these labels, such as team=a,env=prod,reviewed; all have to hold
    #[arg(short = 'l', long, value_name = "LABELS", value_parser = label_selector)]
    pub selector: Option<LabelSelector>,

    /// Only in this state: creating, running, failed or deleting
    #[arg(long, value_name = "STATE", value_parser = instance_state)]
    pub state: Option<InstanceState>,

    /// Only on this platform: local or kubernetes
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    pub platform: Option<PlatformName>,
}

pub async fn list(arguments: &List, session: &mut Session<'_>) -> Outcome {
    let ui = session.ui;
    let namespace = session.settings.namespace.clone().filter(|_| !arguments.all_namespaces);
    let query = InstanceQuery {
        namespace: namespace.clone(),
        platform: arguments.platform,
        state: arguments.state,
        label_selector: arguments.selector.clone(),
    };
    let is_filtered = query.platform.is_some() || query.state.is_some() || query.label_selector.is_some();
    let instances = session
        .call(async |client: &Client| all_pages(None, async |page: &_| client.instances(&query, page).await).await)
        .await?;
    if ui.format == OutputFormat::Yaml {
        let manifests: Vec<_> = instances.iter().map(InstanceManifest::from).collect();
        ui.print(documents::to_yaml(&manifests)?.trim_end())?;
    } else if !ui.is_for_people() {
        ui.print_record(&instances)?;
    } else if instances.is_empty() && is_filtered {
        ui.note("No instances are like that.");
    } else if instances.is_empty() {
        let place = namespace.as_ref().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
        ui.note(format_args!("No instances{place} yet.\n\n  {}   make one", ui.err.cyan("toygres create demo")));
    } else {
        ui.print(list_table(ui, &instances))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list_table(ui: &Ui, instances: &[Instance]) -> String {
    let now = Utc::now();
    // A column that says `default` on every line says nothing.
    let default = Namespace::default();
    let with_namespace = instances.iter().any(|instance| instance.namespace != default.as_str());
    let with_platform = instances.iter().any(|instance| instance.spec.platform != PlatformName::Local);
    let mut headers = vec!["NAME", "VERSION", "STATE", "ENDPOINT", "AGE"];
    if with_platform {
        headers.insert(1, "PLATFORM");
    }
    if with_namespace {
        headers.insert(0, "NAMESPACE");
    }
    let row = |instance: &Instance| {
        let mut row = vec![
            Cell::new(&instance.name),
            Cell::new(display::version(instance)),
            display::state_cell(ui.out, instance),
            Cell::new(display::endpoint(instance).unwrap_or_else(|| "-".into())),
            Cell::new(age(instance.created_at, now)),
        ];
        if with_platform {
            row.insert(1, Cell::new(instance.spec.platform));
        }
        if with_namespace {
            row.insert(0, Cell::new(&instance.namespace));
        }
        row
    };
    display::table(ui, &headers, &[], instances.iter().map(row).collect())
}

pub async fn get(name: InstanceName, session: &mut Session<'_>) -> Outcome {
    let key = session.key(name);
    let instance = session.call(async |client: &Client| client.instance(&key).await).await?;
    let ui = session.ui;
    if ui.format == OutputFormat::Yaml {
        ui.print(documents::to_yaml(&[InstanceManifest::from(&instance)])?.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    if !ui.is_for_people() {
        ui.print_record(&instance)?;
        return Ok(ExitCode::SUCCESS);
    }
    ui.print(details(ui, &instance))?;
    if instance.state == InstanceState::Failed {
        let (name, flags) = (&instance.name, Namespace::flag(&instance.namespace));
        ui.note(format_args!("\n  {}     its PostgreSQL log", ui.err.cyan(format_args!("toygres logs {name}{flags}"))));
        ui.note(format_args!("  {}      why it failed, and what to do", ui.err.cyan(format_args!("toygres why {name}{flags}"))));
        ui.note(format_args!("  {}    try again what failed", ui.err.cyan(format_args!("toygres start {name}{flags}"))));
    }
    Ok(ExitCode::SUCCESS)
}

fn details(ui: &Ui, instance: &Instance) -> String {
    let style = ui.out;
    let now = Utc::now();
    let status = &instance.status;
    let state = display::state(instance);
    let state = match (instance.state, state.as_str()) {
        (InstanceState::Running, "running") => style.green(state),
        (InstanceState::Running, _) if status.health_status == Some(HealthStatus::Degraded) => style.yellow(state),
        (InstanceState::Running | InstanceState::Failed, _) => style.red(state),
        _ => style.yellow(state),
    };
    let spec = &instance.spec;
    let storage = match spec.platform {
        PlatformName::Local => format!("{} (noted, not enforced on this platform)", spec.storage_size_gb),
        PlatformName::Kubernetes => spec.storage_size_gb.to_string(),
    };
    let mut fields = vec![
        ("Namespace", instance.namespace.clone()),
        ("Version", format!("PostgreSQL {}", display::version(instance))),
        ("Platform", spec.platform.to_string()),
        ("Owner", format!("{} of the database {}", spec.owner, spec.database)),
        ("Storage", storage),
        ("Created", format!("{} ({} ago)", moment(instance.created_at), age(instance.created_at, now))),
    ];
    if !spec.extensions.is_empty() {
        fields.push(("Extensions", spec.extensions.iter().collect::<Vec<_>>().join(", ")));
    }
    fields.extend(spec.cpu.iter().map(|cpu| ("CPU", cpu.to_string())));
    fields.extend(spec.memory.iter().map(|memory| ("Memory", memory.to_string())));
    fields.extend(spec.storage_class.iter().map(|class| ("Storage class", class.to_string())));
    let images = status.members.iter().filter_map(|member| member.image.clone());
    fields.extend(images.map(|image| (if spec.platform == PlatformName::Local { "Programs" } else { "Image" }, image)));
    for member in status.members.iter().filter(|member| !member.derived.is_empty()) {
        let settings: Vec<_> = member.derived.iter().map(|(name, value)| format!("{name} {value}")).collect();
        fields.push(("Derived", settings.join(", ")));
    }
    if spec.platform == PlatformName::Kubernetes {
        fields.push(("Reached from", if spec.use_load_balancer { "anywhere" } else { "inside the cluster" }.to_owned()));
    }
    if !spec.labels.is_empty() {
        let labels: Vec<_> = spec.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        fields.push(("Labels", labels.join(", ")));
    }
    if spec.delete_protection {
        fields.push(("Protected", "from deletion".to_owned()));
    }
    fields.push(("Generation", generation(instance)));
    fields.extend(display::endpoint(instance).map(|endpoint| ("Endpoint", endpoint)));
    fields.extend(status.ip_connection_string.clone().map(|uri| ("URI", uri)));
    fields.extend(status.dns_connection_string.clone().map(|uri| ("DNS URI", uri)));
    let reasons = status.health_reasons.iter().map(|reason| format!("\n  {} {}", style.dim("|"), reason.message));
    let reasons: String = reasons.collect();
    let mut text = format!("{}  {state}{reasons}\n\n{}", style.bold(&instance.name), display::fields(ui, &fields));
    if let Some(failure) = &status.failure {
        text.push_str(&format!("\n\n{}", display::failure(style, failure)));
    }
    text
}

/// The spec's generation, and whether the platform was brought to it.
fn generation(instance: &Instance) -> String {
    match instance.observed_generation < instance.generation {
        true => format!("{} (the platform was last brought to {})", instance.generation, instance.observed_generation),
        false => instance.generation.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use toygres_models::{Failure, FailureKind, StepFailure};

    use super::*;
    use crate::testing;

    #[test]
    fn the_list_names_namespaces_only_where_they_tell_something() {
        let mut instances = vec![testing::instance("demo"), testing::instance("other")];
        let text = list_table(&testing::ui(), &instances);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "NAME    VERSION   STATE     ENDPOINT          AGE");
        assert_eq!(lines[1], "demo    15.18     running   127.0.0.1:20001   1m");
        instances[0].spec.platform = PlatformName::Kubernetes;
        assert!(list_table(&testing::ui(), &instances).starts_with("NAME    PLATFORM     VERSION"));
        instances[1].namespace = "team".into();
        assert!(list_table(&testing::ui(), &instances).starts_with("NAMESPACE   NAME"));
    }

    #[test]
    fn a_failed_instance_shows_its_evidence() {
        let mut instance = testing::instance("demo");
        instance.state = InstanceState::Failed;
        let failure = Failure::permanent(FailureKind::StartFailed, "the server ended").with_evidence(vec!["FATAL:  no".into()]);
        instance.status.failure = Some(StepFailure { step: "deploy-postgres".into(), failure });
        let text = details(&testing::ui(), &instance);
        assert!(text.starts_with("demo  failed\n"), "{text}");
        assert!(text.ends_with("Failed in deploy-postgres: the server ended\n  | FATAL:  no"), "{text}");
    }
}

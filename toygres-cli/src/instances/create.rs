//! `toygres create`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use toygres_client::Client;
use toygres_client::resources::InstanceManifest;
use toygres_models::password::MAX_PASSWORD_LENGTH;
use toygres_models::store::{Instance, Operation};
use toygres_models::{
    Cpu, DatabaseName, DnsLabel, InstanceKey, InstanceName, Memory, Namespace, OperationState, Password, PlatformName,
    PostgresVersion, RoleName, StorageClass, StorageSize,
};

use crate::access::secret_input;
use crate::error::{CliError, Outcome};
use crate::operations::watch;
use crate::output::display;
use crate::output::ui::Ui;
use crate::session::Session;
use crate::settings::Settings;
use crate::values::{
    cpu, database_name, dns_label, instance_name, label, memory, platform, postgres_version, role_name, storage_class,
    storage_size,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres create demo
  toygres create demo --version 17 --storage 20
  toygres create demo --platform kubernetes --cpu 2 --memory 4Gi
  printf %s \"$PASSWORD\" | toygres create demo --password-stdin
  toygres create demo --no-wait -o json

The same create twice is the same instance: it can be repeated safely.
With -o json or yaml the instance is printed; with --no-wait, the operation.")]
pub struct Create {
    /// Name: 1 to 50 lowercase letters, digits and '-', a letter first
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// PostgreSQL version, such as 17 or 17.4 [default: the newest one at hand]
    #[arg(long, value_name = "VERSION", value_parser = postgres_version)]
    pub version: Option<PostgresVersion>,

    /// The role that applications log in as; it is no superuser [default: app]
    #[arg(long, value_name = "ROLE", value_parser = role_name)]
    pub owner: Option<RoleName>,

    /// The database that is made for the owner [default: app]
    #[arg(long, value_name = "DATABASE", value_parser = database_name)]
    pub database: Option<DatabaseName>,

    /// Storage in GB [default: 10]
    #[arg(long, value_name = "GB", value_parser = storage_size, allow_hyphen_values = true)]
    pub storage: Option<StorageSize>,

    /// Where it runs: local (a server process) or kubernetes (a pod)
    /// [default: the server's first, local] [env: TOYGRES_PLATFORM]
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    pub platform: Option<PlatformName>,

    /// On Kubernetes: give it a public address, by a load balancer
    #[arg(long)]
    pub public: bool,

    /// On Kubernetes: label of its public DNS name (Azure: LABEL.REGION.cloudapp.azure.com)
    #[arg(long, value_name = "LABEL", requires = "public", value_parser = dns_label)]
    pub dns_label: Option<DnsLabel>,

    /// On Kubernetes: processor time that is its own, such as 500m or 2
    #[arg(long, value_name = "AMOUNT", value_parser = cpu)]
    pub cpu: Option<Cpu>,

    /// On Kubernetes: memory that is its own, such as 512Mi or 4Gi
    #[arg(long, value_name = "AMOUNT", value_parser = memory)]
    pub memory: Option<Memory>,

    /// On Kubernetes: StorageClass of its volume [default: the cluster's]
    #[arg(long, value_name = "NAME", value_parser = storage_class)]
    pub storage_class: Option<StorageClass>,

    /// On Kubernetes: let a drain of its node stop it without asking
    #[arg(long)]
    pub no_disruption_budget: bool,

    /// A label, for people to sort instances by; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,

    /// Refuse to delete it until that is taken back
    #[arg(long)]
    pub delete_protection: bool,

    /// Read the owner's password from standard input instead of generating one
    #[arg(long)]
    pub password_stdin: bool,

    /// Return as soon as the work is under way
    #[arg(long)]
    pub no_wait: bool,
}

pub async fn run(arguments: Create, settings: &Settings, ui: &Ui) -> Outcome {
    let password = match arguments.password_stdin {
        true => Some(check_password(secret_input::read("password", MAX_PASSWORD_LENGTH).await?)?),
        false => None,
    };
    let labels: BTreeMap<String, String> = arguments.labels.into_iter().collect();
    let mut session = Session::open(settings, ui).await?;
    let key = session.key(arguments.name);
    let mut body = InstanceManifest { password, ..InstanceManifest::of(key.name.to_string()) };
    body.set("platform", arguments.platform.or(settings.platform).map(PlatformName::as_str));
    body.set("postgres_version", arguments.version.map(|version| version.to_string()));
    body.set("owner", arguments.owner.map(String::from));
    body.set("database", arguments.database.map(String::from));
    body.set("storage_size_gb", arguments.storage.map(|size| size.gb()));
    body.set("use_load_balancer", arguments.public.then_some(true));
    body.set("dns_label", arguments.dns_label.map(String::from));
    body.set("cpu", arguments.cpu.map(String::from));
    body.set("memory", arguments.memory.map(String::from));
    body.set("storage_class", arguments.storage_class.map(String::from));
    body.set("disruption_budget", arguments.no_disruption_budget.then_some(false));
    body.set("labels", (!labels.is_empty()).then(|| json!(labels)));
    body.set("delete_protection", arguments.delete_protection.then_some(true));
    let create = async |client: &Client| client.create_instance(&key.namespace, &body).await;
    let submitted = watch::submit(&mut session, &key, create).await?;
    if arguments.no_wait {
        return watch::print_started(ui, &submitted.operation);
    }
    // The same was asked for before: then its steps were seen before, too.
    let was_there = !submitted.is_new && submitted.operation.state.is_final();
    let operation = match submitted.operation {
        operation if was_there => operation,
        operation => watch::until_final(&mut session, operation).await?,
    };
    let instance = session.call(async |client: &Client| client.instance(&key).await).await;
    if operation.state != OperationState::Succeeded {
        if let (Ok(instance), false) = (instance, ui.is_for_people()) {
            ui.print_record(&instance)?;
        }
        return Err(watch::failed(&operation));
    }
    let instance = instance?;
    if !ui.is_for_people() {
        ui.print_record(&instance)?;
        return Ok(ExitCode::SUCCESS);
    }
    ui.print(ui.out.bold(summary(&instance, &operation, was_there)))?;
    next_steps(ui, &key, &instance, arguments.storage.is_some());
    Ok(ExitCode::SUCCESS)
}

fn summary(instance: &Instance, operation: &Operation, was_there: bool) -> String {
    let (name, version) = (&instance.name, display::version(instance));
    let place = display::endpoint(instance).map(|endpoint| format!(" on {endpoint}")).unwrap_or_default();
    let (is, took) = match operation.finished_at {
        Some(finished) if !was_there => {
            ("is ready", format!(" ({})", display::seconds(display::between(operation.created_at, finished))))
        }
        _ => ("is there already", String::new()),
    };
    format!("{name} {is}: PostgreSQL {version}{place}{took}")
}

fn next_steps(ui: &Ui, key: &InstanceKey, instance: &Instance, storage_was_given: bool) {
    let flags = Namespace::flag(key.namespace.as_str());
    // Before the name: what follows it is psql's.
    let psql = format!("toygres psql{flags} {}", key.name);
    let connect = format!("toygres connect{flags} {}", key.name);
    let width = connect.len();
    ui.note(format_args!("\n  {}   open a SQL session", ui.err.cyan(format_args!("{psql:width$}"))));
    ui.note(format_args!("  {}   print the connection URI", ui.err.cyan(connect)));
    if storage_was_given && instance.spec.platform == PlatformName::Local {
        let size = instance.spec.storage_size_gb;
        let note = format!("The {size} are noted, not enforced: on this machine an instance can use whatever its disk has.");
        ui.note(format_args!("\n  {}", ui.err.dim(note)));
    }
}

fn check_password(text: String) -> Result<String, CliError> {
    Password::check_literal(&text)
        .map_err(|invalid| CliError::usage(format!("the password on standard input {}", invalid.problem)))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use toygres_models::OperationKind;

    use super::*;
    use crate::testing;

    #[test]
    fn a_password_that_could_not_log_in_is_wrong_usage_and_not_repeated() {
        let long = "hunter2".repeat(1_500);
        for bad in ["", "hunter2\n", "hunter2\0", &long, "secret://hunter2"] {
            let error = check_password(bad.into()).unwrap_err();
            assert_eq!(error.exit_status, 2);
            assert!(!error.message.contains("hunter2"), "{error:?}");
        }
        assert_eq!(check_password(" two words ".into()).unwrap(), " two words ");
    }

    #[test]
    fn the_summary_says_what_where_and_how_long() {
        let (instance, operation) = (testing::instance("demo"), testing::operation(OperationKind::CREATE));
        assert_eq!(summary(&instance, &operation, false), "demo is ready: PostgreSQL 15.18 on 127.0.0.1:20001 (0.31s)");
        assert_eq!(summary(&instance, &operation, true), "demo is there already: PostgreSQL 15.18 on 127.0.0.1:20001");
    }
}

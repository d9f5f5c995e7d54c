//! `toygres namespaces`: what each uses and may use.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use comfy_table::Cell;
use toygres_client::resources::QuotaManifest;
use toygres_client::{Client, ClientError, all_pages};
use toygres_models::Namespace;
use toygres_models::store::NamespaceRecord;

use crate::error::Outcome;
use crate::output::display;
use crate::output::ui::Ui;
use crate::session::Session;
use crate::values::problem;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres namespaces
  toygres namespaces set-quota shop --max-instances 10 --max-storage 500
  toygres namespaces set-quota shop --max-storage none")]
pub struct Namespaces {
    #[command(subcommand)]
    pub command: Option<NamespacesCommand>,
}

#[derive(Debug, Subcommand)]
pub enum NamespacesCommand {
    /// Show all [the default]
    #[command(visible_alias = "ls")]
    List,
    /// Show one
    Get {
        /// The namespace
        #[arg(value_parser = namespace)]
        name: Namespace,
    },
    /// Set how much a namespace may have; what it has already stays
    SetQuota(SetQuota),
}

#[derive(Debug, Args)]
pub struct SetQuota {
    /// The namespace
    #[arg(value_parser = namespace)]
    pub name: Namespace,

    /// How many instances, or none for no limit [default: as it is]
    #[arg(long, value_name = "NUMBER", value_parser = limit::<i32>, required_unless_present = "max_storage")]
    pub max_instances: Option<Limit<i32>>,

    /// How much storage in GB, or none for no limit [default: as it is]
    #[arg(long, value_name = "GB", value_parser = limit::<i64>)]
    pub max_storage: Option<Limit<i64>>,
}

/// A number, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<T>(pub Option<T>);

fn limit<T: std::str::FromStr + PartialOrd + Default>(text: &str) -> Result<Limit<T>, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    let number = text.parse().ok().filter(|number| *number >= T::default());
    number.map(|number| Limit(Some(number))).ok_or_else(|| "give a whole number, 0 or more, or none".into())
}

fn namespace(text: &str) -> Result<Namespace, String> {
    text.parse().map_err(problem)
}

pub async fn run(arguments: Namespaces, session: &mut Session<'_>) -> Outcome {
    match arguments.command.unwrap_or(NamespacesCommand::List) {
        NamespacesCommand::List => list(session).await,
        NamespacesCommand::Get { name } => {
            let namespace = session.call(async |client: &Client| client.namespace(&name).await).await?;
            show(session.ui, &namespace)
        }
        NamespacesCommand::SetQuota(arguments) => {
            let namespace = session.call(async |client: &Client| set_quota(&arguments, client).await).await?;
            show(session.ui, &namespace)
        }
    }
}

async fn list(session: &mut Session<'_>) -> Outcome {
    let namespaces =
        session.call(async |client: &Client| all_pages(None, async |page: &_| client.namespaces(page).await).await).await?;
    let ui = session.ui;
    if !ui.is_for_people() {
        ui.print_record(&namespaces)?;
    } else if namespaces.is_empty() {
        ui.note("No namespaces yet: one comes to be with its first instance, or its quota.");
    } else {
        ui.print(table(ui, &namespaces))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(ui: &Ui, namespace: &NamespaceRecord) -> Outcome {
    if ui.is_for_people() {
        ui.print(table(ui, std::slice::from_ref(namespace)))?;
    } else {
        ui.print_record(namespace)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What isn't given stays as it is, unless somebody else changes it meanwhile.
async fn set_quota(arguments: &SetQuota, client: &Client) -> Result<NamespaceRecord, ClientError> {
    let (mut quota, revision) = match client.namespace(&arguments.name).await {
        Ok(NamespaceRecord { max_instances, max_storage_gb, revision, .. }) => {
            (QuotaManifest { max_instances, max_storage_gb }, revision)
        }
        Err(ClientError::Refused(problem)) if problem.name() == "not_found" => (QuotaManifest::default(), 0),
        Err(error) => return Err(error),
    };
    if let Some(Limit(max)) = arguments.max_instances {
        quota.max_instances = max;
    }
    if let Some(Limit(max)) = arguments.max_storage {
        quota.max_storage_gb = max;
    }
    client.set_quota(&arguments.name, revision, &quota).await
}

fn table(ui: &Ui, namespaces: &[NamespaceRecord]) -> String {
    let of = |max: Option<i64>| max.map(|max| format!(" of {max}")).unwrap_or_default();
    let row = |namespace: &NamespaceRecord| {
        vec![
            Cell::new(&namespace.name),
            Cell::new(format!("{}{}", namespace.instances, of(namespace.max_instances.map(i64::from)))),
            Cell::new(format!("{}{} GB", namespace.storage_gb, of(namespace.max_storage_gb))),
        ]
    };
    display::table(ui, &["NAMESPACE", "INSTANCES", "STORAGE"], &[], namespaces.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn use_and_quota_stand_side_by_side() {
        let quota = NamespaceRecord {
            name: "shop".into(),
            instances: 3,
            storage_gb: 30,
            max_instances: Some(10),
            max_storage_gb: None,
            revision: 1,
        };
        assert_eq!(table(&testing::ui(), &[quota]), "NAMESPACE   INSTANCES   STORAGE\nshop        3 of 10     30 GB");
    }

    #[test]
    fn a_limit_is_a_number_or_none() {
        assert_eq!((limit::<i32>("none").unwrap(), limit("0").unwrap()), (Limit(None), Limit(Some(0_i64))));
        for bad in ["", "-1", "1.5", "None", "99999999999"] {
            assert!(limit::<i32>(bad).is_err(), "{bad} was taken");
        }
    }
}

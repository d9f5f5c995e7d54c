//! `toygres adopt`.

use std::process::ExitCode;

use clap::Args;
use comfy_table::Cell;
use toygres_client::Client;
use toygres_models::InstanceName;

use super::power;
use crate::error::Outcome;
use crate::operations::watch;
use crate::output::display;
use crate::output::ui::Ui;
use crate::session::Session;
use crate::settings::Settings;
use crate::values::instance_name;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres adopt                 list what is on a platform and not on record
  toygres adopt demo            take demo on record, with its data, address and password
  toygres adopt demo -n team

An instance carries its spec beside its data. So a server whose metadata store was lost can take its
instances on record again. It needs a token of the role admin for every namespace.")]
pub struct Adopt {
    /// The instance's name; without it, those that can be adopted are listed
    #[arg(value_parser = instance_name)]
    pub name: Option<InstanceName>,

    /// Return as soon as the work is under way
    #[arg(long)]
    pub no_wait: bool,
}

pub async fn run(arguments: Adopt, settings: &Settings, ui: &Ui) -> Outcome {
    let mut session = Session::open(settings, ui).await?;
    let Some(name) = arguments.name else { return list(&mut session).await };
    let key = session.key(name);
    let submitted = watch::submit(&mut session, &key, async |client: &Client| client.adopt_instance(&key).await).await?;
    power::finish(&mut session, &key, submitted.operation, arguments.no_wait, "adopted").await
}

async fn list(session: &mut Session<'_>) -> Outcome {
    let ui = session.ui;
    let found = session.call(async |client: &Client| client.adoptable_instances().await).await?.items;
    if !ui.is_for_people() {
        ui.print_record(&found)?;
    } else if found.is_empty() {
        ui.note("Every instance that is on a platform is on record.");
    } else {
        let row = |instance: &toygres_client::resources::AdoptableInstance| {
            let spec = &instance.spec;
            vec![
                Cell::new(&instance.namespace),
                Cell::new(&instance.name),
                Cell::new(spec.platform),
                Cell::new(spec.postgres_version),
                Cell::new(spec.storage_size_gb),
            ]
        };
        let rows = found.iter().map(row).collect();
        ui.print(display::table(ui, &["NAMESPACE", "NAME", "PLATFORM", "VERSION", "STORAGE"], &[], rows))?;
        ui.note(format_args!("\n  {}   take one on record, with its data", ui.err.cyan("toygres adopt NAME -n NAMESPACE")));
    }
    Ok(ExitCode::SUCCESS)
}

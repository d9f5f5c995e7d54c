//! `toygres psql`: a SQL session in an instance.

use clap::Args;
use toygres_models::InstanceName;

use super::client_program;
use super::route::{self, Login};
use crate::error::Outcome;
use crate::output::ui::Ui;
use crate::session::Session;
use crate::settings::Settings;
use crate::values::instance_name;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres psql demo
  toygres psql demo -c 'select version()'
  toygres psql demo -f schema.sql
  toygres psql --superuser demo
  toygres psql --namespace team demo        (toygres's own options come before the name)

The password reaches psql by a file that only you can read.
The exit status is psql's.")]
pub struct Psql {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// For admins: as the superuser postgres
    #[arg(long)]
    pub superuser: bool,

    /// Everything after the name goes to psql as it is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PSQL ARGUMENTS")]
    pub arguments: Vec<std::ffi::OsString>,
}

pub async fn run(arguments: Psql, settings: &Settings, ui: &Ui) -> Outcome {
    // Any psql speaks with any server.
    let program = client_program::find("psql", 0, settings)
        .await
        .map_err(|error| error.hint(format!("any other client can use what `toygres connect {}` prints", arguments.name)))?;
    let mut session = Session::open(settings, ui).await?;
    let key = session.key(arguments.name);
    // Held until psql has ended.
    let route = route::any(&mut session, &key, Login::asked(arguments.superuser)).await?;
    let ended = client_program::run(&program, &arguments.arguments, &route.connection).await;
    route.close().await;
    ended
}

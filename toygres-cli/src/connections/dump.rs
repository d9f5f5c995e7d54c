//! `toygres dump`: an instance's database as a file, by pg_dump.

use clap::Args;
use toygres_client::Client;
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
  toygres dump demo > demo.sql
  toygres dump demo -Fc -f demo.dump         (pg_restore reads it)
  toygres psql other -f demo.sql             (into another instance)

A pg_dump of the instance's version or a later one is looked for on this machine. The exit status is pg_dump's.")]
pub struct Dump {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// Everything after the name goes to pg_dump as it is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PG_DUMP ARGUMENTS")]
    pub arguments: Vec<std::ffi::OsString>,
}

pub async fn run(arguments: Dump, settings: &Settings, ui: &Ui) -> Outcome {
    let mut session = Session::open(settings, ui).await?;
    let key = session.key(arguments.name);
    let instance = session.call(async |client: &Client| client.instance(&key).await).await?;
    // An older pg_dump refuses a newer server.
    let program = client_program::find("pg_dump", instance.spec.postgres_version.major(), settings).await?;
    let route = route::any(&mut session, &key, Login::Owner).await?;
    let ended = client_program::run(&program, &arguments.arguments, &route.connection).await;
    route.close().await;
    ended
}

//! What can be typed: the commands, each with its own arguments.

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use toygres_models::{InstanceName, PlatformName};

use crate::access::context::ContextCommand;
use crate::access::login::Login;
use crate::access::namespaces::Namespaces;
use crate::access::token::TokenCommand;
use crate::connections::connect::Connect;
use crate::connections::dump::Dump;
use crate::connections::psql::Psql;
use crate::history::events::Events;
use crate::history::health::Health;
use crate::history::logs::Logs;
use crate::history::top::Top;
use crate::history::why::Why;
use crate::instances::adopt::Adopt;
use crate::instances::apply::Apply;
use crate::instances::create::Create;
use crate::instances::delete::Delete;
use crate::instances::diff::Diff;
use crate::instances::extension::Extension;
use crate::instances::list::List;
use crate::instances::power::Target;
use crate::operations::Operations;
use crate::server::ServerCommand;
use crate::settings::SettingFlags;
use crate::values::{instance_name, platform};

/// PostgreSQL as a service that you run yourself
#[derive(Debug, Parser)]
#[command(
    name = "toygres",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
First steps:
  toygres create demo          make a PostgreSQL instance
  toygres psql demo            open a SQL session in it
  toygres connect demo         print its connection URI, for programs
  toygres delete demo          remove it and its data

A command that needs the server starts one in the background if none runs on this machine.
`toygres doctor` tells what is missing here, if anything."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    #[command(flatten)]
    pub settings: SettingFlags,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create an instance, and wait until it answers SQL
    Create(Create),
    /// List instances
    #[command(visible_alias = "ls")]
    List(List),
    /// Show one instance
    Get {
        /// The instance's name
        #[arg(value_parser = instance_name)]
        name: InstanceName,
    },
    /// Make instances what a file says: create what is missing, change what may change
    Apply(Apply),
    /// Show what `apply` would change; the exit status tells whether there is anything
    Diff(Diff),
    /// Print how to connect to an instance, its password included
    Connect(Connect),
    /// Open a SQL session in an instance, by the program psql
    Psql(Psql),
    /// Write an instance's database as SQL, by the program pg_dump
    Dump(Dump),
    /// Take an instance on record again whose record was lost, with its data; or list those
    Adopt(Adopt),
    /// Stop an instance's server; data, address and password stay
    Stop(Target),
    /// Start an instance that is stopped, and make again what is missing around its data
    Start(Target),
    /// Restart an instance's server
    Restart(Target),
    /// Give an instance's owner a new password
    RotatePassword(Target),
    /// Make and remove extensions in an instance's database
    #[command(subcommand, visible_alias = "extensions")]
    Extension(Extension),
    /// Delete an instance and all its data
    Delete(Delete),
    /// Show what happened, and what happens
    Events(Events),
    /// Show how instances are: healthy, degraded, unhealthy, and why
    Health(Health),
    /// Show the load of instances as it goes; of one, its sessions, which can be cancelled or ended
    Top(Top),
    /// Tell what is wrong with an instance, how that came, and what to do
    Why(Why),
    /// List what was done and is being done; watch, cancel or retry it
    #[command(visible_alias = "ops")]
    Operations(Operations),
    /// Print the end of an instance's PostgreSQL log, or follow it
    Logs(Logs),
    /// List the PostgreSQL versions that are available
    Versions {
        /// Where: local or kubernetes [default: the server's first] [env: TOYGRES_PLATFORM]
        #[arg(long, value_name = "PLATFORM", value_parser = platform)]
        platform: Option<PlatformName>,
    },
    /// Make and revoke tokens, with which other people and programs use the API
    #[command(subcommand, visible_alias = "tokens")]
    Token(TokenCommand),
    /// Show what each namespace uses and may use, or set its quota
    Namespaces(Namespaces),
    /// Use a server elsewhere from now on: check a token there, and keep both
    Login(Login),
    /// Forget the server that is used now, and the token for it
    Logout,
    /// Choose among the servers that you logged in to
    #[command(subcommand)]
    Context(ContextCommand),
    /// Tell what is missing on this machine, and how to get it
    Doctor,
    /// Start, stop and look at the server on this machine
    #[command(subcommand)]
    Server(ServerCommand),
    /// Print the JSON Schema of the files that `apply` takes, for editors
    Schema,
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  toygres completions bash > ~/.local/share/bash-completion/completions/toygres
  toygres completions zsh > \"${fpath[1]}/_toygres\"
  toygres completions fish > ~/.config/fish/completions/toygres.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"toygres").chain(arguments))
    }

    #[test]
    fn the_definition_holds() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_names_versions_and_sizes_are_wrong_usage() {
        let long = "a".repeat(64);
        for name in ["Demo", &long, "..", "ünï", "", "null", "toygres-x", "a b", "-x"] {
            for command in ["create", "get", "connect", "psql", "delete", "events", "why", "logs"] {
                let error = parse(&[command, "--", name]).unwrap_err();
                assert_eq!(error.exit_code(), 2, "{command} {name:?}");
            }
        }
        for (flag, value) in [
            ("--version", "13"),
            ("--version", "latest"),
            ("--storage", "0"),
            ("--storage", "-1"),
            ("--storage", "1000000000"),
            ("--storage", "99999999999999999999"),
            ("--storage", "1.5"),
            ("--storage", ""),
            ("--platform", "docker"),
            ("--cpu", "lots"),
            ("--memory", "2"),
            ("--storage-class", "a b"),
        ] {
            let error = parse(&["create", "demo", flag, value]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flag} {value}");
            assert!(error.to_string().contains(&format!("invalid value '{value}' for '{flag}")) || value.is_empty(), "{error}");
        }
    }

    #[test]
    fn an_uppercase_name_is_answered_with_the_lowercase_one() {
        let error = parse(&["create", "Demo"]).unwrap_err().to_string();
        assert!(error.contains("did you mean \"demo\"?"), "{error}");
    }

    #[test]
    fn what_follows_the_name_is_psqls() {
        let Command::Psql(psql) =
            parse(&["psql", "-n", "team", "demo", "-c", "select 1", "-n", "--version", "x"]).unwrap().command
        else {
            panic!("another command");
        };
        assert_eq!(psql.arguments, ["-c", "select 1", "-n", "--version", "x"]);
    }
}

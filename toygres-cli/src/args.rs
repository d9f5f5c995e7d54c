//! What can be typed. Values that have a type in `toygres_models` are checked here, before
//! anything else happens.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use toygres_models::{
    Cpu, DnsLabel, InstanceName, InstanceState, LabelSelector, Labels, Memory, PlatformName, PostgresVersion, StorageClass,
    StorageSize,
};
use toygres_server::settings::SettingFlags;

use crate::access::context::ContextCommand;
use crate::access::login::Login;
use crate::access::namespaces::Namespaces;
use crate::access::token::TokenCommand;
use crate::history::events::Events;
use crate::history::operations::Operations;
use crate::history::why::Why;
use crate::instances::apply::Apply;
use crate::instances::diff::Diff;

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
    /// Delete an instance and all its data
    Delete(Delete),
    /// Show what happened, and what happens
    Events(Events),
    /// Tell what is wrong with an instance, how that came, and what to do
    Why(Why),
    /// List what was done and is being done; watch, cancel or retry it
    #[command(visible_alias = "ops")]
    Operations(Operations),
    /// Print the end of an instance's PostgreSQL log, or follow it
    Logs(Logs),
    /// List the PostgreSQL versions to be had
    Versions {
        /// Where: local or kubernetes [default: the server's first] [env: TOYGRES_PLATFORM]
        #[arg(long, value_name = "PLATFORM", value_parser = platform)]
        platform: Option<PlatformName>,
    },
    /// Make and revoke tokens, by which other people and programs are let in
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

    /// A label, for people to sort instances by; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,

    /// Refuse to delete it until that is taken back
    #[arg(long)]
    pub delete_protection: bool,

    /// Read the superuser's password from standard input instead of generating one
    #[arg(long)]
    pub password_stdin: bool,

    /// Return as soon as the work is under way
    #[arg(long)]
    pub no_wait: bool,
}

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

/// A form to print a connection in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConnectFormat {
    /// postgresql://…, which nearly every driver takes
    Uri,
    /// PGHOST, PGPASSWORD and the like as shell exports
    Env,
    /// A psql command, ready to be pasted
    Psql,
    /// jdbc:postgresql://…, for Java
    Jdbc,
    /// Each part by itself
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres connect demo
  pg_dump \"$(toygres connect demo)\" > demo.sql
  eval \"$(toygres connect demo --format env)\"
  toygres connect demo --forward --port 5432     (on Kubernetes, from outside the cluster)

Every form holds the password: mind where it is shown and stored. A URI in a command's arguments
can be read by other users of the machine while the command runs; `env` and `toygres psql` avoid it.")]
pub struct Connect {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// The form to print
    #[arg(long, value_enum, default_value_t = ConnectFormat::Uri)]
    pub format: ConnectFormat,

    /// On Kubernetes: forward a port of this machine to it, through the cluster's API server, until
    /// Ctrl-C
    #[arg(long)]
    pub forward: bool,

    /// The port to forward [default: any that is free]
    #[arg(long, value_name = "PORT", requires = "forward", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres psql demo
  toygres psql demo -c 'select version()'
  toygres psql demo --dbname app -f schema.sql
  toygres psql --namespace team demo        (toygres's own options come before the name)

The password reaches psql by a file that only you can read, which is removed afterwards.
The exit status is psql's.")]
pub struct Psql {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// Everything after the name goes to psql as it is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PSQL ARGUMENTS")]
    pub arguments: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres delete demo
  toygres delete demo --yes

On a terminal it tells what will be lost and asks for the name; elsewhere --yes is needed.
With -o json or yaml the operation is printed.")]
pub struct Delete {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// Don't ask
    #[arg(short, long)]
    pub yes: bool,

    /// Return as soon as the work is under way
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres logs demo
  toygres logs demo --follow
  toygres logs demo --since 10m
  toygres logs demo --since 2026-01-31T12:00:00Z --tail 1000

Following goes on over restarts of the instance and of toygres, until the instance is deleted or Ctrl-C.")]
pub struct Logs {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// Go on with what the server says from now on
    #[arg(short, long)]
    pub follow: bool,

    /// Only what was logged since: so long ago, such as 10m or 2h, or a time, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<DateTime<Utc>>,

    /// Only so many lines from the end of what there is [default: 100, without --since]
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Start the server in the background, unless it runs already
    Start,
    /// Stop the server; instances keep running
    Stop,
    /// Tell whether the server runs, and where; exit status 1 if it doesn't
    Status,
    /// Run the server in the foreground, until Ctrl-C or SIGTERM
    Run {
        /// Tell the process that started it, by lines of JSON on standard output, how it goes.
        #[arg(long, hide = true)]
        background: bool,
    },
}

/// A label by itself: whether all of them go together is checked by the server.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("give KEY=VALUE, such as team=a")?;
    let label = (key.to_owned(), value.to_owned());
    Labels::try_from(BTreeMap::from([label.clone()])).map_err(problem)?;
    Ok(label)
}

fn label_selector(text: &str) -> Result<LabelSelector, String> {
    text.parse().map_err(problem)
}

fn instance_state(text: &str) -> Result<InstanceState, String> {
    text.parse().map_err(problem)
}

pub fn instance_name(text: &str) -> Result<InstanceName, String> {
    text.parse().map_err(problem)
}

fn platform(text: &str) -> Result<PlatformName, String> {
    text.parse().map_err(problem)
}

fn dns_label(text: &str) -> Result<DnsLabel, String> {
    text.parse().map_err(problem)
}

fn cpu(text: &str) -> Result<Cpu, String> {
    text.parse().map_err(problem)
}

fn memory(text: &str) -> Result<Memory, String> {
    text.parse().map_err(problem)
}

fn storage_class(text: &str) -> Result<StorageClass, String> {
    text.parse().map_err(problem)
}

fn postgres_version(text: &str) -> Result<PostgresVersion, String> {
    text.parse().map_err(problem)
}

fn since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let ago = humantime::parse_duration(text).ok().and_then(|ago| TimeDelta::from_std(ago).ok());
    ago.and_then(|ago| Utc::now().checked_sub_signed(ago))
        .ok_or_else(|| "give how long ago, such as 10m or 2h, or a time with its zone, such as 2026-01-31T12:00:00Z".to_owned())
}

fn storage_size(text: &str) -> Result<StorageSize, String> {
    let digits = text.strip_suffix("GB").or_else(|| text.strip_suffix("gb")).unwrap_or(text).trim_end();
    let gb: i64 = digits.parse().map_err(|_| "give a whole number of GB, such as 10".to_owned())?;
    StorageSize::try_from(gb).map_err(problem)
}

/// An [`Invalid`](toygres_models::Invalid) without its field: clap names the argument.
pub fn problem(invalid: toygres_models::Invalid) -> String {
    invalid.problem
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
    fn sizes_may_have_their_unit() {
        for text in ["10", "10GB", "10 GB", "10gb"] {
            assert_eq!(storage_size(text).unwrap().gb(), 10);
        }
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

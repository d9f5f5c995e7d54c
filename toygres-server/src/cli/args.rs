//! What can be typed. Values that have a type in `toygres_models` are checked here, before
//! anything else happens.

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use toygres_models::{Cpu, DnsLabel, InstanceName, Memory, PlatformName, PostgresVersion, StorageClass, StorageSize};
use uuid::Uuid;

use crate::settings::SettingFlags;

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
    /// Print how to connect to an instance, its password included
    Connect(Connect),
    /// Open a SQL session in an instance, by the program psql
    Psql(Psql),
    /// Delete an instance and all its data
    Delete(Delete),
    /// Show what happened to an instance, and why
    Events(Events),
    /// Show the operations that created and deleted instances, or watch one
    #[command(visible_alias = "ops")]
    Operations(Operations),
    /// Print the end of an instance's PostgreSQL log
    Logs(Logs),
    /// List the PostgreSQL versions to be had
    Versions {
        /// Where: local or kubernetes [default: the server's first] [env: TOYGRES_PLATFORM]
        #[arg(long, value_name = "PLATFORM", value_parser = platform)]
        platform: Option<PlatformName>,
    },
    /// Tell what is missing on this machine, and how to get it
    Doctor,
    /// Start, stop and look at the server on this machine
    #[command(subcommand)]
    Server(ServerCommand),
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
pub struct Events {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// How many of the latest events to show
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  toygres operations
  toygres operations demo
  toygres operations watch 019ab3f2-7c1e-7d3a-9f54-0c6f1f0f7a11"
)]
pub struct Operations {
    /// Only this instance's
    #[arg(value_parser = instance_name)]
    pub name: Option<InstanceName>,

    /// How many of the latest operations to show
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,

    #[command(subcommand)]
    pub command: Option<OperationsCommand>,
}

#[derive(Debug, Subcommand)]
pub enum OperationsCommand {
    /// Show one operation and its steps
    Get {
        /// The operation's id
        id: Uuid,
    },
    /// Wait for an operation, showing its steps; the exit status tells how it ended
    Watch {
        /// The operation's id
        id: Uuid,
    },
}

#[derive(Debug, Args)]
pub struct Logs {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// How many lines
    #[arg(long, value_name = "LINES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub tail: u32,
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

fn instance_name(text: &str) -> Result<InstanceName, String> {
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

fn storage_size(text: &str) -> Result<StorageSize, String> {
    let digits = text.strip_suffix("GB").or_else(|| text.strip_suffix("gb")).unwrap_or(text).trim_end();
    let gb: i64 = digits.parse().map_err(|_| "give a whole number of GB, such as 10".to_owned())?;
    StorageSize::try_from(gb).map_err(problem)
}

/// An [`Invalid`](toygres_models::Invalid) without its field: clap names the argument.
fn problem(invalid: toygres_models::Invalid) -> String {
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
            for command in ["create", "get", "connect", "psql", "delete", "events", "logs"] {
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

    #[test]
    fn an_operation_command_and_an_instance_are_told_apart() {
        let Command::Operations(operations) = parse(&["operations", "demo", "--limit", "3"]).unwrap().command else {
            panic!("another command");
        };
        assert_eq!((operations.name.unwrap().as_str(), operations.limit), ("demo", 3));
        assert!(parse(&["operations", "watch", "not-an-id"]).is_err());
    }
}

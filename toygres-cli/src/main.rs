//! The program `toygres`: the command line, and the server that it starts.
//!
//! The command line reads what a person typed, talks to a server, prints what came of it.
//!
//! Results go to standard output, everything else to standard error. Exit status: 0 done,
//! 1 failed, 2 wrong usage.

mod access;
mod args;
mod connections;
mod error;
mod history;
mod instances;
mod operations;
mod others_secrets;
mod output;
mod server;
mod session;
mod settings;
#[cfg(test)]
mod testing;
mod values;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use toygres_models::{OperationKind, Power};

use access::{context, login, namespaces, token};
use args::{Cli, Command};
use connections::{connect, dump, psql};
use error::{CliError, Outcome};
use history::{events, health, logs, top, why};
use instances::{adopt, apply, create, delete, diff, extension, list, power, versions};
use output::interrupt::interrupted;
use output::ui::{self, Ui};
use server::{ServerCommand, doctor};
use session::Session;
use settings::Settings;

/// Reads the arguments, does what they say, and tells how it went.
fn main() -> ExitCode {
    // Wrong arguments, and calls for help, end here; clap's exit status for wrong ones is 2.
    let cli = Cli::parse();
    run(cli).unwrap_or_else(|error| {
        ui::print_error(&error);
        ExitCode::from(error.exit_status)
    })
}

fn run(cli: Cli) -> Outcome {
    if let Command::Completions { shell } = cli.command {
        return completions(shell);
    }
    if let Command::Schema = cli.command {
        return schema();
    }
    if matches!(cli.command, Command::Doctor | Command::Server(ServerCommand::Run { .. })) {
        // These two ask for builds to fetch.
        others_secrets::leave_out()?;
    }
    let settings = Settings::resolve(&cli.settings)?;
    let ui = Ui::new(settings.output, settings.quiet);
    let serves = matches!(cli.command, Command::Server(ServerCommand::Run { .. }));
    // A command waits for one thing at a time: one thread starts faster and is enough.
    let mut builder =
        if serves { tokio::runtime::Builder::new_multi_thread() } else { tokio::runtime::Builder::new_current_thread() };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("the program's runtime can't be set up: {error}")))?;
    // These two have their own way with Ctrl-C.
    let handles_interrupts = serves || matches!(cli.command, Command::Psql(_));
    // 1 says that there are differences.
    let failure_is_2 = matches!(cli.command, Command::Diff(_));
    let outcome = runtime.block_on(async {
        if handles_interrupts {
            return dispatch(cli.command, settings, &ui).await;
        }
        tokio::select! {
            // First, so that code further down that waits for Ctrl-C gets to say something better.
            biased;
            outcome = dispatch(cli.command, settings, &ui) => outcome,
            () = interrupted() => {
                ui.end_line();
                Err(CliError::failed("interrupted"))
            }
        }
    });
    // A read of standard input that nobody waits for any more must not hold the program up.
    runtime.shutdown_background();
    outcome.map_err(|error| if failure_is_2 { CliError { exit_status: 2, ..error } } else { error })
}

async fn dispatch(command: Command, settings: Settings, ui: &Ui) -> Outcome {
    let settings = match command {
        Command::Server(command) => return server::run(command, settings, ui).await,
        Command::Login(arguments) => return login::run(arguments, &settings, ui).await,
        Command::Logout => return context::log_out(&settings, ui),
        Command::Context(command) => return context::run(command, &settings, ui),
        _ => settings.with_context()?,
    };
    // Before a server is started for it, the command's input is read and checked.
    match command {
        Command::Create(arguments) => create::run(arguments, &settings, ui).await,
        Command::List(arguments) => list::list(&arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Get { name } => list::get(name, &mut Session::open(&settings, ui).await?).await,
        Command::Apply(arguments) => apply::run(&arguments, &settings, ui).await,
        Command::Diff(arguments) => diff::run(&arguments, &settings, ui).await,
        Command::Connect(arguments) => connect::run(&arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Dump(arguments) => dump::run(arguments, &settings, ui).await,
        Command::Psql(arguments) => psql::run(arguments, &settings, ui).await,
        Command::Adopt(arguments) => adopt::run(arguments, &settings, ui).await,
        Command::Stop(target) => power::set(Power::Stopped, target, &settings, ui).await,
        Command::Start(target) => power::set(Power::Running, target, &settings, ui).await,
        Command::Restart(target) => power::request(OperationKind::RESTART, target, &settings, ui).await,
        Command::RotatePassword(target) => power::request(OperationKind::ROTATE_PASSWORD, target, &settings, ui).await,
        Command::Extension(command) => extension::run(command, &settings, ui).await,
        Command::Delete(arguments) => delete::run(arguments, &settings, ui).await,
        Command::Events(arguments) => events::run(arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Health(arguments) => health::run(arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Top(arguments) => top::run(arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Why(arguments) => why::run(arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Operations(arguments) => operations::run(arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Logs(arguments) => logs::run(arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Versions { platform } => versions::run(platform, &mut Session::open(&settings, ui).await?).await,
        Command::Token(command) => token::run(command, &mut Session::open(&settings, ui).await?).await,
        Command::Namespaces(arguments) => namespaces::run(arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Doctor => doctor::run(&settings, ui).await,
        Command::Server(_)
        | Command::Login(_)
        | Command::Logout
        | Command::Context(_)
        | Command::Schema
        | Command::Completions { .. } => Ok(ExitCode::SUCCESS),
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "toygres", &mut script);
    ui::write_stdout(&script)?;
    Ok(ExitCode::SUCCESS)
}

fn schema() -> Outcome {
    let schema = serde_json::to_string_pretty(&toygres_client::manifest::schema()).unwrap_or_default();
    ui::write_stdout(format!("{schema}\n").as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

//! The command line: reads what a person typed, talks to a server, prints what came of it.
//!
//! Results go to standard output, everything else to standard error. Exit status: 0 done,
//! 1 failed, 2 wrong usage.

mod args;
mod connect;
mod create;
mod delete;
mod display;
mod doctor;
mod error;
mod events;
mod instances;
mod local_server;
mod logs;
mod operations;
mod process;
mod progress;
mod psql;
mod route;
mod server;
mod session;
#[cfg(test)]
mod testing;
mod ui;
mod versions;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::settings::Settings;
use args::{Cli, Command};
use error::{CliError, Outcome};
use session::Session;
use ui::Ui;

/// Runs the program: reads the arguments, does what they say, and tells how it went.
#[must_use]
pub fn main() -> ExitCode {
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
    let settings = Settings::resolve(&cli.settings)?;
    let ui = Ui::new(settings.output, settings.quiet);
    let serves = matches!(cli.command, Command::Server(args::ServerCommand::Run { .. }));
    // A command waits for one thing at a time: one thread starts faster and is enough.
    let mut builder =
        if serves { tokio::runtime::Builder::new_multi_thread() } else { tokio::runtime::Builder::new_current_thread() };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("the program's runtime can't be set up: {error}")))?;
    // These two have their own way with Ctrl-C.
    let handles_interrupts = serves || matches!(cli.command, Command::Psql(_));
    let outcome = runtime.block_on(async {
        if handles_interrupts {
            return dispatch(cli.command, settings, &ui).await;
        }
        tokio::select! {
            // First, so that whoever waits for Ctrl-C further down gets to say something better.
            biased;
            outcome = dispatch(cli.command, settings, &ui) => outcome,
            () = watch::interrupted() => {
                ui.end_line();
                Err(CliError::failed("interrupted"))
            }
        }
    });
    // A read of standard input that nobody waits for any more must not hold the program up.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(command: Command, settings: Settings, ui: &Ui) -> Outcome {
    let settings = match command {
        Command::Server(command) => return server::run(command, settings, ui).await,
        Command::Doctor => return doctor::run(&settings, ui).await,
        _ => settings,
    };
    // Before a server is started for it, the command's input is read and checked.
    match command {
        Command::Create(arguments) => create::run(arguments, &settings, ui).await,
        Command::List(arguments) => instances::list(&arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Get { name } => instances::get(name, &mut Session::open(&settings, ui).await?).await,
        Command::Connect(arguments) => connect::run(&arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Psql(arguments) => psql::run(arguments, &settings, ui).await,
        Command::Delete(arguments) => delete::run(arguments, &settings, ui).await,
        Command::Events(arguments) => events::run(arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Operations(arguments) => operations::run(arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Logs(arguments) => logs::run(arguments, &mut Session::open(&settings, ui).await?).await,
        Command::Versions { platform } => versions::run(platform, &mut Session::open(&settings, ui).await?).await,
        Command::Server(_) | Command::Doctor | Command::Completions { .. } => Ok(ExitCode::SUCCESS),
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "toygres", &mut script);
    ui::write_stdout(&script)?;
    Ok(ExitCode::SUCCESS)
}

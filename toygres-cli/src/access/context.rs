//! `toygres context list|use|remove` and `toygres logout`.

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use comfy_table::Cell;
use serde::Serialize;

use crate::error::{CliError, Outcome};
use crate::output::display;
use crate::output::ui::Ui;
use crate::settings::{ContextName, Contexts, LOCAL, Settings};

#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List the servers that you logged in to; a star marks the one that commands use
    #[command(visible_alias = "ls")]
    List,
    /// Use a server from now on
    Use {
        /// The context's name; local is the server on this machine
        name: ContextName,
    },
    /// Forget a server, and the token for it
    Remove {
        /// The context's name
        name: ContextName,
    },
}

/// The contexts, and the file that they are in.
pub fn contexts(settings: &Settings) -> Result<(&Path, Contexts), CliError> {
    let path = settings.contexts_file()?;
    Ok((path, Contexts::read(path)?))
}

pub fn run(command: ContextCommand, settings: &Settings, ui: &Ui) -> Outcome {
    match command {
        ContextCommand::List => list(settings, ui),
        ContextCommand::Use { name } => select(name, settings, ui),
        ContextCommand::Remove { name } => remove(&name, settings, ui),
    }
}

/// A context as it is listed: without its token.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    /// None for the server on this machine.
    url: Option<&'a str>,
    current: bool,
}

fn list(settings: &Settings, ui: &Ui) -> Outcome {
    let (_, contexts) = contexts(settings)?;
    let current = settings.context.as_ref().or(contexts.current.as_ref());
    let is_current = |name: &str| current.map_or(LOCAL, ContextName::as_str) == name;
    let kept = contexts.contexts.iter().map(|(name, context)| (name.as_str(), Some(context.url.as_str())));
    let listed: Vec<_> = kept.chain([(LOCAL, None)]).map(|(name, url)| Listed { name, url, current: is_current(name) }).collect();
    if !ui.is_for_people() {
        ui.print_record(&listed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |context: &Listed<'_>| {
        vec![
            Cell::new(if context.current { "*" } else { "" }),
            Cell::new(context.name),
            Cell::new(context.url.unwrap_or("the server on this machine")),
        ]
    };
    ui.print(display::table(ui, &["", "NAME", "SERVER"], &[], listed.iter().map(row).collect()))?;
    if settings.url.is_some() {
        ui.warn("a URL is set by flag, environment or config file, and wins over them");
    }
    Ok(ExitCode::SUCCESS)
}

fn select(name: ContextName, settings: &Settings, ui: &Ui) -> Outcome {
    let place = Contexts::change(settings.contexts_file()?, |contexts| {
        let place = if name.is_local() { "the server on this machine".into() } else { contexts.get(&name)?.url.to_string() };
        contexts.current = Some(name).filter(|name| !name.is_local());
        Ok(place)
    })?;
    ui.print(format_args!("commands use {place} from now on"))?;
    Ok(ExitCode::SUCCESS)
}

fn remove(name: &ContextName, settings: &Settings, ui: &Ui) -> Outcome {
    if name.is_local() {
        return Err(CliError::usage("local is the server on this machine; it can't be removed"));
    }
    let (url, was_current) = Contexts::change(settings.contexts_file()?, |contexts| {
        let url = contexts.get(name)?.url.clone();
        contexts.contexts.remove(name);
        let was_current = contexts.current.as_ref() == Some(name);
        if was_current {
            contexts.current = None;
        }
        Ok((url, was_current))
    })?;
    ui.print(format_args!("{url} and the token for it are forgotten here"))?;
    ui.note("The token itself is good until it expires, or an admin revokes it: toygres token revoke NAME.");
    if was_current {
        ui.note("Commands use the server on this machine from now on.");
    }
    Ok(ExitCode::SUCCESS)
}

pub fn log_out(settings: &Settings, ui: &Ui) -> Outcome {
    let (_, contexts) = contexts(settings)?;
    let name = settings.context.clone().or(contexts.current).filter(|name| !name.is_local());
    match name {
        Some(name) => remove(&name, settings, ui),
        None => Err(CliError::failed("you are not logged in anywhere: commands use the server on this machine")
            .hint("`toygres context list` shows the servers that you logged in to")),
    }
}

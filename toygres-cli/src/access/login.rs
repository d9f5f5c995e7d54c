//! `toygres login`: a server elsewhere, and a token for it, kept as a context.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Args;
use secrecy::SecretString;
use toygres_client::{Client, ClientError};
use toygres_server::settings::parse_token;
use url::Url;

use super::context::contexts;
use super::secret_input;
use crate::error::{CliError, Outcome};
use crate::output::ui::Ui;
use crate::session;
use crate::settings::{Context, ContextName, Contexts, Settings, parse_url};

/// Longer than any token.
const MAX_TOKEN_LENGTH: usize = 4096;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres login https://toygres.example.org                          (asks for the token)
  toygres login https://toygres.example.org --token-stdin < ann.token
  toygres login https://10.0.0.5:7654 --name lab --ca-certificate lab-ca.crt

From then on commands talk to that server. `toygres context use` chooses another one, and
`toygres context use local` the one on this machine again; --context does it for one command.
Address and token are kept in contexts.toml beside the config file, which only you can read.")]
pub struct Login {
    /// The server's address
    #[arg(value_parser = parse_url)]
    pub server: Url,

    /// Read the token from standard input instead of asking for it
    #[arg(long)]
    pub token_stdin: bool,

    /// What to call it [default: the address's host]
    #[arg(long, value_name = "CONTEXT", value_parser = |text: &str| text.parse::<ContextName>())]
    pub name: Option<ContextName>,
}

pub async fn run(arguments: Login, settings: &Settings, ui: &Ui) -> Outcome {
    let Login { server, token_stdin, name } = arguments;
    session::expect_private_way(settings, &server)?;
    let name = match name {
        Some(name) => name,
        None => named_after(&server)?,
    };
    if name.is_local() {
        return Err(CliError::usage("local is the server on this machine, which needs no login; choose another --name"));
    }
    let ca_certificate = session::given_ca_certificate(settings)?;
    // Read before anything is asked of anybody: a file that can't be used would make it all vain.
    let (path, _) = contexts(settings)?;
    let token = token(token_stdin, settings).await?;
    let client = Client::trusting(&server, Some(&token), ca_certificate.as_deref())?;
    let me = client.whoami().await.map_err(|error| match error {
        ClientError::Refused(problem) if problem.name() == "unauthorized" => {
            CliError::failed(format!("{server} refuses the token; you are not logged in: {}", problem.detail))
        }
        error => CliError::from(error).hint("you are not logged in; nothing was changed"),
    })?;
    Contexts::change(path, |contexts| {
        contexts.contexts.insert(name.clone(), Context { url: server.clone(), token, ca_certificate });
        contexts.current = Some(name.clone());
        Ok(())
    })?;
    if !ui.is_for_people() {
        ui.print_record(&me)?;
        return Ok(ExitCode::SUCCESS);
    }
    let place = me.namespaces.map_or_else(|| "every namespace".into(), |namespaces| namespaces.join(", "));
    ui.print(format_args!("logged in to {server} as {}: {} in {place}", me.name, me.role))?;
    ui.note(format_args!("Commands use it from now on, as the context {name}; `toygres context use local` goes back."));
    if settings.url.is_some() {
        ui.warn("a URL is set by flag, environment or config file, and wins over it");
    }
    Ok(ExitCode::SUCCESS)
}

/// `toygres.example.org`, or `127.0.0.1-7654` where a port is given.
fn named_after(server: &Url) -> Result<ContextName, CliError> {
    let host = server.host_str().unwrap_or_default();
    let name = server.port().map_or_else(|| host.to_owned(), |port| format!("{host}-{port}"));
    name.parse().map_err(|_| CliError::usage(format!("{name:?} can't be a context's name; give another one with --name")))
}

async fn token(from_stdin: bool, settings: &Settings) -> Result<SecretString, CliError> {
    let text = match settings.given_token() {
        Some(token) if !from_stdin => return Ok(token.clone()),
        _ if from_stdin || io::stdin().is_terminal() => secret_input::read("token", MAX_TOKEN_LENGTH).await?,
        _ => {
            return Err(CliError::usage("there is no terminal to ask for the token on")
                .hint("give it with --token-stdin, --token-file or as TOYGRES_TOKEN"));
        }
    };
    // The text may be a token with something about it that was copied along: the error doesn't repeat it.
    parse_token(text.trim()).map_err(|problem| CliError::usage(format!("what was given {problem}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_named_after_its_server() {
        for (server, name) in
            [("https://toygres.example.org/", "toygres.example.org"), ("http://127.0.0.1:7654/", "127.0.0.1-7654")]
        {
            assert_eq!(named_after(&server.parse().unwrap()).unwrap().as_str(), name);
        }
        assert_eq!(named_after(&"http://[::1]:7654/".parse().unwrap()).unwrap_err().exit_status, 2);
    }
}

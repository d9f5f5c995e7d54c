//! `toygres token create|list|revoke`.

use std::process::ExitCode;
use std::time::Duration;

use chrono::Utc;
use clap::{Args, Subcommand};
use comfy_table::{Cell, Color};
use toygres_client::resources::TokenManifest;
use toygres_client::{Client, all_pages};
use toygres_models::store::Token;
use toygres_models::{Namespace, Role, TokenName};

use crate::error::{CliError, Outcome};
use crate::output::display::{self, age, moment};
use crate::output::ui::Ui;
use crate::session::Session;
use crate::values::problem;

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, and print it: it is shown this once
    Create(Create),
    /// List tokens, without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Revoke a token: its holder is refused from now on
    Revoke {
        /// The token's name
        #[arg(value_parser = token_name)]
        name: TokenName,

        /// Also the tokens that it made, and those that they made
        #[arg(long)]
        with_made: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres token create ann --role editor --namespaces shop,blog --expires 90d
  toygres token create grafana --role viewer > grafana.token

viewer: looks at everything but passwords
editor: also reads passwords, and creates, changes and deletes instances
admin:  also sets quotas, and without --namespaces makes and revokes tokens

The token alone goes to standard output. Its holder gives it to `toygres login`, or as TOYGRES_TOKEN.")]
pub struct Create {
    /// Whose it is: 1 to 50 lowercase letters, digits and '-', a letter first
    #[arg(value_parser = token_name)]
    pub name: TokenName,

    /// What it lets its holder do: viewer, editor or admin
    #[arg(long, value_name = "ROLE", value_parser = |text: &str| text.parse::<Role>().map_err(problem))]
    pub role: Role,

    /// Where, with commas between them [default: every namespace]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = |text: &str| text.parse::<Namespace>().map_err(problem))]
    pub namespaces: Vec<Namespace>,

    /// How long it lasts, such as 12h or 90d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    pub expires: Option<Duration>,
}

fn token_name(text: &str) -> Result<TokenName, String> {
    text.parse().map_err(problem)
}

fn lifetime(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.as_secs() > 0 => Ok(time),
        _ => Err("give a time such as 12h, 90d or 1year".into()),
    }
}

pub async fn run(command: TokenCommand, session: &mut Session<'_>) -> Outcome {
    match command {
        TokenCommand::Create(arguments) => create(arguments, session).await,
        TokenCommand::List => list(session).await,
        TokenCommand::Revoke { name, with_made } => revoke(&name, with_made, session).await,
    }
}

async fn create(arguments: Create, session: &mut Session<'_>) -> Outcome {
    let namespaces: Vec<String> = arguments.namespaces.into_iter().map(String::from).collect();
    let body = TokenManifest {
        name: arguments.name.into(),
        role: arguments.role.to_string(),
        namespaces: (!namespaces.is_empty()).then_some(namespaces),
        ttl_seconds: arguments.expires.map(|time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX)),
    };
    let minted = session.change(async |client: &Client| client.create_token(&body).await).await?;
    let ui = session.ui;
    if !ui.is_for_people() {
        ui.print_record(&minted)?;
        return Ok(ExitCode::SUCCESS);
    }
    let token = &minted.token;
    let until = token.expires_at.map(|at| format!(", until {}", moment(at))).unwrap_or_default();
    ui.note(format_args!(
        "{} is {} in {}{until}. This is the token; it is shown this once:",
        token.name,
        token.role,
        place(token)
    ));
    ui.print(&minted.secret)?;
    Ok(ExitCode::SUCCESS)
}

fn place(token: &Token) -> String {
    token.namespaces.as_ref().map_or_else(|| "every namespace".into(), |namespaces| namespaces.join(", "))
}

async fn all(session: &mut Session<'_>) -> Result<Vec<Token>, CliError> {
    session.call(async |client: &Client| all_pages(None, async |page: &_| client.tokens(page).await).await).await
}

async fn list(session: &mut Session<'_>) -> Outcome {
    let tokens = all(session).await?;
    let ui = session.ui;
    if !ui.is_for_people() {
        ui.print_record(&tokens)?;
    } else if tokens.is_empty() {
        let make = ui.err.cyan("toygres token create ann --role editor");
        ui.note(format_args!("No tokens yet but the server's own.\n\n  {make}   make one"));
    } else {
        ui.print(table(ui, &tokens))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(ui: &Ui, tokens: &[Token]) -> String {
    let now = Utc::now();
    let row = |token: &Token| {
        let expires = match token.expires_at {
            None => Cell::new("never"),
            Some(at) if at <= now => display::coloured(ui.out, "expired", Color::DarkRed),
            Some(at) => Cell::new(moment(at)),
        };
        let used = token.last_used_at.map_or_else(|| "never".into(), |at| format!("{} ago", age(at, now)));
        vec![
            Cell::new(&token.name),
            Cell::new(token.role),
            Cell::new(token.namespaces.as_ref().map_or_else(|| "(all)".into(), |namespaces| namespaces.join(","))),
            expires,
            Cell::new(used),
            Cell::new(&token.created_by),
        ]
    };
    display::table(ui, &["NAME", "ROLE", "NAMESPACES", "EXPIRES", "USED", "MADE BY"], &[], tokens.iter().map(row).collect())
}

async fn revoke(name: &TokenName, with_made: bool, session: &mut Session<'_>) -> Outcome {
    let ui = session.ui;
    let mut names = vec![name.clone()];
    while let Some(name) = names.pop() {
        let token = session.change(async |client: &Client| client.revoke_token(&name).await).await?;
        if ui.is_for_people() {
            ui.print(format_args!("the token {name} is revoked"))?;
        } else {
            ui.print_record(&token)?;
        }
        // Only who administers every namespace made any; who may not list them made none.
        let made = all(session).await?.into_iter().filter(|token| token.created_by == name.as_str());
        let made: Vec<_> = made.filter_map(|token| Some((token.name.parse::<TokenName>().ok()?, token.role))).collect();
        if with_made {
            names.extend(made.into_iter().map(|(name, _)| name));
        } else if !made.is_empty() {
            let list: Vec<_> = made.iter().map(|(name, role)| format!("{name} ({role})")).collect();
            ui.warn(format_args!(
                "{name} made tokens that still work: {}; revoke those too, if their holders should be out",
                list.join(", ")
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_list_says_who_may_do_what_where() {
        let token = Token {
            id: uuid::Uuid::nil(),
            name: "ann".into(),
            role: Role::Editor,
            namespaces: Some(vec!["blog".into(), "shop".into()]),
            created_by: "root".into(),
            created_at: Utc::now(),
            expires_at: Some(Utc::now()),
            revoked_by: None,
            revoked_at: None,
            last_used_at: None,
        };
        let text = table(&testing::ui(), &[token]);
        assert_eq!(
            text,
            "NAME   ROLE     NAMESPACES   EXPIRES   USED    MADE BY\nann    editor   blog,shop    expired   never   root"
        );
    }

    #[test]
    fn lifetimes_are_times() {
        assert_eq!(lifetime("90d").unwrap(), Duration::from_secs(90 * 86_400));
        for bad in ["", "0s", "90", "-1d", "soon", "1ms"] {
            assert!(lifetime(bad).is_err(), "{bad} was taken");
        }
    }
}

//! `toygres psql`: runs psql on an instance without showing the password to anyone.
//!
//! How to connect travels in libpq's environment variables, so that psql's own `-d`, `-U` and the
//! like work as they always do. The password travels in a password file that only this user can
//! read, and that is removed when psql ends: others can read a command's arguments, and child
//! processes of psql inherit its environment.

use std::ffi::OsStr;
use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use rustix::process::{Pid, kill_process};
use tempfile::NamedTempFile;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use toygres_activities::platform::local::programs::find_program;
use toygres_client::resources::Connection;
use toygres_models::InstanceName;

use super::connect::libpq_variables;
use super::route::{self, Login};
use crate::error::{CliError, Outcome};
use crate::output::ui::Ui;
use crate::session::Session;
use crate::settings::Settings;
use crate::values::instance_name;

/// Variables of libpq's that say how a session behaves, not where it goes: the user's own stay.
const KEPT: &[&str] = &["PGAPPNAME", "PGCLIENTENCODING", "PGCONNECT_TIMEOUT", "PGDATESTYLE", "PGGEQO", "PGOPTIONS", "PGTZ"];

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres psql demo
  toygres psql demo -c 'select version()'
  toygres psql demo -f schema.sql
  toygres psql --superuser demo
  toygres psql --namespace team demo        (toygres's own options come before the name)

The password reaches psql by a file that only you can read, which is removed afterwards.
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
    let Some(program) = find_program("psql", &settings.server.cache_dir).await else {
        return Err(CliError::failed("psql is not on this machine")
            .hint("to get it: apt install postgresql-client, dnf install postgresql, or brew install libpq")
            .hint(format!("any other client can use what `toygres connect {}` prints", arguments.name)));
    };
    let mut session = Session::open(settings, ui).await?;
    let key = session.key(arguments.name);
    // Held until psql has ended.
    let route = route::any(&mut session, &key, Login::asked(arguments.superuser)).await?;
    let connection = &route.connection;
    // From here on Ctrl-C is psql's: it cancels a query. It reaches psql by the terminal, as this
    // program is in the same group; here it only must not end the program.
    let mut signals = Signals::catch().map_err(|error| CliError::failed(format!("signals can't be handled: {error}")))?;
    let no_file = |error: std::io::Error| CliError::failed(format!("the password file for psql can't be written: {error}"));
    let mut password_file = tempfile::Builder::new().prefix(".toygres-").tempfile().map_err(no_file)?;
    password_file.write_all(password_line(connection).as_bytes()).map_err(no_file)?;

    let mut command = Command::new(&program);
    command.args(&arguments.arguments);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_foreign(name)) {
        command.env_remove(name);
    }
    let child = command.envs(libpq_variables(connection)).env("PGPASSFILE", password_file.path()).spawn();
    let child = child.map_err(|error| CliError::failed(format!("{} can't be started: {error}", program.display())))?;
    let status = wait(child, &mut signals).await;
    remove(password_file, ui);
    let status = status.map_err(|error| CliError::failed(format!("psql can't be waited for: {error}")))?;
    // None if a signal ended it.
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

async fn wait(mut child: Child, signals: &mut Signals) -> std::io::Result<std::process::ExitStatus> {
    loop {
        tokio::select! {
            status = child.wait() => return status,
            () = signals.ending() => {
                // Not killed: psql has the terminal's settings to put back.
                if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
                    kill_process(pid, rustix::process::Signal::TERM)?;
                }
            }
        }
    }
}

fn remove(password_file: NamedTempFile, ui: &Ui) {
    let path = password_file.path().to_owned();
    if let Err(error) = password_file.close() {
        ui.warn(format_args!("the password file {} can't be removed: {error}", path.display()));
    }
}

/// Whether a variable would send psql somewhere else, or let it in as someone else.
fn is_foreign(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("PG") && !KEPT.contains(&name))
}

/// The signals that a terminal sends, and those that end programs.
struct Signals {
    _ignored: [Signal; 2],
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            _ignored: [signal(SignalKind::interrupt())?, signal(SignalKind::quit())?],
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when this program is asked to end, which psql then does too.
    async fn ending(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// A line of a password file (<https://www.postgresql.org/docs/current/libpq-pgpass.html>) that
/// holds for every database of the instance.
fn password_line(connection: &Connection) -> String {
    let escaped = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
    let Connection { host, port, user, password, .. } = connection;
    format!("{}:{port}:*:{}:{}\n", escaped(host), escaped(user), escaped(password))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn connection(password: &str) -> Connection {
        Connection { host: "::1".into(), port: 5, ..crate::testing::connection(password) }
    }

    /// Splits a line as libpq does: at colons, a backslash makes the next character a plain one.
    fn fields(line: &str) -> Vec<String> {
        let (mut fields, mut characters) = (vec![String::new()], line.chars());
        while let Some(character) = characters.next() {
            match character {
                ':' => fields.push(String::new()),
                '\\' => fields.last_mut().unwrap().extend(characters.next()),
                other => fields.last_mut().unwrap().push(other),
            }
        }
        fields
    }

    #[test]
    fn only_what_leads_elsewhere_is_taken_from_the_environment() {
        for (name, foreign) in [
            ("PGHOSTADDR", true),
            ("PGSERVICE", true),
            ("PGPASSWORD", true),
            ("PGOPTIONS", false),
            ("PAGER", false),
            ("PSQL_PAGER", false),
        ] {
            assert_eq!(is_foreign(OsStr::new(name)), foreign, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_password_comes_back_from_the_file(password in "[^\\p{Cc}]{1,60}") {
            let line = password_line(&connection(&password));
            prop_assert_eq!(fields(line.strip_suffix('\n').unwrap()), ["::1", "5", "*", "app", &password]);
        }
    }
}

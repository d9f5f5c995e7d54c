//! Runs PostgreSQL's client programs on an instance without showing the password to anyone.
//!
//! How to connect travels in libpq's environment variables, so that a program's own `-d`, `-U` and the
//! like work as they always do. The password travels in a password file that only this user can read: other users can read a
//! command's arguments. On Linux the file has no name: the system frees it when the last program that has it open ends, also by
//! `kill -9`.

use std::ffi::{OsStr, OsString};
use std::io::Write;
#[cfg(target_os = "linux")]
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::{Pid, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use toygres_activities::platform::local::programs::find_program;
use toygres_client::resources::Connection;

use super::connect::libpq_variables;
use crate::error::{CliError, Outcome};
use crate::settings::Settings;

/// Variables of libpq's that say how a session behaves, not where it goes: the user's own stay.
const KEPT: &[&str] = &["PGAPPNAME", "PGCLIENTENCODING", "PGCONNECT_TIMEOUT", "PGDATESTYLE", "PGGEQO", "PGOPTIONS", "PGTZ"];

/// A client program such as `psql`, of that major version or a later one.
///
/// # Errors
/// If there is none on this machine, with how to get it.
pub async fn find(name: &str, least_major: u16, settings: &Settings) -> Result<PathBuf, CliError> {
    find_program(name, least_major, &settings.server.cache_dir).await.ok_or_else(|| {
        let version = if least_major > 0 { format!(" of PostgreSQL {least_major} or later") } else { String::new() };
        let package = match least_major {
            0 => "postgresql-client".to_owned(),
            // Distributions have one major each.
            major => {
                format!("postgresql-client-{major} (from https://apt.postgresql.org where the distribution has an older one)")
            }
        };
        CliError::failed(format!("there is no {name}{version} on this machine"))
            .hint(format!("to get it: apt install {package}, dnf install postgresql, or brew install libpq"))
    })
}

/// Runs it until it ends, with its exit status.
pub async fn run(program: &PathBuf, arguments: &[OsString], connection: &Connection) -> Outcome {
    // From here on Ctrl-C is the program's: in psql it cancels a query. It reaches it by the terminal, as this program is in
    // the same group; here it only must not end this one.
    let mut signals = Signals::catch().map_err(|error| CliError::failed(format!("signals can't be handled: {error}")))?;
    let no_file = |error: std::io::Error| CliError::failed(format!("the password can't be handed over: {error}"));
    let password = PasswordFile::new(&password_line(connection)).map_err(no_file)?;
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_foreign(name)) {
        command.env_remove(name);
    }
    let child = command.envs(libpq_variables(connection)).env("PGPASSFILE", password.path()).spawn();
    let child = child.map_err(|error| CliError::failed(format!("{} can't be started: {error}", program.display())))?;
    // What this program starts from now on doesn't inherit it.
    password.handed_over().map_err(no_file)?;
    let status = wait(child, &mut signals).await;
    let status = status.map_err(|error| CliError::failed(format!("{} can't be waited for: {error}", program.display())))?;
    // None if a signal ended it.
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// A password file without a name, which the program inherits.
#[cfg(target_os = "linux")]
struct PasswordFile(std::fs::File);

#[cfg(target_os = "linux")]
impl PasswordFile {
    fn new(line: &str) -> std::io::Result<Self> {
        let mut file = tempfile::tempfile()?;
        // libpq takes no other.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(line.as_bytes())?;
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
        Ok(Self(file))
    }

    /// The program has it now.
    fn handed_over(&self) -> std::io::Result<()> {
        Ok(rustix::io::fcntl_setfd(&self.0, rustix::io::FdFlags::CLOEXEC)?)
    }

    /// As the program sees it. Opened anew each time, it is read from its beginning.
    fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// A password file that is removed when it is dropped.
#[cfg(not(target_os = "linux"))]
struct PasswordFile(tempfile::NamedTempFile);

#[cfg(not(target_os = "linux"))]
impl PasswordFile {
    fn new(line: &str) -> std::io::Result<Self> {
        let mut file = tempfile::Builder::new().prefix(".toygres-").tempfile()?;
        file.write_all(line.as_bytes())?;
        Ok(Self(file))
    }

    fn handed_over(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

async fn wait(mut child: Child, signals: &mut Signals) -> std::io::Result<std::process::ExitStatus> {
    loop {
        tokio::select! {
            status = child.wait() => return status,
            () = signals.ending() => {
                // Not killed: psql has the terminal's settings to put back, and pg_dump a file to close.
                if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
                    kill_process(pid, rustix::process::Signal::TERM)?;
                }
            }
        }
    }
}

/// Whether a variable would send a program somewhere else, or let it in as someone else.
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

    /// Returns when this program is asked to end, which the other then does too.
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

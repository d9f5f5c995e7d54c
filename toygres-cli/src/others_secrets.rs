//! Secrets in a person's environment that aren't toygres's. The library that fetches PostgreSQL builds would send them to the
//! builds' site, and to whatever address that names.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::CliError;

/// The variables.
pub const NAMES: [&str; 1] = ["GITHUB_TOKEN"];

/// Begins this program anew without them, if they are in its environment.
pub fn leave_out() -> Result<(), CliError> {
    if NAMES.iter().all(|name| std::env::var_os(name).is_none()) {
        return Ok(());
    }
    let program =
        std::env::current_exe().map_err(|error| CliError::failed(format!("this program can't find itself: {error}")))?;
    let mut words = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    for name in NAMES {
        command.env_remove(name);
    }
    // It returns only if it failed.
    let error = command.args(words).exec();
    Err(CliError::failed(format!("this program can't be begun anew without {}: {error}", NAMES.join(", "))))
}

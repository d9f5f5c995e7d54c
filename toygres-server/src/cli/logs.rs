//! `toygres logs`.

use std::process::ExitCode;

use super::args::Logs;
use super::error::Outcome;
use super::session::Session;
use super::ui::write_stdout;
use crate::client::Client;

pub async fn run(arguments: Logs, session: &mut Session<'_>) -> Outcome {
    let key = session.key(arguments.name);
    let tail_lines = arguments.tail as usize;
    let mut text = session.call(async |client: &Client| client.logs(&key, tail_lines).await).await?;
    if text.is_empty() {
        session.ui.note(format_args!("The log of {} is empty.", key.name));
    } else if !text.ends_with('\n') {
        text.push('\n');
    }
    write_stdout(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

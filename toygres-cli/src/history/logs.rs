//! `toygres logs`.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use futures::{StreamExt, TryStreamExt};
use tokio::time::sleep;
use toygres_client::{Client, ClientError, LogLines};
use toygres_models::{InstanceKey, InstanceName, LogLine, LogRequest};

use crate::error::{CliError, Outcome};
use crate::output::interrupt::interrupted;
use crate::output::ui::write_to_reader;
use crate::session::{PAUSE, RETRY_TIMEOUT, Session, is_gone};
use crate::values::instance_name;

/// How often the server on this machine is started again while no line comes.
const RESTARTS: usize = 5;
/// How many lines may be printed in one go.
const LINES_AT_ONCE: usize = 256;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres logs demo
  toygres logs demo --follow
  toygres logs demo --since 10m
  toygres logs demo --since 2026-01-31T12:00:00Z --tail 1000

Following goes on over restarts of the instance and of toygres, until the instance is deleted or Ctrl-C.")]
pub struct Logs {
    /// The instance's name
    #[arg(value_parser = instance_name)]
    pub name: InstanceName,

    /// Go on with what the server says from now on
    #[arg(short, long)]
    pub follow: bool,

    /// Only what was logged since: so long ago, such as 10m or 2h, or a time, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<DateTime<Utc>>,

    /// Only so many lines from the end of what there is [default: 100, without --since]
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u32>,
}

pub async fn run(arguments: Logs, session: &mut Session<'_>) -> Outcome {
    let key = session.key(arguments.name);
    let ui = session.ui;
    let follow = arguments.follow;
    let tail_lines = arguments.tail.map(|lines| lines as usize);
    let request = LogRequest { tail_lines, since: arguments.since, after: None, follow };
    tokio::select! {
        printed = print(session, &key, request) => printed?,
        // The usual end of following.
        () = interrupted(), if follow => ui.end_line(),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a log to its end. Where the connection breaks, it goes on after the last line, with the next
/// server if need be.
async fn print(session: &mut Session<'_>, key: &InstanceKey, mut request: LogRequest) -> Result<(), CliError> {
    let mut opened = Ok(session.call(async |client: &Client| client.logs(key, &request).await).await?);
    let (mut last_answer, mut restarts, mut is_empty) = (Instant::now(), 0, true);
    loop {
        let broken = match opened {
            Ok(lines) => {
                let opened_at = Instant::now();
                let mut chunks = pin!(lines.try_ready_chunks(LINES_AT_ONCE));
                loop {
                    let (lines, broken) = match chunks.next().await {
                        Some(Ok(lines)) => (lines, None),
                        Some(Err(broken)) => (broken.0, Some(broken.1)),
                        None => {
                            if is_empty {
                                session.ui.note(format_args!("The log of {} is empty.", key.name));
                            }
                            return Ok(());
                        }
                    };
                    if !write_to_reader(text(&lines).as_bytes())? {
                        return Ok(());
                    }
                    if let Some(last) = lines.into_iter().rev().find_map(|line| line.position) {
                        request.after = Some(last);
                        (last_answer, restarts, is_empty) = (Instant::now(), 0, false);
                    }
                    if let Some(broken) = broken {
                        // That it was opened is no answer yet: where it breaks each time, that has an end.
                        if opened_at.elapsed() > RETRY_TIMEOUT {
                            last_answer = Instant::now();
                        }
                        break broken;
                    }
                }
            }
            Err(error) => error,
        };
        opened = reconnect(session, key, &request, broken, last_answer, &mut restarts).await?;
    }
}

/// `Ok` of an error that may pass.
async fn reconnect(
    session: &mut Session<'_>,
    key: &InstanceKey,
    request: &LogRequest,
    broken: ClientError,
    last_answer: Instant,
    restarts: &mut usize,
) -> Result<Result<LogLines, ClientError>, CliError> {
    if is_gone(&broken) && session.is_local() && *restarts < RESTARTS {
        *restarts += 1;
        session.reopen().await?;
    } else if broken.is_passing() && last_answer.elapsed() < RETRY_TIMEOUT {
        sleep(PAUSE).await;
    } else {
        return Err(session.explain(broken));
    }
    Ok(session.client.logs(key, request).await)
}

fn text(lines: &[LogLine]) -> String {
    lines.iter().flat_map(|line| [line.text.as_str(), "\n"]).collect()
}

fn since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let ago = humantime::parse_duration(text).ok().and_then(|ago| TimeDelta::from_std(ago).ok());
    ago.and_then(|ago| Utc::now().checked_sub_signed(ago))
        .ok_or_else(|| "give how long ago, such as 10m or 2h, or a time with its zone, such as 2026-01-31T12:00:00Z".to_owned())
}

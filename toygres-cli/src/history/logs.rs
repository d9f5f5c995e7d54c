//! `toygres logs`.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt};
use tokio::time::sleep;
use toygres_client::{Client, ClientError, LogLines};
use toygres_models::{InstanceKey, LogLine, LogRequest};

use crate::args::Logs;
use crate::error::{CliError, Outcome};
use crate::output::ui::write_to_reader;
use crate::output::watch::interrupted;
use crate::session::{PATIENCE, PAUSE, Session, is_gone};

/// How often the server on this machine is started again while no line comes.
const RESTARTS: usize = 5;
/// How many lines may be printed in one go.
const LINES_AT_ONCE: usize = 256;

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
                        if opened_at.elapsed() > PATIENCE {
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
    } else if broken.is_passing() && last_answer.elapsed() < PATIENCE {
        sleep(PAUSE).await;
    } else {
        return Err(session.explain(broken));
    }
    Ok(session.client.logs(key, request).await)
}

fn text(lines: &[LogLine]) -> String {
    lines.iter().flat_map(|line| [line.text.as_str(), "\n"]).collect()
}

//! `toygres events`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use comfy_table::Cell;
use tokio::time::{Instant, sleep};
use toygres_client::{Client, ClientError, EventRequest, EventStream, PageRequest, all_pages};
use toygres_models::InstanceName;
use toygres_models::store::{Event, EventStart};

use crate::error::{CliError, Outcome};
use crate::output::display::{self, moment};
use crate::output::interrupt::interrupted;
use crate::output::ui::{Ui, write_to_reader};
use crate::session::{PAUSE, Session};
use crate::settings::OutputFormat;
use crate::values::instance_name;

/// How many of the latest events are shown unless told otherwise.
const DEFAULT_LIMIT: u32 = 50;
/// How long a server may be away before that is told, after the try that is under way then: longer than it takes to stop,
/// refuse a client that came in that moment, and start.
const UNTOLD: Duration = Duration::from_secs(4);
/// How wide kinds and names are shown where lines come one by one.
const KIND_WIDTH: usize = 19;

/// What `toygres events` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres events demo
  toygres events --since 2h
  toygres events --follow                    (everything, as it happens, until Ctrl-C)
  toygres events demo --follow -o json       (a JSON object a line)

Following goes on over restarts of the server, and shows no event twice and leaves none out.")]
pub struct Events {
    /// The instance's name; without it, everything that happened, in one namespace with -n
    #[arg(value_parser = instance_name)]
    pub name: Option<InstanceName>,

    /// Go on with what happens, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,

    /// How many of the latest events to show [default: 50]
    #[arg(long, value_name = "NUMBER", conflicts_with = "since", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: Option<u32>,

    /// Show all events of the last 10m, 2h, 3d, …
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,
}

impl Events {
    fn start(&self) -> EventStart {
        match self.since.and_then(|since| Utc::now().checked_sub_signed(chrono::TimeDelta::from_std(since).ok()?)) {
            Some(since) => EventStart::Since(since),
            // So long ago that there was nothing.
            None if self.since.is_some() => EventStart::After(0),
            None => EventStart::Last(self.limit.unwrap_or(DEFAULT_LIMIT).into()),
        }
    }
}

pub async fn run(arguments: Events, session: &mut Session<'_>) -> Outcome {
    let start = arguments.start();
    // An instance's name means one in a namespace; without a name all namespaces are looked at.
    let namespace = match arguments.name {
        Some(_) => Some(session.settings.namespace_or_default()),
        None => session.settings.namespace.clone(),
    };
    let request = EventRequest { namespace, instance_name: arguments.name.clone(), start };
    if arguments.follow {
        let ui = session.ui;
        tokio::select! {
            followed = follow(session, &request) => followed?,
            // The usual end.
            () = interrupted() => ui.end_line(),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let key = arguments.name.map(|name| session.key(name));
    let events = session
        .call(async |client: &Client| {
            let page = async |page: &PageRequest| match &key {
                Some(key) => client.events(key, start, page).await,
                None => client.all_events(&request, page).await,
            };
            all_pages(None, page).await
        })
        .await?;
    let ui = session.ui;
    if !ui.is_for_people() {
        ui.print_record(&events)?;
    } else if events.is_empty() {
        ui.note("Nothing has happened yet.");
    } else if std::io::stdout().is_terminal() {
        ui.print(events_table(ui, &events, key.is_none()))?;
    } else {
        // A table would be as wide as its longest words.
        for event in &events {
            ui.print(line(ui, event)?.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints events as they come, for as long as somebody reads them.
async fn follow(session: &mut Session<'_>, request: &EventRequest) -> Result<(), CliError> {
    let mut stream = session.call(async |client: &Client| client.follow_events(request, None).await).await?;
    let mut last_id = None;
    loop {
        match stream.next().await {
            Ok(message) => {
                if let Some(event) = &message.event
                    && !write_to_reader(line(session.ui, event)?.as_bytes())?
                {
                    return Ok(());
                }
                last_id = Some(message.id);
            }
            Err(broken) if broken.is_passing() => stream = go_on(session, request, last_id).await?,
            Err(error) => return Err(session.explain(error)),
        }
    }
}

/// Waits until a server goes on after the last message, however long that takes. It isn't started for
/// that: somebody may have stopped it.
async fn go_on(session: &mut Session<'_>, request: &EventRequest, last_id: Option<i64>) -> Result<EventStream, CliError> {
    let (since, mut is_told) = (Instant::now(), false);
    loop {
        let answer: Result<EventStream, ClientError> = match session.find_again().await? {
            true => session.client.follow_events(request, last_id).await,
            false => Err(ClientError::Unreachable { url: session.client.name().clone(), reason: "no server answers".into() }),
        };
        match answer {
            Ok(stream) => return Ok(stream),
            Err(error) if error.is_passing() => {}
            Err(error) => return Err(session.explain(error)),
        }
        if since.elapsed() > UNTOLD && !is_told {
            session.ui.note("the server is away; going on when it is back");
            is_told = true;
        }
        sleep(PAUSE).await;
    }
}

/// An event as it is shown while others follow.
fn line(ui: &Ui, event: &Event) -> Result<String, CliError> {
    let unprintable = |error: &dyn std::fmt::Display| CliError::failed(format!("the event can't be printed: {error}"));
    Ok(match ui.format {
        OutputFormat::Json => format!("{}\n", serde_json::to_string(event).map_err(|error| unprintable(&error))?),
        OutputFormat::Yaml => format!("---\n{}", serde_saphyr::to_string(event).map_err(|error| unprintable(&error))?),
        OutputFormat::Table => {
            let style = ui.out;
            let kind = format!("{:KIND_WIDTH$}", event.kind);
            let kind = match event.kind.as_str() {
                kind_of if is_bad(kind_of) => style.red(kind),
                _ => style.green(kind),
            };
            let cause = style.dim(format_args!("({})", event.cause));
            let message = event.message.replace('\n', " ");
            let text = format!("{}  {kind}  {}  {message} {cause}", style.dim(moment(event.created_at)), subject(event));
            format!("{}\n", text.trim_end())
        }
    })
}

fn is_bad(kind: &str) -> bool {
    ["failed", "exited", "unhealthy"].iter().any(|bad| kind.ends_with(bad))
}

/// What an event is about.
fn subject(event: &Event) -> String {
    match (&event.namespace, &event.instance_name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (Some(namespace), None) => namespace.clone(),
        (None, _) => "-".to_owned(),
    }
}

fn events_table(ui: &Ui, events: &[Event], with_subject: bool) -> String {
    let row = |event: &Event| {
        let message = if ui.out.is_on { event.message.clone() } else { event.message.replace('\n', " ") };
        let mut row =
            vec![Cell::new(moment(event.created_at)), Cell::new(&event.kind), Cell::new(message), Cell::new(&event.cause)];
        if with_subject {
            row.insert(1, Cell::new(subject(event)));
        }
        row
    };
    let mut headers = vec!["TIME", "EVENT", "MESSAGE", "CAUSE"];
    if with_subject {
        headers.insert(1, "INSTANCE");
    }
    display::table(ui, &headers, &["MESSAGE", "CAUSE"], events.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn event() -> Event {
        Event {
            id: 7,
            instance_id: None,
            namespace: Some("default".into()),
            instance_name: Some("demo".into()),
            kind: "server_exited".into(),
            message: "it ended\nFATAL:  no".into(),
            cause: "seen by the local platform".into(),
            actor: "toygres".into(),
            operation_id: None,
            created_at: Utc::now(),
        }
    }

    #[test]
    fn an_event_that_is_followed_is_one_line() {
        let mut ui = testing::ui();
        let text = line(&ui, &event()).unwrap();
        assert!(
            text.ends_with("  server_exited        default/demo  it ended FATAL:  no (seen by the local platform)\n"),
            "{text:?}"
        );
        assert_eq!(text.lines().count(), 1);
        ui.format = OutputFormat::Json;
        let text = line(&ui, &event()).unwrap();
        assert_eq!((text.lines().count(), serde_json::from_str::<Event>(&text).unwrap().id), (1, 7));
    }
}

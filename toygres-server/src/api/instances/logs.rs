//! `/v1/instances/{name}/logs`: the server's own log, as it comes.
//!
//! As plain text for people. As server-sent events for clients that have to go on exactly where a connection
//! broke: each line is an event with its position as the `id`, and a request with that as its
//! `Last-Event-ID` gets what came after it, from this server of toygres or another. The event `end` says that
//! the log has ended; a stream that ends without it was cut off.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use toygres_activities::server_log::OwnLines;
use toygres_client::resources::{LAST_EVENT_ID, LOG_END, LOG_KEEP_ALIVE};
use toygres_models::{LogLine, LogRequest};
use utoipa::IntoParams;

use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{Parameters, Segment, instance_key, wants_stream, within_calendar};
use crate::api::state::{AppState, Shared};

/// The lines that there are unless more is asked for by `tail_lines` or `since`.
const DEFAULT_TAIL_LINES: usize = 100;
const MAX_TAIL_LINES: usize = 1_000_000;
/// How often a silent stream says that it is there: a client that is gone is noticed, and notices.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How many lines may go into one write.
const LINES_AT_ONCE: usize = 256;

/// Which part of a log is wanted.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogParameters {
    /// The instance's namespace; `default` if left out.
    namespace: Option<String>,
    /// Only so many lines from the end of what there is; 100 if this and `since` are left out.
    #[param(minimum = 0, maximum = 1_000_000)]
    tail_lines: Option<usize>,
    /// Only what was logged at this time or later.
    since: Option<DateTime<Utc>>,
    /// Whether to go on with what the server says from now on, until the instance is deleted.
    #[serde(default)]
    follow: bool,
}

impl LogParameters {
    fn request(&self, headers: &HeaderMap) -> Result<LogRequest, ApiError> {
        let tail_lines = match (self.tail_lines, self.since) {
            (None, None) => Some(DEFAULT_TAIL_LINES),
            (tail_lines, _) => tail_lines,
        };
        if let Some(lines) = tail_lines.filter(|lines| *lines > MAX_TAIL_LINES) {
            let detail = format!("tail_lines: {lines} is out of range; give 0 to {MAX_TAIL_LINES}");
            return Err(ApiError::invalid(detail).field("tail_lines"));
        }
        let after = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty());
        let after = after.map(|id| id.to_str().map(str::to_owned)).transpose();
        let after = after.map_err(|_| not_of_a_line())?;
        let since = self.since.map(within_calendar).transpose()?;
        Ok(LogRequest { tail_lines, since, after, follow: self.follow })
    }
}

/// An instance's PostgreSQL log
///
/// As plain text; for `Accept: text/event-stream` as events with a JSON object of a `text` each, whose ids say where to
/// go on after a broken connection. The event `end` says that the log has ended. A viewer gets what the server says of
/// itself, and nothing that its sessions wrote, which may hold statements.
#[utoipa::path(get, path = "/instances/{name}/logs", tag = "instances",
    params(("name" = String, Path), LogParameters,
        ("last-event-id" = Option<String>, Header, description = "Only what came after that event; the query's `tail_lines` and \
            `since` don't count then.")),
    responses((status = OK, content((String = "text/plain"), (String = "text/event-stream"))), Problems))]
pub(super) async fn logs(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<LogParameters>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_view(&key.namespace)?;
    let request = parameters.request(&headers)?;
    let instance = state.store.instance(&key).await?;
    let lines = state.platforms.of(&instance).await?.platform.logs(&key, request).await;
    let lines = lines.map_err(|failure| match failure.field.as_deref() {
        Some("after") => not_of_a_line(),
        _ => ApiError::of_recorded(failure, instance.state),
    })?;
    // What sessions write may hold statements, and these passwords.
    let sees_all = caller.may_edit(&key.namespace).is_ok();
    let mut own = OwnLines::default();
    let lines = lines.try_filter(move |line| std::future::ready(sees_all || own.is_own(&line.text)));
    let lines = lines.inspect_err(move |failure| tracing::warn!(instance.name = %key, error = %failure, "a log broke off"));
    let stopped = stopped(&state);
    if !wants_stream(&headers) {
        // Of lines that are there already, many go at once.
        let chunks = lines.try_ready_chunks(LINES_AT_ONCE).map_ok(|lines| text(&lines)).map_err(|broken| broken.1);
        let body = Body::from_stream(chunks.take_until(stopped));
        return Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response());
    }
    let events = lines.map(|line| match line {
        Ok(line) => event(line).map_err(axum::BoxError::from),
        Err(failure) => Err(failure.into()),
    });
    let end = stream::once(async { Ok(Event::default().event(LOG_END).data("the log has ended")) });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).event(Event::default().event(LOG_KEEP_ALIVE));
    Ok(Sse::new(events.chain(end).take_until(stopped)).keep_alive(keep_alive).into_response())
}

fn not_of_a_line() -> ApiError {
    ApiError::invalid("Last-Event-ID: no line of this log came with that id").field(LAST_EVENT_ID)
}

/// Streams end with the server: who follows goes on with the next one.
fn stopped(state: &Arc<AppState>) -> impl Future<Output = ()> + use<> {
    state.stopping.clone().cancelled_owned()
}

fn text(lines: &[LogLine]) -> Bytes {
    lines.iter().flat_map(|line| [line.text.as_str(), "\n"]).collect::<String>().into()
}

/// As JSON, since a line may hold what ends one of the event's.
fn event(line: LogLine) -> Result<Event, axum::Error> {
    let event = Event::default().json_data(&line)?;
    Ok(match line.position {
        Some(position) => event.id(position),
        None => event,
    })
}

//! `/v1/events` and `/v1/instances/{name}/events`.

mod stream;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use toygres_client::resources::Page;
use toygres_models::store::{Event, EventFilter, EventStart};
use toygres_models::{InstanceName, Namespace, Role};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{
    Parameters, Segment, decimal, instance_key, last_event_id, page_limit, wants_stream, within_calendar,
};
use crate::api::state::{AppState, Shared};

/// What is about events.
pub(super) fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(of_instance))
}

/// Which events there are to be, and from where on.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventParameters {
    /// Only in this namespace.
    namespace: Option<String>,
    /// Only of instances of this name.
    instance_name: Option<String>,
    /// Only of this kind; several with commas between them.
    kind: Option<String>,
    /// Only those after the event of this id; 0 is before all that are kept.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Only from this time on.
    since: Option<DateTime<Utc>>,
    /// Only so many of the latest, and for a stream what follows.
    #[param(minimum = 0, maximum = 1000)]
    last: Option<i64>,
    /// How many at most in a page; 100 if left out. Not for a stream.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where to go on: the last page's `next_cursor`. Not for a stream.
    cursor: Option<String>,
}

/// The same for one instance.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct InstanceEventParameters {
    /// The instance's namespace; `default` if left out.
    namespace: Option<String>,
    /// Only those after the event of this id; 0 is before all that are kept.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Only from this time on.
    since: Option<DateTime<Utc>>,
    /// Only so many of the latest.
    #[param(minimum = 0, maximum = 1000)]
    last: Option<i64>,
    /// How many at most in a page; 100 if left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where to go on: the last page's `next_cursor`.
    cursor: Option<String>,
}

/// What happened, and what happens
///
/// Oldest first, as pages; or with `Accept: text/event-stream` as a stream that goes on for as long as the
/// client reads. A stream begins with what happens from now on, unless `after`, `since` or `last` say
/// otherwise. Each of its messages is an event as JSON, with its id; a message without data says only how
/// far the stream is. Asked for with the last id as `Last-Event-ID` or `after`, from this server or
/// another, it goes on with the next event: none is lost or told twice. 410 says that some aren't kept any
/// more. A stream ends with its server, and when its token is revoked.
#[utoipa::path(get, path = "/events", tag = "events",
    params(EventParameters, ("Last-Event-ID" = Option<i64>, Header, description = "For a stream: the id of the last message")),
    responses((status = OK, content((Page<Event> = "application/json"), (String = "text/event-stream"))), Problems))]
pub(super) async fn list(
    State(state): Shared,
    caller: Caller,
    headers: HeaderMap,
    Parameters(parameters): Parameters<EventParameters>,
) -> Result<Response, ApiError> {
    let namespace: Option<Namespace> = parameters.namespace.as_deref().map(str::parse).transpose()?;
    let instance_name: Option<InstanceName> = parameters.instance_name.as_deref().map(str::parse).transpose()?;
    let filter = EventFilter {
        namespaces: caller.listed_namespaces(namespace.as_ref())?,
        // Tokens are made and revoked in no namespace.
        without_namespace: caller.role == Role::Admin,
        instance_id: None,
        instance_name: instance_name.map(|name| name.to_string()),
        kinds: parameters.kind.as_deref().map(kinds).transpose()?,
    };
    let start = start(parameters.after, parameters.since, parameters.last)?;
    let last_event_id = last_event_id(&headers)?;
    if !wants_stream(&headers) {
        let bounds = bounds(parameters.limit, parameters.cursor.as_deref())?;
        return Ok(Json(page(&state, &filter, start, bounds).await?).into_response());
    }
    for (field, is_given) in [("limit", parameters.limit.is_some()), ("cursor", parameters.cursor.is_some())] {
        if is_given {
            return Err(ApiError::invalid(format!("{field}: is for pages, and a stream has none")).field(field));
        }
    }
    let start = last_event_id.map(EventStart::After).or(start).unwrap_or(EventStart::Now);
    let after = state.store.event_position(&filter, start).await?;
    stream::open(&state, filter, after)
}

/// What happened to an instance
///
/// Oldest first. Also of an instance that is deleted already: of the last one that had the name.
#[utoipa::path(get, path = "/instances/{name}/events", tag = "events",
    params(("name" = String, Path), InstanceEventParameters),
    responses((status = OK, body = Page<Event>), Problems))]
pub(super) async fn of_instance(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InstanceEventParameters>,
) -> Result<Json<Page<Event>>, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_view(&key.namespace)?;
    let start = start(parameters.after, parameters.since, parameters.last)?;
    let bounds = bounds(parameters.limit, parameters.cursor.as_deref())?;
    let filter = EventFilter::of_instance(state.store.instance_or_last_deleted(&key).await?.id);
    Ok(Json(page(&state, &filter, start, bounds).await?))
}

/// How many events a page has at most, and after which one it begins, where the last page said so.
fn bounds(limit: Option<i64>, cursor: Option<&str>) -> Result<(i64, Option<i64>), ApiError> {
    let refuse = || ApiError::invalid("cursor: is not one that a list gave").field("cursor");
    let after = cursor.map(|cursor| decimal(cursor).ok_or_else(refuse)).transpose()?;
    Ok((page_limit(limit)?, after))
}

async fn page(
    state: &AppState,
    filter: &EventFilter,
    start: Option<EventStart>,
    (limit, cursor): (i64, Option<i64>),
) -> Result<Page<Event>, ApiError> {
    let after = match cursor {
        // What was pruned since the last page is gone, and no reason to stop in the middle.
        Some(cursor) => cursor,
        None => state.store.event_position(filter, start.unwrap_or(EventStart::After(0))).await?,
    };
    let items = state.store.events_matching(filter, after, limit + 1).await?;
    Ok(Page::cut(items, limit, |last| last.id.to_string()))
}

/// Where it begins, of which there is one.
/// The kinds of events in a list with commas.
fn kinds(listed: &str) -> Result<Vec<String>, ApiError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let kind = |kind: &str| {
        let kind = kind.trim_matches(' ');
        let is_one = (1..=64).contains(&kind.len()) && kind.bytes().all(plain);
        let refuse = || ApiError::invalid("give kinds of events, such as create_requested,instance_running").field("kind");
        is_one.then(|| kind.to_owned()).ok_or_else(refuse)
    };
    listed.split(',').map(kind).collect()
}

fn start(after: Option<i64>, since: Option<DateTime<Utc>>, last: Option<i64>) -> Result<Option<EventStart>, ApiError> {
    if let Some(after) = after.filter(|after| *after < 0) {
        return Err(ApiError::invalid(format!("after: {after} is no event's id; give 0 or more")).field("after"));
    }
    if let Some(last) = last.filter(|last| !(0..=1000).contains(last)) {
        return Err(ApiError::invalid(format!("last: {last} is out of range; give 0 to 1000")).field("last"));
    }
    let since = since.map(within_calendar).transpose()?;
    match (after, since, last) {
        (None, None, None) => Ok(None),
        (Some(after), None, None) => Ok(Some(EventStart::After(after))),
        (None, Some(since), None) => Ok(Some(EventStart::Since(since))),
        (None, None, Some(last)) => Ok(Some(EventStart::Last(last))),
        _ => Err(ApiError::invalid("after, since and last each say where to begin; give one of them").field("after")),
    }
}

//! `/v1/operations`.

mod watch;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use toygres_client::resources::Page;
use toygres_models::store::{Operation, OperationFilter, StoreError};
use toygres_models::{InstanceName, Namespace, OperationKind, OperationState};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{Parameters, Segment, last_event_id, page_limit, wants_stream};
use crate::api::state::{AppState, Shared};
use watch::OperationWatch;

/// The longest wait of one request.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// What is about operations.
pub(super) fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get)).routes(routes!(cancel)).routes(routes!(retry))
}

/// 202, and where to watch the operation.
pub(super) fn accepted(operation: Operation) -> Response {
    let location = format!("/v1/operations/{}", operation.id);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(operation)).into_response()
}

/// Starts the workflow. The operation is written already: if this fails, the sweep starts it.
pub(super) async fn begin(state: &AppState, operation: &Operation) {
    if let Err(error) = state.workflows.begin(operation).await {
        tracing::warn!(%error, operation.id = %operation.id, "the operation's workflow will be started by the sweep");
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParameters {
    /// Only in this namespace.
    namespace: Option<String>,
    /// Only of instances of this name.
    instance_name: Option<String>,
    /// Only of this kind.
    #[param(inline)]
    kind: Option<OperationKind>,
    /// Only in this state.
    #[param(inline)]
    state: Option<OperationState>,
    /// How many at most; 100 if left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where to go on: the last page's `next_cursor`.
    cursor: Option<Uuid>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitParameters {
    /// How long to wait for news, such as `20s`; at most `60s`, and not at all if left out.
    wait: Option<String>,
    /// Which revision is no news; without it only the operation's end is.
    after_revision: Option<i64>,
}

/// List operations
///
/// Newest first.
#[utoipa::path(get, path = "/operations", tag = "operations", params(ListParameters),
    responses((status = OK, body = Page<Operation>), Problems))]
pub(super) async fn list(
    State(state): Shared,
    caller: Caller,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<Page<Operation>>, ApiError> {
    let limit = page_limit(parameters.limit)?;
    let namespace: Option<Namespace> = parameters.namespace.as_deref().map(str::parse).transpose()?;
    let instance_name: Option<InstanceName> = parameters.instance_name.as_deref().map(str::parse).transpose()?;
    let filter = OperationFilter {
        namespaces: caller.listed_namespaces(namespace.as_ref())?,
        instance_name: instance_name.map(String::from),
        kind: parameters.kind,
        state: parameters.state,
        before: parameters.cursor,
    };
    let items = state.store.operations(&filter, limit + 1).await?;
    Ok(Json(Page::cut(items, limit, |last| last.id.to_string())))
}

/// One operation
///
/// With `wait`: as soon as it has changed since `after_revision`, has ended, or the wait is over. To
/// clients that accept `text/event-stream` it is sent anew with each change until it has ended, as an event
/// `operation` whose id is the revision; with `Last-Event-ID`, from the change after that on.
#[utoipa::path(get, path = "/operations/{id}", tag = "operations",
    params(("id" = Uuid, Path), WaitParameters, ("last-event-id" = Option<i64>, Header, description = "The last revision seen")),
    responses((status = OK, content((Operation = "application/json"), (String = "text/event-stream"))),
        (status = NO_CONTENT, description = "The stream's last event was seen already"), Problems))]
pub(super) async fn get(
    State(state): Shared,
    caller: Caller,
    Segment(id): Segment,
    Parameters(parameters): Parameters<WaitParameters>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let wait = parameters.wait.as_deref().map(parse_wait).transpose()?.unwrap_or_default();
    let last_event_id = last_event_id(&headers)?;
    let operation = visible(&state, &caller, &id).await?;
    if wants_stream(&headers) {
        let seen = last_event_id.or(parameters.after_revision).unwrap_or(0);
        if operation.state.is_final() && operation.revision <= seen {
            // There is no more to come; browsers ask again until they are told so.
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        let events = OperationWatch::begin(state, operation.id).stream(seen);
        return Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response());
    }
    let mut watch = OperationWatch::begin(state, operation.id);
    let operation = watch.wait_for_change(parameters.after_revision.unwrap_or(i64::MAX), wait).await?;
    Ok(Json(operation).into_response())
}

/// Cancel an operation
///
/// A create that is cancelled leaves nothing, a change is reverted; the operation ends as `cancelled`
/// when that is done. A delete or a restart can be cancelled until it has begun: after that the answer is 409 with the
/// type `point_of_no_return`. Repeating it changes nothing.
#[utoipa::path(post, path = "/operations/{id}/cancel", tag = "operations", params(("id" = Uuid, Path)),
    responses((status = ACCEPTED, body = Operation, headers(("location" = String))), Problems))]
pub(super) async fn cancel(State(state): Shared, caller: Caller, Segment(id): Segment) -> Result<Response, ApiError> {
    let id = editable(&state, &caller, &id).await?;
    let operation = state.store.cancel_operation(id, &caller.requested()).await?;
    if !operation.state.is_final() {
        state.workflows.wake_cancelled(id).await;
    }
    Ok(accepted(operation))
}

/// Try a failed operation again
///
/// By a new operation, which goes on where that one failed. Only the last one on an instance can be
/// tried again; while that is done, repeating the request gives the same operation.
#[utoipa::path(post, path = "/operations/{id}/retry", tag = "operations", params(("id" = Uuid, Path)),
    responses((status = ACCEPTED, body = Operation, headers(("location" = String))), Problems))]
pub(super) async fn retry(State(state): Shared, caller: Caller, Segment(id): Segment) -> Result<Response, ApiError> {
    let id = editable(&state, &caller, &id).await?;
    let operation = state.store.retry_operation(id, &caller.requested()).await?;
    begin(&state, &operation).await;
    Ok(accepted(operation))
}

/// The operation, if there is one and the caller may know of it.
async fn visible(state: &AppState, caller: &Caller, id: &str) -> Result<Operation, ApiError> {
    let malformed = || ApiError::invalid("id: is not an operation's id; `toygres operations` lists them").field("id");
    let id: Uuid = id.parse().map_err(|_| malformed())?;
    let found = state.store.operation(id).await?.filter(|operation| caller.sees(&operation.namespace));
    Ok(found.ok_or(StoreError::OperationNotFound(id))?)
}

/// The id of an operation that the caller may change.
async fn editable(state: &AppState, caller: &Caller, id: &str) -> Result<Uuid, ApiError> {
    let operation = visible(state, caller, id).await?;
    caller.may_edit(&operation.namespace.parse()?)?;
    Ok(operation.id)
}

fn parse_wait(text: &str) -> Result<Duration, ApiError> {
    let refuse = || ApiError::invalid(format!("wait: {text:?} is not a time up to 60s, such as 20s")).field("wait");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let plain = |digits: &&str| digits.len() <= 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let seconds: Option<u8> = text.strip_suffix('s').filter(plain).and_then(|digits| digits.parse().ok());
    seconds.map(|seconds| Duration::from_secs(seconds.into())).filter(|wait| *wait <= MAX_WAIT).ok_or_else(refuse)
}

//! `/v1/operations`.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use toygres_models::store::{Operation, OperationFilter};
use toygres_models::{OperationKind, OperationState, PostgresVersion};
use uuid::Uuid;

use super::problem::ApiError;
use super::request::{Parameters, Segment, page_limit};
use super::resources::Page;
use super::{AppState, Shared};

/// The longest wait of one request.
const MAX_WAIT_SECONDS: u64 = 60;
/// A waiter looks by itself this often, in case a wake was lost with its connection.
const FALLBACK_INTERVAL: Duration = Duration::from_secs(2);
/// And this often while something is being fetched, which writes nothing down.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParameters {
    namespace: Option<String>,
    instance_name: Option<String>,
    limit: Option<i64>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitParameters {
    wait_seconds: Option<u64>,
    after_revision: Option<i64>,
}

/// Newest first.
pub(super) async fn list(
    State(state): Shared,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<Page<Operation>>, ApiError> {
    let limit = page_limit(parameters.limit)?;
    let before = match parameters.cursor.as_deref() {
        Some(cursor) => Some(cursor.parse().map_err(|_| ApiError::invalid("cursor: is not one that a list gave"))?),
        None => None,
    };
    let filter = OperationFilter { namespace: parameters.namespace, instance_name: parameters.instance_name, before };
    let items = state.store.operations(&filter, limit).await?;
    let full = i64::try_from(items.len()).is_ok_and(|length| length == limit);
    let next_cursor = items.last().filter(|_| full).map(|last| last.id.to_string());
    Ok(Json(Page { items, next_cursor }))
}

/// One operation. With `wait_seconds`: as soon as it has changed since `after_revision`, has
/// ended, or the wait is over.
pub(super) async fn get(
    State(state): Shared,
    Segment(id): Segment,
    Parameters(parameters): Parameters<WaitParameters>,
) -> Result<Json<Operation>, ApiError> {
    let id: Uuid = id.parse().map_err(|_| ApiError::invalid("id: is not an operation's id; `toygres operations` lists them"))?;
    let wait_seconds = parameters.wait_seconds.unwrap_or(0).min(MAX_WAIT_SECONDS);
    let deadline = Instant::now() + Duration::from_secs(wait_seconds);
    let seen = parameters.after_revision.unwrap_or(i64::MAX);
    // Subscribed before the first look, so that no change falls between the two.
    let mut changes = state.changes.subscribe();
    loop {
        let mut operation = state
            .store
            .operation(id)
            .await?
            .ok_or_else(|| ApiError::not_found(format!("there is no operation {id}; `toygres operations` lists them")))?;
        operation.progress = progress(&state, &operation).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let news = operation.revision > seen || operation.state.is_final() || operation.progress.is_some();
        if left.is_zero() || state.stopping.is_cancelled() || (news && wait_seconds > 0) {
            return Ok(Json(operation));
        }
        let look_again = if operation.state == OperationState::Running { PROGRESS_INTERVAL } else { FALLBACK_INTERVAL };
        let woken = async {
            // A receiver that lagged has missed something: look again too.
            while changes.recv().await.is_ok_and(|changed| changed != id) {}
        };
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(look_again.min(left)) => {}
            () = state.stopping.cancelled() => {}
        }
    }
}

/// What a creation is waiting for, where this machine is fetching its PostgreSQL.
async fn progress(state: &AppState, operation: &Operation) -> Result<Option<String>, ApiError> {
    if operation.kind != OperationKind::Create || operation.state != OperationState::Running {
        return Ok(None);
    }
    let fetches = state.host.as_ref().map(|host| host.fetches()).unwrap_or_default();
    if fetches.is_empty() {
        return Ok(None);
    }
    let instance = state.store.instance_by_id(operation.instance_id).await?;
    let Ok(version) = instance.postgres_version.parse::<PostgresVersion>() else { return Ok(None) };
    let fetch = fetches.iter().find(|fetch| version.accepts(fetch.postgres_version));
    Ok(fetch.map(|fetch| format!("fetching PostgreSQL {} from {}", fetch.postgres_version, fetch.source)))
}

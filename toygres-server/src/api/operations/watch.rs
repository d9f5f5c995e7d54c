//! What becomes of an operation, for clients that wait for it: by a request that is held, or a stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::sse::Event;
use chrono::{TimeDelta, Utc};
use futures::{Stream, stream};
use tokio::sync::broadcast;
use toygres_models::store::{Operation, StoreError, Subject};
use toygres_models::{OperationKind, OperationState, PlatformName};
use uuid::Uuid;

use crate::api::http::problem::ApiError;
use crate::api::state::AppState;

/// A waiting request reads the operation this often, in case a wake was lost with its connection.
const FALLBACK_INTERVAL: Duration = Duration::from_secs(2);
/// An operation that nothing was done of for this long is waiting for something.
const STILL: TimeDelta = TimeDelta::seconds(2);
/// And this often while something is being fetched, which writes nothing down.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Watches one operation.
pub(super) struct OperationWatch {
    state: Arc<AppState>,
    id: Uuid,
    changes: broadcast::Receiver<Option<Uuid>>,
    /// Asked for once: what ends meanwhile hardly changes it.
    expected_seconds: Option<Option<f64>>,
    /// The progress as it was at the last look.
    last_progress: Option<Option<String>>,
}

impl OperationWatch {
    /// Begins to watch: no change from now on is missed.
    pub(super) fn begin(state: Arc<AppState>, id: Uuid) -> Self {
        Self { changes: state.changes.subscribe(Subject::Operations), state, id, expected_seconds: None, last_progress: None }
    }

    /// The operation, as soon as it is beyond the revision `seen`, has ended or tells of other progress;
    /// as it is when `wait` is over or the server stops.
    pub(super) async fn wait_for_change(&mut self, seen: i64, wait: Duration) -> Result<Operation, ApiError> {
        let deadline = Instant::now() + wait;
        loop {
            let (operation, has_changed) = self.fetch(seen).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if has_changed || left.is_zero() || self.state.stopping.is_cancelled() {
                return Ok(operation);
            }
            self.change(&operation, left).await;
        }
    }

    /// The operation at each change after the revision `seen`, until it has ended. A stream that breaks
    /// off before that, since the server stops or its database is away, can be resumed.
    pub(super) fn stream(self, seen: i64) -> impl Stream<Item = Result<Event, axum::Error>> {
        stream::unfold(Some((self, seen)), |following| async move {
            let (mut watch, seen) = following?;
            let operation = watch.next(seen).await?;
            let event = Event::default().event("operation").id(operation.revision.to_string()).json_data(&operation);
            let rest = (!operation.state.is_final()).then_some((watch, operation.revision));
            Some((event, rest))
        })
    }

    async fn next(&mut self, seen: i64) -> Option<Operation> {
        loop {
            let (operation, has_changed) = self.fetch(seen).await.ok()?;
            if has_changed {
                return Some(operation);
            }
            if self.state.stopping.is_cancelled() {
                return None;
            }
            self.change(&operation, FALLBACK_INTERVAL).await;
        }
    }

    /// The operation as it is, and whether it has changed since that revision.
    async fn fetch(&mut self, seen: i64) -> Result<(Operation, bool), ApiError> {
        let found = self.state.store.operation(self.id).await?;
        let mut operation = found.ok_or(StoreError::OperationNotFound(self.id))?;
        if operation.state.is_final() {
            return Ok((operation, true));
        }
        operation.expected_seconds = match self.expected_seconds {
            Some(known) => known,
            None => *self.expected_seconds.insert(self.state.store.expected_seconds(&operation).await?),
        };
        operation.progress = progress(&self.state, &operation);
        // That there is progress at the first look is no news: who asked has seen the last answer's.
        let before = self.last_progress.replace(operation.progress.clone());
        let has_changed = operation.revision > seen || before.is_some_and(|before| before != operation.progress);
        Ok((operation, has_changed))
    }

    /// Returns when the operation may have changed, or after `limit`.
    async fn change(&mut self, operation: &Operation, limit: Duration) {
        let may_fetch = operation.kind == OperationKind::CREATE && operation.state == OperationState::Running;
        let poll_interval = if may_fetch && self.state.host.is_some() { PROGRESS_INTERVAL } else { FALLBACK_INTERVAL };
        let woken = async {
            // A receiver that lagged has missed something: look again too.
            while self.changes.recv().await.is_ok_and(|changed| changed.is_some_and(|changed| changed != self.id)) {}
        };
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(poll_interval.min(limit)) => {}
            () = self.state.stopping.cancelled() => {}
        }
    }
}

/// What an operation is waiting for: a server of another machine, or, for a creation, its PostgreSQL,
/// which this machine is fetching.
fn progress(state: &AppState, operation: &Operation) -> Option<String> {
    if operation.state == OperationState::Pending && Utc::now() - operation.created_at > STILL {
        let is_local = operation.spec.platform == PlatformName::Local;
        let machine_id = Some(operation.place.as_str()).filter(|place| is_local && *place != PlatformName::Local.as_str());
        let elsewhere = machine_id.filter(|id| state.host.as_ref().is_none_or(|host| host.machine_id() != *id));
        return elsewhere.map(|machine_id| format!("waiting for a server of the machine {machine_id}"));
    }
    if operation.kind != OperationKind::CREATE || operation.state != OperationState::Running {
        return None;
    }
    let fetches = state.host.as_ref().map(|host| host.fetches()).unwrap_or_default();
    if fetches.is_empty() {
        return None;
    }
    let fetch = fetches.iter().find(|fetch| operation.spec.postgres_version.accepts(fetch.postgres_version));
    fetch.map(|fetch| format!("fetching PostgreSQL {} from {}", fetch.postgres_version, fetch.source))
}

//! Forgetting what is old: events, the operations and deleted instances that they tell of, answers kept
//! for repeats. Every server does it now and then; what one has forgotten the next doesn't find.

use std::sync::Arc;
use std::time::Duration;

use toygres_models::Store;

use super::workflows::{WorkflowError, Workflows};

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(10 * 60);
/// How much is forgotten in one go: no transaction is long, and no lock is held for long.
const BATCH: i64 = 500;
/// An operation takes its workflow's history with it, row by row.
const OPERATIONS_AT_ONCE: i64 = 50;
/// How long the answers to requests are kept for their repeats.
const ANSWERS_KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Between two goes, so that it never keeps the database from its work.
const PAUSE: Duration = Duration::from_millis(20);

/// Forgets what is older than `kept_for`, for as long as the server runs.
pub async fn keep_forgetting(store: Store, workflows: Arc<Workflows>, kept_for: Duration) {
    loop {
        match forget(&store, &workflows, kept_for).await {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "forgot what is older than the event retention"),
            Err(error) => tracing::warn!(%error, "what is old could not be forgotten; the next look is in a while"),
        }
        tokio::time::sleep(PERIOD.min(kept_for)).await;
    }
}

/// Goes on until nothing old is left. How much there was.
async fn forget(store: &Store, workflows: &Workflows, kept_for: Duration) -> Result<u64, WorkflowError> {
    let mut forgotten = store.forget_answers(ANSWERS_KEPT_FOR).await?;
    loop {
        match forget_some(store, workflows, kept_for).await? {
            0 => return Ok(forgotten),
            count => forgotten += count,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A part of each kind of thing, after those that refer to it.
async fn forget_some(store: &Store, workflows: &Workflows, kept_for: Duration) -> Result<u64, WorkflowError> {
    let mut forgotten = store.prune_events(kept_for, BATCH).await?;
    let operations = store.old_operations(kept_for, OPERATIONS_AT_ONCE).await?;
    if !operations.is_empty() {
        // Cut off in between, the rows are found again. The other way round, nobody would look for the
        // histories.
        workflows.forget(&operations).await?;
        forgotten += store.forget_operations(&operations).await?;
    }
    Ok(forgotten + store.forget_deleted_instances(kept_for, BATCH).await?)
}

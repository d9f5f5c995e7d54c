//! Puts right what others changed or removed around intact data: a Service that somebody deleted, a label, a policy. Data that
//! is gone is never made again, and no server is restarted by it.

use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use toygres_activities::{Place, Platforms};
use toygres_models::store::{ChangeRequested, Instance, Operation, Requested, StoreError};
use toygres_models::{Drift, Failure, InstanceKey, InstanceState, OperationKind, OperationState, Store};

use super::workflows::Workflows;

/// How often it is looked for what others changed.
const PERIOD: Duration = Duration::from_secs(20);
/// How soon it is tried again after a change of the instance that failed.
const RETRY_AFTER: TimeDelta = TimeDelta::minutes(10);
/// So often within [`RETRY_AFTER`] an instance's objects are put right. Whoever changes them again fights for them.
const MOST_REPAIRS: i64 = 3;
/// How long it is left alone then.
const PEACE: TimeDelta = TimeDelta::hours(1);
/// The event that tells of such a fight.
const FOUGHT: &str = "drift_fought";

/// Compares the instances of the platforms that are open with what is there of them, for as long as the server runs.
pub async fn keep_repairing(platforms: Platforms, store: Store, workflows: Arc<Workflows>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        for place in platforms.opened() {
            if let Err(failure) = repair(&place, &store, &workflows).await {
                tracing::warn!(error = %failure, "instances could not be compared with their platform; it is tried again");
            }
        }
    }
}

async fn repair(place: &Place, store: &Store, workflows: &Workflows) -> Result<(), Failure> {
    let cluster_id = place.platform.cluster_id().await?;
    for key in place.platform.suspects().await? {
        let instance = match store.instance(&key).await {
            Ok(instance) => instance,
            // Another toygres's, or to be adopted.
            Err(StoreError::InstanceNotFound(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        let is_settled = matches!(instance.state, InstanceState::Running | InstanceState::Stopped);
        if !is_settled || instance.cluster_id != cluster_id || store.operation_at_work(instance.id).await?.is_some() {
            continue;
        }
        match place.platform.drift(&key, &instance.spec).await {
            Ok(drift) => put_right(&key, &instance, drift, store, workflows).await?,
            Err(failure) if failure.retryable => return Err(failure),
            // Of one whose object is another's by its labels, say. The others are compared nevertheless.
            Err(failure) => tracing::warn!(instance.name = %key, error = %failure, "it could not be compared with its platform"),
        }
    }
    Ok(())
}

async fn put_right(
    key: &InstanceKey,
    instance: &Instance,
    drift: Vec<Drift>,
    store: &Store,
    workflows: &Workflows,
) -> Result<(), Failure> {
    let drift: Vec<_> = drift.into_iter().filter(Drift::is_mended).collect();
    let last = store.last_operation(instance.id, OperationKind::UPDATE).await?;
    let has_failed = |operation: &Operation| {
        let since = operation.finished_at.map(|finished| Utc::now() - finished);
        operation.state == OperationState::Failed && since.is_some_and(|since| since < RETRY_AFTER)
    };
    if drift.is_empty() || last.as_ref().is_some_and(has_failed) {
        return Ok(());
    }
    // What is gone is made again however often: without it nobody can work.
    if !drift.iter().any(|drift| drift.field.is_none()) {
        if store.has_event_since(instance.id, FOUGHT, Utc::now() - PEACE).await? {
            return Ok(());
        }
        let repairs = store.own_operations_since(instance.id, OperationKind::UPDATE, Utc::now() - RETRY_AFTER).await?;
        if repairs >= MOST_REPAIRS {
            let message = format!(
                "{}; toygres has put objects of this instance right {repairs} times in ten minutes, and leaves them for an hour \
                 now: take them out of what else manages the cluster",
                words(&drift)
            );
            return Ok(store.record_request(instance, FOUGHT, &message, &Requested::by("toygres")).await?);
        }
    }
    begin(store, workflows, key, instance, &words(&drift)).await
}

/// A few of them; a ConfigMap may have many.
fn words(drift: &[Drift]) -> String {
    const TOLD: usize = 5;
    let mut words = drift.iter().take(TOLD).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if drift.len() > TOLD {
        words.push_str(&format!("; and {} more", drift.len() - TOLD));
    }
    words
}

async fn begin(store: &Store, workflows: &Workflows, key: &InstanceKey, instance: &Instance, drift: &str) -> Result<(), Failure> {
    let requested = Requested { cause: format!("{drift}; put right"), ..Requested::by("toygres") };
    match store.change_instance(key, Some(instance.generation), &instance.spec, true, &requested).await {
        Ok(ChangeRequested::New(operation)) => {
            tracing::info!(instance.name = %key, drift, "putting right what others changed of an instance");
            if let Err(error) = workflows.begin(&operation).await {
                tracing::warn!(%error, operation.id = %operation.id, "the operation's workflow will be started by the sweep");
            }
            Ok(())
        }
        // Another request, or another server, was quicker.
        Ok(_) | Err(StoreError::NotNow(_) | StoreError::GenerationMismatch { .. } | StoreError::InstanceNotFound(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

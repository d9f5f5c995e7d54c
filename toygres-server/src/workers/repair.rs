//! Makes again what is gone around intact data: a StatefulSet, a Service, a Secret that somebody deleted. Data that is gone
//! never is.

use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use toygres_activities::{Place, Platforms};
use toygres_models::store::{ChangeRequested, Instance, Operation, Requested, StoreError};
use toygres_models::{Failure, InstanceKey, InstanceState, OperationKind, OperationState, Store};

use super::workflows::Workflows;

/// How soon what is gone is made again.
const PERIOD: Duration = Duration::from_secs(20);

/// How soon it is tried again after a change of the instance that failed.
const RETRY_AFTER: TimeDelta = TimeDelta::minutes(10);

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
    for (key, missing) in place.platform.incomplete().await? {
        let instance = match store.instance(&key).await {
            Ok(instance) => instance,
            // Another toygres's, or to be adopted.
            Err(StoreError::InstanceNotFound(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        let is_settled = matches!(instance.state, InstanceState::Running | InstanceState::Stopped);
        let last = store.last_operation(instance.id, OperationKind::UPDATE).await?;
        let has_failed = |operation: &Operation| {
            let since = operation.finished_at.map(|finished| Utc::now() - finished);
            operation.state == OperationState::Failed && since.is_some_and(|since| since < RETRY_AFTER)
        };
        let is_due = !last.as_ref().is_some_and(has_failed);
        if is_settled && is_due && instance.cluster_id == cluster_id && store.operation_at_work(instance.id).await?.is_none() {
            begin(store, workflows, &key, &instance, &missing.join(", ")).await?;
        }
    }
    Ok(())
}

async fn begin(
    store: &Store,
    workflows: &Workflows,
    key: &InstanceKey,
    instance: &Instance,
    missing: &str,
) -> Result<(), Failure> {
    let requested = Requested { cause: format!("{missing} was gone; made again"), ..Requested::by("toygres") };
    match store.change_instance(key, Some(instance.generation), &instance.spec, true, &requested).await {
        Ok(ChangeRequested::New(operation)) => {
            tracing::info!(instance.name = %key, missing, "making again what is gone of an instance");
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

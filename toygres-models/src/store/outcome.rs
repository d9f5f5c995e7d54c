//! What flows back from the platform: an instance's new state, its operation's end and the event,
//! written together.

use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::events::{Happening, insert_event};
use super::operations::delete_at_work;
use super::{Instance, Operation, Requested, StepFailure, Store, StoreError, commit};
use crate::{Failure, FailureKind, InstanceState, OperationKind, OperationState, PlatformName};

/// A change that flows back from the platform: the input of the activity `update-metadata`.
#[derive(Debug, Clone)]
pub struct MetadataUpdate {
    /// The instance.
    pub instance_id: Uuid,
    /// Its name, for a record that isn't there yet.
    pub instance_name: String,
    /// Where it runs, for a record that isn't there yet.
    pub platform: PlatformName,
    /// Its new state.
    pub state: InstanceState,
    /// Its health; `None` leaves it.
    pub health_status: Option<String>,
    /// How it is reached by address; `None` leaves it.
    pub ip_connection_string: Option<String>,
    /// How it is reached by public name; `None` leaves it.
    pub dns_connection_string: Option<String>,
    /// The workflow that watches its health; `None` leaves it.
    pub health_check_orchestration_id: Option<String>,
    /// The operation that brings it about; it ends with the state that it was for.
    pub operation_id: Option<Uuid>,
    /// Whether the operation was cancelled, and this is the state that was put back.
    pub compensated: bool,
}

impl Store {
    /// Takes over what a workflow found or did. `true` if the record had to be made.
    ///
    /// The state of the instance, the end of the operation and the event are written together.
    /// Repeating it changes nothing more: an operation that has ended writes nothing. When an operation
    /// failed, the reason is that of its step that failed. A creation that a delete overtook ends
    /// without touching the instance.
    ///
    /// # Errors
    /// [`StoreError::Cancelled`] if somebody cancelled the operation: what it did has to be put back
    /// first. [`StoreError::IllegalTransition`] if the instance may not go to that state.
    pub async fn update_metadata(&self, update: &MetadataUpdate) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let found: Option<Instance> = sqlx::query_as("SELECT * FROM instances WHERE id = $1 FOR UPDATE")
            .bind(update.instance_id)
            .fetch_optional(&mut *tx)
            .await?;
        let created = found.is_none();
        let before = match found {
            Some(instance) => instance,
            None => insert_record(&mut tx, update).await?,
        };
        let operation: Option<Operation> =
            sqlx::query_as("SELECT * FROM operations WHERE id = $1 AND instance_id = $2 FOR NO KEY UPDATE")
                .bind(update.operation_id)
                .bind(update.instance_id)
                .fetch_optional(&mut *tx)
                .await?;
        let Some(operation) = operation else {
            write_instance(&mut tx, update, None).await?;
            commit(tx).await?;
            return Ok(created);
        };
        if operation.state.is_final() {
            return Ok(false);
        }
        if operation.cancel_requested_at.is_some() && !update.compensated {
            return Err(StoreError::Cancelled(format!("the {} operation {} was cancelled", operation.kind, operation.id)));
        }
        let going = matches!(before.state, InstanceState::Deleting | InstanceState::Deleted);
        // One that was cancelled marked the instance itself; a delete may have come after that.
        let overtaken = operation.kind == OperationKind::Create
            && going
            && (!update.compensated || delete_at_work(&mut tx, before.id).await?);
        let end = match update.state {
            InstanceState::Failed => Some(OperationState::Failed),
            _ if update.compensated => Some(OperationState::Cancelled),
            _ if overtaken => Some(OperationState::Failed),
            state => end_of(operation.kind, state),
        };
        let failure = match end {
            // It made the instance, but nobody gets it: that is no success.
            Some(OperationState::Failed) if overtaken && !update.compensated => Some(Json(StepFailure {
                step: "update-metadata".into(),
                failure: Failure::permanent(
                    FailureKind::Superseded,
                    format!("{}/{} is being deleted; its creation was given up", before.namespace, before.name),
                ),
            })),
            Some(OperationState::Failed) => failed_step(&mut tx, operation.id).await?.map(Json),
            _ => None,
        };
        let untouched = match operation.kind {
            OperationKind::Create => overtaken,
            // An update that failed leaves an instance that runs as it did.
            OperationKind::Update => before.state != InstanceState::Running || update.state == InstanceState::Failed,
            OperationKind::Delete => false,
        };
        if !untouched {
            write_instance(&mut tx, update, failure.as_ref()).await?;
        }
        if let Some(end) = end {
            finish_operation(&mut tx, &operation, end, failure.as_ref()).await?;
            if !overtaken || end == OperationState::Cancelled {
                insert_end_event(&mut tx, &before, &operation, end, update, failure.as_ref()).await?;
            }
        }
        commit(tx).await?;
        Ok(created)
    }
}

/// The record of an instance that nobody asked this store for.
async fn insert_record(connection: &mut PgConnection, update: &MetadataUpdate) -> Result<Instance, StoreError> {
    Ok(sqlx::query_as(
        "INSERT INTO instances (id, namespace, name, platform, postgres_version, storage_size_gb, state)
         VALUES ($1, 'default', $2, $3, 'unknown', 0, $4) RETURNING *",
    )
    .bind(update.instance_id)
    .bind(&update.instance_name)
    .bind(update.platform)
    .bind(update.state)
    .fetch_one(connection)
    .await?)
}

async fn write_instance(
    connection: &mut PgConnection,
    update: &MetadataUpdate,
    failure: Option<&Json<StepFailure>>,
) -> Result<(), StoreError> {
    // Both connection strings are learned together: with an address and no name, there is no name.
    sqlx::query(
        "UPDATE instances SET state = $2, failure = $3,
            health_status = CASE WHEN $2 IN ('failed', 'deleted') THEN NULL ELSE coalesce($4, health_status) END,
            ip_connection_string = coalesce($5, ip_connection_string),
            dns_connection_string = CASE WHEN $5 IS NULL THEN coalesce($6, dns_connection_string) ELSE $6 END,
            health_check_orchestration_id = coalesce($7, health_check_orchestration_id),
            deleted_at = CASE WHEN $2 = 'deleted' THEN coalesce(deleted_at, now()) END
         WHERE id = $1",
    )
    .bind(update.instance_id)
    .bind(update.state)
    .bind(failure)
    .bind(&update.health_status)
    .bind(&update.ip_connection_string)
    .bind(&update.dns_connection_string)
    .bind(&update.health_check_orchestration_id)
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_end_event(
    connection: &mut PgConnection,
    instance: &Instance,
    operation: &Operation,
    end: OperationState,
    update: &MetadataUpdate,
    failure: Option<&Json<StepFailure>>,
) -> Result<(), StoreError> {
    let address = update.ip_connection_string.clone().unwrap_or_default();
    let (kind, message) = match (operation.kind, end, failure) {
        (_, OperationState::Cancelled, _) => return insert_cancelled_event(connection, instance, operation).await,
        (OperationKind::Update, OperationState::Succeeded, _) => ("instance_updated".to_owned(), address),
        (OperationKind::Update, _, Some(failure)) => ("update_failed".to_owned(), describe(failure)),
        (_, _, Some(failure)) => (format!("instance_{}", update.state), describe(failure)),
        (_, _, None) => (format!("instance_{}", update.state), address),
    };
    insert_event(connection, &Happening::of(instance, &kind, &message).in_operation(operation)).await
}

fn describe(failure: &StepFailure) -> String {
    format!("{}: {}", failure.step, failure.failure.message)
}

/// Tells that an operation has ended as somebody cancelled it.
pub(super) async fn insert_cancelled_event(
    connection: &mut PgConnection,
    instance: &Instance,
    operation: &Operation,
) -> Result<(), StoreError> {
    let message = match operation.kind {
        OperationKind::Create => "what was made of it is removed".to_owned(),
        OperationKind::Update => "it is reached as before".to_owned(),
        OperationKind::Delete => "nothing of it was removed".to_owned(),
    };
    let actor = operation.cancel_requested_by.clone().unwrap_or_default();
    let requested = Requested { cause: format!("cancelled by {actor}"), ..Requested::by(&actor) };
    let kind = format!("{}_cancelled", operation.kind);
    insert_event(connection, &Happening::of(instance, &kind, &message).requested(&requested, operation.id)).await
}

/// Which end of an operation the instance's new state means.
fn end_of(kind: OperationKind, state: InstanceState) -> Option<OperationState> {
    match (kind, state) {
        (OperationKind::Create | OperationKind::Update, InstanceState::Running)
        | (OperationKind::Delete, InstanceState::Deleted) => Some(OperationState::Succeeded),
        _ => None,
    }
}

/// The step of the operation that failed last.
async fn failed_step(connection: &mut PgConnection, operation_id: Uuid) -> Result<Option<StepFailure>, StoreError> {
    let row: Option<(String, Json<Failure>)> = sqlx::query_as(
        "SELECT name, error FROM operation_steps WHERE operation_id = $1 AND state = 'failed' AND error IS NOT NULL
         ORDER BY finished_at DESC LIMIT 1",
    )
    .bind(operation_id)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(step, Json(failure))| StepFailure { step, failure }))
}

pub(super) async fn finish_operation(
    connection: &mut PgConnection,
    operation: &Operation,
    end: OperationState,
    failure: Option<&Json<StepFailure>>,
) -> Result<(), StoreError> {
    // A failed operation always says why, even when its workflow broke before any step did.
    let unknown = Json(StepFailure {
        step: operation.kind.to_string(),
        failure: Failure::permanent(FailureKind::Internal, "no step reported why; see the server's log"),
    });
    let error = (end == OperationState::Failed).then(|| failure.unwrap_or(&unknown));
    sqlx::query(
        "UPDATE operations SET state = $2, error = $3, finished_at = now(), started_at = coalesce(started_at, now()),
            revision = revision + 1
         WHERE id = $1 AND state IN ('pending', 'running')",
    )
    .bind(operation.id)
    .bind(end)
    .bind(error)
    .execute(&mut *connection)
    .await?;
    // The step that writes this down is done with it.
    sqlx::query(
        "UPDATE operation_steps SET state = 'succeeded', finished_at = now() WHERE operation_id = $1 AND state = 'running'",
    )
    .bind(operation.id)
    .execute(connection)
    .await?;
    Ok(())
}

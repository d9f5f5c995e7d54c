//! What an operation found and how it ended: the instance's status and state, the operation's end and the
//! event, written together. One path for every kind.

use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::request::write_spec;
use crate::kind::OnFailure;
use crate::store::events::{NewEvent, insert_event};
use crate::store::operations::{lock_operation, overtaking_operation};
use crate::store::{Instance, Operation, Requested, Store, StoreError, commit};
use crate::{
    Failure, FailureKind, Health, HealthStatus, InstanceSpec, InstanceState, InstanceStatus, MemberStatus, OperationState,
    PlatformName, StepFailure,
};

/// What was found of an instance: the input of the activity `update-metadata`, and what that looked up itself.
#[derive(Debug, Clone)]
pub struct MetadataUpdate {
    /// The instance.
    pub instance_id: Uuid,
    /// Its name, for a record that isn't there yet.
    pub instance_name: String,
    /// Where it runs, for a record that isn't there yet.
    pub platform: PlatformName,
    /// Its new state. `failed` ends an operation as failed, whatever that does to the instance.
    pub state: InstanceState,
    /// Its health; `None` leaves it.
    pub health_status: Option<HealthStatus>,
    /// How it is reached by address; `None` leaves it.
    pub ip_connection_string: Option<String>,
    /// How it is reached by public name; `None` leaves it.
    pub dns_connection_string: Option<String>,
    /// The workflow that watches its health; `None` leaves it.
    pub health_check_orchestration_id: Option<String>,
    /// Its servers; `None` leaves them.
    pub members: Option<Vec<MemberStatus>>,
    /// The operation that found it, which ends with it.
    pub operation_id: Option<Uuid>,
}

impl MetadataUpdate {
    /// The status after it.
    fn apply_to(&self, status: &InstanceStatus) -> InstanceStatus {
        let mut status = status.clone();
        let runs = self.state == InstanceState::Running;
        if let Some(health) = self.health_status.filter(|_| runs) {
            status.set_health(Some(Health { status: health, reasons: Vec::new() }));
        }
        if !runs {
            status.set_health(None);
        }
        // Both connection strings are learned together: with an address and no name, there is no name.
        if self.ip_connection_string.is_some() {
            status.ip_connection_string.clone_from(&self.ip_connection_string);
            status.dns_connection_string.clone_from(&self.dns_connection_string);
        } else if self.dns_connection_string.is_some() {
            status.dns_connection_string.clone_from(&self.dns_connection_string);
        }
        if self.health_check_orchestration_id.is_some() {
            status.health_check_orchestration_id.clone_from(&self.health_check_orchestration_id);
        }
        if let Some(members) = &self.members {
            // Platforms that don't see the version know no other one.
            let known = status.members.iter().find_map(|member| member.postgres_version.clone());
            status.members.clone_from(members);
            for member in status.members.iter_mut().filter(|member| member.postgres_version.is_none()) {
                member.postgres_version.clone_from(&known);
            }
        }
        status.failure = None;
        status
    }
}

/// How an operation ends.
enum End {
    Succeeded,
    Cancelled,
    Failed(StepFailure),
}

impl Store {
    /// Writes what was found of an instance, and ends the operation that found it. `true` if the record had to be made.
    ///
    /// Repeating it changes nothing more: an operation that has ended writes nothing. When an operation
    /// failed, the reason is that of its step that failed. An operation that a delete overtook fails
    /// without touching the instance. One that was reverted ends as cancelled or failed.
    ///
    /// # Errors
    /// [`StoreError::Cancelled`] if the operation was cancelled: what it did has to be reverted
    /// first. [`StoreError::IllegalTransition`] if the instance may not go to that state.
    pub async fn update_metadata(&self, update: &MetadataUpdate) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let found: Option<Instance> =
            sqlx::query_as(&format!("SELECT {} FROM instances WHERE id = $1 FOR UPDATE", Instance::COLUMNS))
                .bind(update.instance_id)
                .fetch_optional(&mut *tx)
                .await?;
        let created = found.is_none();
        let instance = match found {
            Some(instance) => instance,
            None => insert_record(&mut tx, update).await?,
        };
        let operation: Option<Operation> = sqlx::query_as(&format!(
            "SELECT {} FROM operations WHERE id = $1 AND instance_id = $2 FOR NO KEY UPDATE",
            Operation::COLUMNS
        ))
        .bind(update.operation_id)
        .bind(update.instance_id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(operation) = operation else {
            let status = update.apply_to(&instance.status);
            write_found(&mut tx, &instance, update.state, &status, instance.observed_generation).await?;
            commit(tx).await?;
            return Ok(created);
        };
        if operation.state.is_final() {
            return Ok(false);
        }
        if operation.cancel_requested_at.is_some() && !operation.reverting {
            return Err(StoreError::Cancelled(format!("the {} operation {} was cancelled", operation.kind, operation.id)));
        }
        let end = end_of(&mut tx, update, &instance, &operation).await?;
        end_operation(&mut tx, &instance, &operation, &end, Some(update)).await?;
        commit(tx).await?;
        Ok(created)
    }

    /// Marks an operation as being reverted, with the reason: the step that failed, unless it was cancelled. From then on
    /// its steps bring about what was before. `false` if there is nothing to revert: a delete overtook it, or the spec
    /// did not change and it was not cancelled.
    ///
    /// # Errors
    /// [`StoreError::OperationNotFound`].
    pub async fn begin_revert(&self, id: Uuid) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let (instance, operation) = lock_operation(&mut tx, id).await?;
        let cancelled = operation.cancel_requested_at.is_some();
        let overtaken = is_overtaken(&mut tx, &instance, &operation).await?;
        if operation.state.is_final() || !(cancelled || (operation.changes_spec() && !overtaken)) {
            return Ok(false);
        }
        if !operation.reverting {
            let failure = if cancelled { None } else { failed_step(&mut tx, id).await? };
            sqlx::query("UPDATE operations SET reverting = true, error = $2, revision = revision + 1 WHERE id = $1")
                .bind(id)
                .bind(failure.map(Json))
                .execute(&mut *tx)
                .await?;
            commit(tx).await?;
        }
        Ok(true)
    }

    /// Ends an operation whose workflow broke without ending it, as failed.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn fail_operation(&self, id: Uuid, failure: Failure) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let (instance, operation) = lock_operation(&mut tx, id).await?;
        if operation.state.is_final() {
            return Ok(());
        }
        // The step at which it broke.
        sqlx::query(
            "UPDATE operation_steps SET state = 'failed', error = $2, finished_at = now()
             WHERE operation_id = $1 AND state = 'running'",
        )
        .bind(id)
        .bind(Json(&failure))
        .execute(&mut *tx)
        .await?;
        let end = End::Failed(StepFailure { step: operation.kind.to_string(), failure });
        end_operation(&mut tx, &instance, &operation, &end, None).await?;
        commit(tx).await
    }
}

/// The record of an instance that this store has no request for.
async fn insert_record(connection: &mut PgConnection, update: &MetadataUpdate) -> Result<Instance, StoreError> {
    // The oldest version that is served stands for one that isn't known.
    let unknown = crate::PostgresVersion::OLDEST;
    Ok(sqlx::query_as(&format!(
        "INSERT INTO instances (id, namespace, name, spec, generation, state)
         VALUES ($1, 'default', $2, $3, 1, $4) RETURNING {}",
        Instance::COLUMNS
    ))
    .bind(update.instance_id)
    .bind(&update.instance_name)
    .bind(Json(InstanceSpec::new(update.platform, unknown)))
    .bind(update.state)
    .fetch_one(connection)
    .await?)
}

/// How an operation ends with what it found.
async fn end_of(
    tx: &mut PgConnection,
    update: &MetadataUpdate,
    instance: &Instance,
    operation: &Operation,
) -> Result<End, StoreError> {
    let failed = update.state == InstanceState::Failed;
    let why = match (failed, &operation.error) {
        // The reason for the revert; what failed of the revert itself stands in its steps.
        (_, Some(error)) if operation.reverting => Some(error.0.clone()),
        (true, _) => failed_step(tx, operation.id).await?,
        (false, _) => None,
    };
    if let Some(why) = why {
        return Ok(End::Failed(why));
    }
    if failed {
        // A failed operation always says why, even when its workflow broke before any step did.
        let failure = Failure::permanent(FailureKind::Internal, "no step reported why; see the server's log");
        return Ok(End::Failed(StepFailure { step: operation.kind.to_string(), failure }));
    }
    if operation.reverting {
        return Ok(End::Cancelled);
    }
    if is_overtaken(tx, instance, operation).await? {
        // It was brought about, but a delete removes it: that is no success.
        let message = format!("{} is being deleted; its {} was given up", instance.key(), operation.kind.noun);
        let failure = Failure::permanent(FailureKind::Superseded, message);
        return Ok(End::Failed(StepFailure { step: "update-metadata".into(), failure }));
    }
    Ok(End::Succeeded)
}

/// Whether a delete has begun after the operation, which may not touch the instance any more.
async fn is_overtaken(tx: &mut PgConnection, instance: &Instance, operation: &Operation) -> Result<bool, StoreError> {
    if operation.kind.overtakes {
        return Ok(false);
    }
    Ok(instance.state == InstanceState::Deleted || overtaking_operation(tx, instance.id).await?)
}

/// Writes an operation's end, what it means for its instance, and the event. `update` is what was found, where the
/// workflow came to its end.
async fn end_operation(
    tx: &mut PgConnection,
    instance: &Instance,
    operation: &Operation,
    end: &End,
    update: Option<&MetadataUpdate>,
) -> Result<(), StoreError> {
    let overtaken = is_overtaken(tx, instance, operation).await?;
    let (state, error) = match end {
        End::Succeeded => (OperationState::Succeeded, None),
        End::Cancelled => (OperationState::Cancelled, None),
        End::Failed(failure) => (OperationState::Failed, Some(failure)),
    };
    finish_row(tx, operation, state, error).await?;
    let found = update.filter(|update| update.state != InstanceState::Failed);
    if !overtaken {
        let mut generation = instance.generation;
        if !matches!(end, End::Succeeded) && operation.changes_spec() {
            let before =
                instance.spec.reverted(&operation.spec_before, &operation.spec).unwrap_or(operation.spec_before.0.clone());
            generation = write_spec(tx, instance, &before, false).await?.generation;
        }
        match (found, end, operation.kind.on_failure) {
            (Some(update), ..) => {
                // It was brought to what the record says now: to the operation's spec, or back to the one of before. Since
                // that was asked for, only fields that the record alone has can have changed. A verb brings it to no spec.
                let observed = if operation.kind.is_verb { instance.observed_generation } else { generation };
                write_found(tx, instance, update.state, &update.apply_to(&instance.status), observed).await?;
            }
            (None, End::Failed(failure), OnFailure::MarkFailed) => {
                let mut status = InstanceStatus { failure: Some(failure.clone()), ..instance.status.0.clone() };
                status.set_health(None);
                write_found(tx, instance, InstanceState::Failed, &status, instance.observed_generation).await?;
            }
            (None, ..) => {}
        }
    }
    insert_end_event(tx, instance, operation, end, found, overtaken).await
}

async fn write_found(
    connection: &mut PgConnection,
    instance: &Instance,
    state: InstanceState,
    status: &InstanceStatus,
    observed_generation: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE instances SET state = $2, status = $3, observed_generation = $4,
            deleted_at = CASE WHEN $2 = 'deleted' THEN coalesce(deleted_at, now()) END
         WHERE id = $1",
    )
    .bind(instance.id)
    .bind(state)
    .bind(Json(status))
    .bind(observed_generation)
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_end_event(
    connection: &mut PgConnection,
    instance: &Instance,
    operation: &Operation,
    end: &End,
    found: Option<&MetadataUpdate>,
    overtaken: bool,
) -> Result<(), StoreError> {
    let (kind, message) = match end {
        End::Cancelled => return insert_cancelled_event(connection, instance, operation).await,
        // The delete's own events tell the rest.
        End::Failed(_) if overtaken => return Ok(()),
        End::Failed(failure) => {
            (operation.kind.failed_event.to_owned(), format!("{}: {}", failure.step, failure.failure.message))
        }
        End::Succeeded => {
            let address = found.and_then(|update| update.ip_connection_string.clone()).unwrap_or_default();
            let changes = if operation.changes_spec() { operation.summary.clone() } else { address };
            // A new instance may be stopped from the beginning.
            match found.map(|update| update.state) {
                Some(state @ InstanceState::Stopped) if operation.kind.state_at_work.is_some() => {
                    (format!("instance_{state}"), changes)
                }
                _ => (operation.kind.succeeded_event.to_owned(), changes),
            }
        }
    };
    insert_event(connection, &NewEvent::of(instance, &kind, &message).in_operation(operation)).await
}

/// Tells that an operation has ended because it was cancelled.
pub(in crate::store) async fn insert_cancelled_event(
    connection: &mut PgConnection,
    instance: &Instance,
    operation: &Operation,
) -> Result<(), StoreError> {
    let actor = operation.cancel_requested_by.clone().unwrap_or_default();
    let requested = Requested { cause: format!("cancelled by {actor}"), ..Requested::by(&actor) };
    let kind = format!("{}_cancelled", operation.kind);
    let message = operation.kind.cancelled_words;
    insert_event(connection, &NewEvent::of(instance, &kind, message).requested(&requested, operation.id)).await
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

/// Ends an operation's row, and the step that does it.
pub(in crate::store) async fn finish_row(
    connection: &mut PgConnection,
    operation: &Operation,
    state: OperationState,
    error: Option<&StepFailure>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE operations SET state = $2, error = $3, finished_at = now(), started_at = coalesce(started_at, now()),
            revision = revision + 1
         WHERE id = $1 AND state IN ('pending', 'running')",
    )
    .bind(operation.id)
    .bind(state)
    .bind(error.map(Json))
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "UPDATE operation_steps SET state = 'succeeded', finished_at = now() WHERE operation_id = $1 AND state = 'running'",
    )
    .bind(operation.id)
    .execute(connection)
    .await?;
    Ok(())
}

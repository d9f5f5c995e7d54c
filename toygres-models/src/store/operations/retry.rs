//! Failed operations that are tried again.

use sqlx::PgConnection;
use uuid::Uuid;

use super::lock_operation;
use super::request::{NewOperation, expect_can_begin, insert_operation, set_state_at_work, write_spec};
use crate::kind::OnFailure;
use crate::store::events::{NewEvent, insert_event};
use crate::store::{Operation, Requested, Store, StoreError, commit};
use crate::{InstanceState, OperationState};

impl Store {
    /// Writes a new operation that does what a failed one was to do. Its steps look at what is
    /// there, so it goes on where that one failed. While it is at work, asking again gives the
    /// same operation.
    ///
    /// # Errors
    /// [`StoreError::OperationNotFound`]; [`StoreError::NotNow`] if it didn't fail, its instance is gone,
    /// or there is a newer operation on the instance; [`StoreError::Protected`] if it removes data and
    /// the instance's deletion is refused. Nothing is written then.
    pub async fn retry_operation(&self, id: Uuid, requested: &Requested) -> Result<Operation, StoreError> {
        let mut tx = self.pool.begin().await?;
        let (instance, failed) = lock_operation(&mut tx, id).await?;
        if failed.state != OperationState::Failed {
            let how = if failed.state.is_final() { format!("has {}", failed.state) } else { format!("is {}", failed.state) };
            let message = format!("the {} operation {id} {how}; only a failed one can be tried again", failed.kind);
            return Err(StoreError::NotNow(message));
        }
        let key = instance.key();
        if instance.state == InstanceState::Deleted {
            return Err(StoreError::NotNow(format!("{key} is deleted; there is nothing to try again")));
        }
        if let Some(newer) = newer_operation(&mut tx, &failed).await? {
            if newer.retry_of == Some(id) && !newer.state.is_final() {
                drop(tx);
                return self.operation(newer.id).await?.ok_or(StoreError::OperationNotFound(newer.id));
            }
            let again = if newer.retry_of == Some(id) { "which tried it again, " } else { "" };
            return Err(StoreError::NotNow(format!(
                "{key} has a newer {} operation, {}, {again}and only the last one that failed can be tried again (it is {})",
                newer.kind, newer.id, newer.state
            )));
        }
        if failed.kind.removes_data && instance.spec.delete_protection {
            return Err(StoreError::Protected(key));
        }
        // What marked the instance as failed goes on from there; anything else begins as at first.
        if failed.kind.on_failure != OnFailure::MarkFailed {
            expect_can_begin(&mut tx, &instance, failed.kind).await?;
        }
        let spec = instance
            .spec
            .reverted(&failed.spec, &failed.spec_before)
            .map_err(|invalid| StoreError::NotNow(format!("{key} has changed since: {invalid}")))?;
        set_state_at_work(&mut tx, &instance, failed.kind).await?;
        let operation = NewOperation {
            instance: &instance,
            kind: failed.kind,
            input: failed.input.0.clone(),
            spec: &spec,
            retry_of: Some(id),
        };
        let operation = insert_operation(&mut tx, &operation, requested).await?;
        write_spec(&mut tx, &instance, &spec, false).await?;
        let why = failed.error.as_ref().map(|error| format!("{}: {}", error.step, error.failure.message)).unwrap_or_default();
        let message = format!("the {} operation {id} had failed: {why}", failed.kind);
        insert_event(&mut tx, &NewEvent::of(&instance, "retry_requested", &message).requested(requested, operation.id)).await?;
        commit(tx).await?;
        Ok(operation)
    }
}

/// The last operation after that one, unless it is a cancelled one that did nothing.
async fn newer_operation(connection: &mut PgConnection, than: &Operation) -> Result<Option<Operation>, StoreError> {
    Ok(sqlx::query_as(&format!(
        "SELECT {} FROM operations WHERE instance_id = $1 AND id > $2
            AND NOT (state = 'cancelled' AND NOT reverting) ORDER BY id DESC LIMIT 1",
        Operation::COLUMNS
    ))
    .bind(than.instance_id)
    .bind(than.id)
    .fetch_optional(connection)
    .await?)
}

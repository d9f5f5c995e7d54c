//! Cancels. A cancel is noted on the operation at once, so that one that was answered holds, even if every server is
//! killed after it. The operation's activities see it and stop; its workflow then reverts what was done and
//! ends the operation as `cancelled`.

use uuid::Uuid;

use super::finish::{finish_row, insert_cancelled_event};
use super::request::write_spec;
use super::{lock_operation, operation_with_steps};
use crate::kind::OnCancel;
use crate::store::events::{NewEvent, insert_event};
use crate::store::{Instance, Operation, Requested, Store, StoreError, commit};
use crate::{InstanceState, OperationState};

impl Store {
    /// Cancels an operation. One that has not begun is over with that, unless there may be something to remove
    /// already. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::OperationNotFound`]; [`StoreError::NotNow`] if it has ended in another way;
    /// [`StoreError::PointOfNoReturn`] if it can't be taken back any more. Nothing is written then.
    pub async fn cancel_operation(&self, id: Uuid, requested: &Requested) -> Result<Operation, StoreError> {
        let mut tx = self.pool.begin().await?;
        let (instance, operation) = lock_operation(&mut tx, id).await?;
        let is_cancelled = operation.cancel_requested_at.is_some();
        let unchanged = match operation.state {
            OperationState::Cancelled => true,
            OperationState::Pending | OperationState::Running => is_cancelled,
            OperationState::Succeeded | OperationState::Failed => {
                return Err(StoreError::NotNow(format!("the {} operation {id} has {} already", operation.kind, operation.state)));
            }
        };
        let read =
            async |tx: &mut sqlx::PgConnection| operation_with_steps(tx, id).await?.ok_or(StoreError::OperationNotFound(id));
        if unchanged {
            return read(&mut tx).await;
        }
        let is_over = restore(&mut tx, &instance, &operation).await?;
        sqlx::query(
            "UPDATE operations SET cancel_requested_at = now(), cancel_requested_by = $2, revision = revision + 1 WHERE id = $1",
        )
        .bind(id)
        .bind(&requested.actor)
        .execute(&mut *tx)
        .await?;
        if is_over {
            finish_row(&mut tx, &operation, OperationState::Cancelled, None).await?;
        }
        // Not after the commit: the cancel holds then, and no error may follow. And the event comes last.
        let operation = read(&mut tx).await?;
        if is_over {
            insert_cancelled_event(&mut tx, &instance, &operation).await?;
        } else {
            let message = format!("the {} is given up", operation.kind.noun);
            insert_event(&mut tx, &NewEvent::of(&instance, "cancel_requested", &message).requested(requested, id)).await?;
        }
        commit(tx).await?;
        Ok(operation)
    }
}

/// Restores on record what can be restored at once. `true` if nothing else is to be done.
async fn restore(tx: &mut sqlx::PgConnection, instance: &Instance, operation: &Operation) -> Result<bool, StoreError> {
    let has_begun = operation.state != OperationState::Pending;
    match operation.kind.on_cancel {
        OnCancel::Remove => {
            // There may be a password already.
            set_state(tx, instance, InstanceState::Deleting).await?;
            Ok(false)
        }
        OnCancel::Revert if has_begun => Ok(false),
        OnCancel::Revert => {
            let before =
                instance.spec.reverted(&operation.spec_before, &operation.spec).unwrap_or(operation.spec_before.0.clone());
            let reverted = write_spec(tx, instance, &before, false).await?;
            // The platform was never brought to the spec that was asked for.
            if operation.changes_spec() && instance.observed_generation + 1 == operation.generation {
                sqlx::query("UPDATE instances SET observed_generation = $2 WHERE id = $1")
                    .bind(instance.id)
                    .bind(reverted.generation)
                    .execute(tx)
                    .await?;
            }
            Ok(true)
        }
        OnCancel::BeforeFirstStep if has_begun => Err(StoreError::PointOfNoReturn(format!(
            "the {} of {} has begun and can't be taken back",
            operation.kind.noun,
            instance.key()
        ))),
        OnCancel::BeforeFirstStep => {
            if operation.kind.state_at_work.is_some() {
                if !matches!(operation.state_before, InstanceState::Running | InstanceState::Stopped | InstanceState::Failed) {
                    return Err(StoreError::PointOfNoReturn(format!(
                        "the {} of {} overtook its creation, which can't go on any more",
                        operation.kind.noun,
                        instance.key()
                    )));
                }
                set_state(tx, instance, operation.state_before).await?;
            }
            Ok(true)
        }
    }
}

async fn set_state(tx: &mut sqlx::PgConnection, instance: &Instance, state: InstanceState) -> Result<(), StoreError> {
    sqlx::query("UPDATE instances SET state = $2 WHERE id = $1").bind(instance.id).bind(state).execute(tx).await?;
    Ok(())
}

//! Operations that somebody doesn't want any more.
//!
//! A cancel changes at once what the instance's record says it is to be, and notes who wished so. The
//! operation's activities compare what they are about to do with the record and give up; its
//! workflow then brings the platform in line and ends the operation as `cancelled`. So a cancel that
//! was answered holds, whoever is killed after it.

use sqlx::types::Json;
use uuid::Uuid;

use super::events::{Happening, insert_event};
use super::operations::{lock_operation, operation_with_steps};
use super::outcome::{finish_operation, insert_cancelled_event};
use super::{Instance, Operation, Requested, Store, StoreError, commit};
use crate::{InstanceState, OperationKind, OperationState};

impl Store {
    /// Cancels an operation: a create is going to leave nothing, an update what was there before, and
    /// a delete is called off. What no step of was begun is over with that; of the rest, the workflow
    /// puts back what was done. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::OperationNotFound`]; [`StoreError::NotNow`] if it has ended in another way;
    /// [`StoreError::PointOfNoReturn`] if it is a delete that has begun. Nothing is written then.
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
        put_back_intent(&mut tx, &instance, &operation).await?;
        sqlx::query(
            "UPDATE operations SET cancel_requested_at = now(), cancel_requested_by = $2, revision = revision + 1 WHERE id = $1",
        )
        .bind(id)
        .bind(&requested.actor)
        .execute(&mut *tx)
        .await?;
        // Of a create there may be a password already.
        let is_over = operation.state == OperationState::Pending && operation.kind != OperationKind::Create;
        if is_over {
            finish_operation(&mut tx, &operation, OperationState::Cancelled, None).await?;
        }
        // Not after the commit: what is wished then holds, and no error may follow. And the event comes last.
        let operation = read(&mut tx).await?;
        if is_over {
            insert_cancelled_event(&mut tx, &instance, &operation).await?;
        } else {
            let message = format!("the {} operation is given up", operation.kind);
            let happening = Happening::of(&instance, "cancel_requested", &message).requested(requested, id);
            insert_event(&mut tx, &happening).await?;
        }
        commit(tx).await?;
        Ok(operation)
    }
}

/// Makes the record say what the instance is to be without the operation.
async fn put_back_intent(tx: &mut sqlx::PgConnection, instance: &Instance, operation: &Operation) -> Result<(), StoreError> {
    match operation.kind {
        OperationKind::Create => {
            sqlx::query("UPDATE instances SET state = 'deleting', failure = NULL WHERE id = $1")
                .bind(instance.id)
                .execute(tx)
                .await?;
        }
        OperationKind::Update => {
            if let Some(before) = operation.previous_exposure() {
                sqlx::query("UPDATE instances SET use_load_balancer = $2, dns_label = $3 WHERE id = $1")
                    .bind(instance.id)
                    .bind(before.use_load_balancer)
                    .bind(&before.dns_label)
                    .execute(tx)
                    .await?;
            }
        }
        OperationKind::Delete => {
            let key = format!("{}/{}", instance.namespace, instance.name);
            let began =
                || StoreError::PointOfNoReturn(format!("the deletion of {key} has begun to remove it and can't be taken back"));
            let before = operation.previous_state().filter(|_| operation.state == OperationState::Pending).ok_or_else(began)?;
            if !matches!(before.state, InstanceState::Running | InstanceState::Failed) {
                // Its creation is given up, and nobody would go on with it.
                return Err(StoreError::PointOfNoReturn(format!(
                    "the deletion of {key} overtook its creation, which can't go on any more"
                )));
            }
            sqlx::query("UPDATE instances SET state = $2, failure = $3 WHERE id = $1")
                .bind(instance.id)
                .bind(before.state)
                .bind(before.failure.as_ref().map(|failure| Json(&failure.0)))
                .execute(tx)
                .await?;
        }
    }
    Ok(())
}

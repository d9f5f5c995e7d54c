//! Failed operations that are tried again.

use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::events::{Happening, insert_event};
use super::intent::{expect_idle, insert_operation};
use super::operations::lock_operation;
use super::{Instance, Operation, PreviousState, Requested, Store, StoreError, commit};
use crate::{InstanceKey, InstanceState, OperationKind, OperationState};

impl Store {
    /// Writes down a new operation that does what a failed one was to do. Its steps look at what is
    /// there, so it goes on where that one failed. As long as it is at work, asking again gives the
    /// same operation.
    ///
    /// # Errors
    /// [`StoreError::OperationNotFound`]; [`StoreError::NotNow`] if it didn't fail, its instance is gone,
    /// or there is a newer operation on the instance; [`StoreError::Protected`] if it is a delete and
    /// the instance may not be deleted. Nothing is written then.
    pub async fn retry_operation(&self, id: Uuid, requested: &Requested) -> Result<Operation, StoreError> {
        let mut tx = self.pool.begin().await?;
        let (instance, failed) = lock_operation(&mut tx, id).await?;
        if failed.state != OperationState::Failed {
            let how = if failed.state.is_final() { format!("has {}", failed.state) } else { format!("is {}", failed.state) };
            let message = format!("the {} operation {id} {how}; only a failed one can be tried again", failed.kind);
            return Err(StoreError::NotNow(message));
        }
        let key =
            InstanceKey::parse(&instance.namespace, &instance.name).map_err(|invalid| StoreError::NotNow(invalid.to_string()))?;
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
        let previous = want_again(&mut tx, &key, &instance, &failed).await?;
        let operation = insert_operation(&mut tx, failed.kind, &instance, requested, previous, Some(id)).await?;
        let why = failed.error.as_ref().map(|error| format!("{}: {}", error.step, error.failure.message)).unwrap_or_default();
        let message = format!("the {} operation {id} had failed: {why}", failed.kind);
        let happening = Happening::of(&instance, "retry_requested", &message).requested(requested, operation.id);
        insert_event(&mut tx, &happening).await?;
        commit(tx).await?;
        Ok(operation)
    }
}

/// The last operation after that one that came to anything.
async fn newer_operation(connection: &mut PgConnection, than: &Operation) -> Result<Option<Operation>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM operations WHERE instance_id = $1 AND id > $2 AND NOT (kind = 'delete' AND state = 'cancelled')
         ORDER BY id DESC LIMIT 1",
    )
    .bind(than.instance_id)
    .bind(than.id)
    .fetch_optional(connection)
    .await?)
}

/// Makes the record say again what the operation is for; what the new one would have to put back.
async fn want_again(
    connection: &mut PgConnection,
    key: &InstanceKey,
    instance: &Instance,
    failed: &Operation,
) -> Result<Option<serde_json::Value>, StoreError> {
    let (wanted, previous) = match failed.kind {
        // It is to be reached as the record says already.
        OperationKind::Update => {
            expect_idle(connection, key, instance).await?;
            return Ok(failed.previous.as_ref().map(|previous| previous.0.clone()));
        }
        OperationKind::Create => (InstanceState::Creating, None),
        OperationKind::Delete if instance.delete_protection => return Err(StoreError::Protected(key.to_string())),
        OperationKind::Delete => {
            let previous = PreviousState { state: instance.state, failure: instance.failure.clone() };
            (InstanceState::Deleting, Some(json!(previous)))
        }
    };
    sqlx::query("UPDATE instances SET state = $2, failure = NULL WHERE id = $1")
        .bind(instance.id)
        .bind(wanted)
        .execute(connection)
        .await?;
    Ok(previous)
}

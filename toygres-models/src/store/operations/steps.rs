//! Steps of operations: each activity notes its beginning and end. While an operation is being reverted, a step has the
//! prefix `undo-`, so that what failed before stays on record.

use sqlx::types::Json;
use uuid::Uuid;

use crate::Failure;
use crate::store::{Store, StoreError, commit};

/// The step's name: with the prefix, of an operation that is being reverted.
const NAME: &str = "(CASE WHEN reverting AND $2 <> 'revert-operation' THEN 'undo-' || $2 ELSE $2 END)";

impl Store {
    /// Notes that a step has begun, or begun again. Nothing happens if there is no such operation
    /// at work: activities may be used without a server.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn begin_step(&self, operation_id: Uuid, name: &str) -> Result<(), StoreError> {
        let mut tx = self.lazy_transaction(operation_id).await?;
        sqlx::query(&format!(
            "WITH operation AS (
                UPDATE operations SET state = 'running', started_at = coalesce(started_at, now()), revision = revision + 1
                WHERE id = $1 AND state IN ('pending', 'running') RETURNING id, {NAME} AS step)
             INSERT INTO operation_steps (operation_id, name, position, state, attempts, started_at)
             SELECT id, step, (SELECT count(*) + 1 FROM operation_steps WHERE operation_id = $1), 'running', 1, now() FROM operation
             ON CONFLICT (operation_id, name)
             DO UPDATE SET state = 'running', attempts = operation_steps.attempts + 1, finished_at = NULL, error = NULL"
        ))
        .bind(operation_id)
        .bind(name)
        .execute(&mut *tx)
        .await?;
        commit(tx).await
    }

    /// Notes how a step's attempt ended.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn end_step(&self, operation_id: Uuid, name: &str, failure: Option<&Failure>) -> Result<(), StoreError> {
        let mut tx = self.lazy_transaction(operation_id).await?;
        sqlx::query(&format!(
            "WITH operation AS (
                UPDATE operations SET revision = revision + 1 WHERE id = $1 AND state = 'running' RETURNING id, {NAME} AS step)
             UPDATE operation_steps SET state = CASE WHEN $3::jsonb IS NULL THEN 'succeeded' ELSE 'failed' END,
                error = $3, finished_at = now()
             FROM operation WHERE operation_id = operation.id AND name = operation.step"
        ))
        .bind(operation_id)
        .bind(name)
        .bind(failure.map(Json))
        .execute(&mut *tx)
        .await?;
        commit(tx).await
    }

    /// A transaction whose commit doesn't wait for the disk, if the operation is at work already. A crash of the
    /// database, or its immediate shutdown, may lose what such commits of the last moment wrote: of a step that is
    /// its times, which the workflow writes again as it repeats the step. That the operation has begun may not be lost:
    /// from then on a delete can't be called off.
    async fn lazy_transaction(&self, operation_id: Uuid) -> Result<sqlx::Transaction<'_, sqlx::Postgres>, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("SELECT set_config('synchronous_commit', 'off', true) FROM operations WHERE id = $1 AND state = 'running'")
            .bind(operation_id)
            .execute(&mut *tx)
            .await?;
        Ok(tx)
    }
}

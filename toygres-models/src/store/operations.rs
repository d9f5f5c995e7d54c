//! Operations and their steps.

use sqlx::types::Json;
use uuid::Uuid;

use super::instances::{finish_operation, insert_event};
use super::{Instance, Operation, Step, StepFailure, Store, StoreError};
use crate::{Failure, InstanceState, OperationKind, OperationState};

/// Which operations a list has.
#[derive(Debug, Clone, Default)]
pub struct OperationFilter {
    /// Of this namespace.
    pub namespace: Option<String>,
    /// Of instances of this name.
    pub instance_name: Option<String>,
    /// Older than this one.
    pub before: Option<Uuid>,
}

impl Store {
    /// An operation with its steps.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn operation(&self, id: Uuid) -> Result<Option<Operation>, StoreError> {
        let operation: Option<Operation> =
            sqlx::query_as("SELECT * FROM operations WHERE id = $1").bind(id).fetch_optional(&self.pool).await?;
        let Some(mut operation) = operation else { return Ok(None) };
        self.add_steps(std::slice::from_mut(&mut operation)).await?;
        Ok(Some(operation))
    }

    /// Operations with their steps, newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn operations(&self, filter: &OperationFilter, limit: i64) -> Result<Vec<Operation>, StoreError> {
        // The ids are UUIDs of version 7: their order is that of time.
        let mut operations: Vec<Operation> = sqlx::query_as(
            "SELECT * FROM operations WHERE ($1::text IS NULL OR namespace = $1) AND ($2::text IS NULL OR instance_name = $2)
                AND ($3::uuid IS NULL OR id < $3)
             ORDER BY id DESC LIMIT $4",
        )
        .bind(&filter.namespace)
        .bind(&filter.instance_name)
        .bind(filter.before)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        self.add_steps(&mut operations).await?;
        Ok(operations)
    }

    /// Operations that haven't ended, oldest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn unfinished_operations(&self) -> Result<Vec<Operation>, StoreError> {
        Ok(sqlx::query_as("SELECT * FROM operations WHERE state IN ('pending', 'running') ORDER BY id")
            .fetch_all(&self.pool)
            .await?)
    }

    /// The newest operation of that kind on an instance.
    pub(super) async fn last_operation(&self, instance_id: Uuid, kind: OperationKind) -> Result<Option<Operation>, StoreError> {
        let id: Option<(Uuid,)> =
            sqlx::query_as("SELECT id FROM operations WHERE instance_id = $1 AND kind = $2 ORDER BY id DESC LIMIT 1")
                .bind(instance_id)
                .bind(kind)
                .fetch_optional(&self.pool)
                .await?;
        match id {
            Some((id,)) => self.operation(id).await,
            None => Ok(None),
        }
    }

    /// Whether a creation of the instance that this operation is about is still at work.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn creation_at_work(&self, operation_id: Uuid) -> Result<bool, StoreError> {
        let (at_work,): (bool,) = sqlx::query_as(
            "SELECT EXISTS (
                SELECT FROM operations o JOIN operations c ON c.instance_id = o.instance_id
                WHERE o.id = $1 AND c.id <> o.id AND c.kind = 'create' AND c.state IN ('pending', 'running'))",
        )
        .bind(operation_id)
        .fetch_one(&self.pool)
        .await?;
        Ok(at_work)
    }

    /// Notes that a step has begun, or begun again. Nothing happens if there is no such operation
    /// at work: activities may be used without a server.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn begin_step(&self, operation_id: Uuid, name: &str) -> Result<(), StoreError> {
        let mut tx = self.lazy_transaction().await?;
        sqlx::query(
            "WITH operation AS (
                UPDATE operations SET state = 'running', started_at = coalesce(started_at, now()), revision = revision + 1
                WHERE id = $1 AND state IN ('pending', 'running') RETURNING id)
             INSERT INTO operation_steps (operation_id, name, position, state, attempts, started_at)
             SELECT id, $2, (SELECT count(*) + 1 FROM operation_steps WHERE operation_id = $1), 'running', 1, now() FROM operation
             ON CONFLICT (operation_id, name)
             DO UPDATE SET state = 'running', attempts = operation_steps.attempts + 1, finished_at = NULL, error = NULL",
        )
        .bind(operation_id)
        .bind(name)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Notes how a step's attempt ended.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn end_step(&self, operation_id: Uuid, name: &str, failure: Option<&Failure>) -> Result<(), StoreError> {
        let mut tx = self.lazy_transaction().await?;
        sqlx::query(
            "WITH operation AS (
                UPDATE operations SET revision = revision + 1 WHERE id = $1 AND state = 'running' RETURNING id)
             UPDATE operation_steps SET state = CASE WHEN $3::jsonb IS NULL THEN 'succeeded' ELSE 'failed' END,
                error = $3, finished_at = now()
             FROM operation WHERE operation_id = operation.id AND name = $2",
        )
        .bind(operation_id)
        .bind(name)
        .bind(failure.map(Json))
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// A transaction whose commit doesn't wait for the disk. A step's times may be lost when the
    /// database's machine crashes; the workflow then repeats the step and they are written again.
    async fn lazy_transaction(&self) -> Result<sqlx::Transaction<'_, sqlx::Postgres>, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("SET LOCAL synchronous_commit = off").execute(&mut *tx).await?;
        Ok(tx)
    }

    /// Ends an operation whose workflow broke without ending it, and its instance as `failed`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn fail_operation(&self, id: Uuid, failure: Failure) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let row: Option<(OperationKind, Uuid, String)> = sqlx::query_as(
            "SELECT kind, instance_id, cause FROM operations WHERE id = $1 AND state IN ('pending', 'running') FOR UPDATE",
        )
        .bind(id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some((kind, instance_id, cause)) = row else { return Ok(()) };
        let instance: Instance =
            sqlx::query_as("SELECT * FROM instances WHERE id = $1 FOR UPDATE").bind(instance_id).fetch_one(&mut *tx).await?;
        let message = failure.message.clone();
        let failure = Json(StepFailure { step: kind.to_string(), failure });
        finish_operation(&mut tx, id, kind, OperationState::Failed, Some(&failure)).await?;
        let mine = match kind {
            OperationKind::Create => InstanceState::Creating,
            OperationKind::Delete => InstanceState::Deleting,
        };
        if instance.state == mine {
            sqlx::query("UPDATE instances SET state = 'failed', failure = $2, health_status = NULL WHERE id = $1")
                .bind(instance_id)
                .bind(&failure)
                .execute(&mut *tx)
                .await?;
            insert_event(&mut tx, &instance, "instance_failed", &message, &cause, Some(id)).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn add_steps(&self, operations: &mut [Operation]) -> Result<(), StoreError> {
        #[derive(sqlx::FromRow)]
        struct Row {
            operation_id: Uuid,
            #[sqlx(flatten)]
            step: Step,
        }
        let ids: Vec<Uuid> = operations.iter().map(|operation| operation.id).collect();
        let rows: Vec<Row> =
            sqlx::query_as("SELECT * FROM operation_steps WHERE operation_id = ANY($1) ORDER BY operation_id, position")
                .bind(ids)
                .fetch_all(&self.pool)
                .await?;
        for Row { operation_id, step } in rows {
            if let Some(operation) = operations.iter_mut().find(|operation| operation.id == operation_id) {
                operation.steps.push(step);
            }
        }
        Ok(())
    }
}

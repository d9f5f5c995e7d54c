//! Operations and their steps.

use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::events::{Happening, insert_event};
use super::outcome::finish_operation;
use super::{Instance, Operation, Step, StepFailure, Store, StoreError, commit};
use crate::{Failure, InstanceState, OperationKind, OperationState};

/// Which operations a list has.
#[derive(Debug, Clone, Default)]
pub struct OperationFilter {
    /// In one of these namespaces.
    pub namespaces: Option<Vec<String>>,
    /// Of instances of this name.
    pub instance_name: Option<String>,
    /// Of this kind.
    pub kind: Option<OperationKind>,
    /// In this state.
    pub state: Option<OperationState>,
    /// Older than this one.
    pub before: Option<Uuid>,
}

impl Store {
    /// An operation with its steps.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn operation(&self, id: Uuid) -> Result<Option<Operation>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        operation_with_steps(&mut connection, id).await
    }

    /// Operations with their steps, newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn operations(&self, filter: &OperationFilter, limit: i64) -> Result<Vec<Operation>, StoreError> {
        // The ids are UUIDs of version 7: their order is that of time.
        let mut operations: Vec<Operation> = sqlx::query_as(
            "SELECT * FROM operations WHERE ($1::text[] IS NULL OR namespace = ANY($1))
                AND ($2::text IS NULL OR instance_name = $2) AND ($3::text IS NULL OR kind = $3)
                AND ($4::text IS NULL OR state = $4) AND ($5::uuid IS NULL OR id < $5)
             ORDER BY id DESC LIMIT $6",
        )
        .bind(&filter.namespaces)
        .bind(&filter.instance_name)
        .bind(filter.kind)
        .bind(filter.state)
        .bind(filter.before)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        add_steps(&self.pool, &mut operations).await?;
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
    ///
    /// # Errors
    /// If the database fails.
    pub async fn last_operation(&self, instance_id: Uuid, kind: OperationKind) -> Result<Option<Operation>, StoreError> {
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

    /// The operation that is at work on an instance, if there is one: the newest of several.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn operation_at_work(&self, instance_id: Uuid) -> Result<Option<Operation>, StoreError> {
        let id: Option<(Uuid,)> = sqlx::query_as(
            "SELECT id FROM operations WHERE instance_id = $1 AND state IN ('pending', 'running') ORDER BY id DESC LIMIT 1",
        )
        .bind(instance_id)
        .fetch_optional(&self.pool)
        .await?;
        match id {
            Some((id,)) => self.operation(id).await,
            None => Ok(None),
        }
    }

    /// What is still being made or changed of the instance that this operation is about, by another
    /// operation.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn other_change_at_work(&self, operation_id: Uuid) -> Result<Option<OperationKind>, StoreError> {
        let kind: Option<(OperationKind,)> = sqlx::query_as(
            "SELECT other.kind FROM operations o JOIN operations other ON other.instance_id = o.instance_id
             WHERE o.id = $1 AND other.id <> o.id AND other.kind <> 'delete' AND other.state IN ('pending', 'running') LIMIT 1",
        )
        .bind(operation_id)
        .fetch_optional(&self.pool)
        .await?;
        Ok(kind.map(|(kind,)| kind))
    }

    /// How long an operation takes in all, in seconds: the median of the last twenty of its kind on its
    /// instance's platform that succeeded. `None` without any.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn expected_seconds(&self, operation: &Operation) -> Result<Option<f64>, StoreError> {
        // Of the newest few, by the index, so that it costs the same however many there were.
        let (median,): (Option<f64>,) = sqlx::query_as(
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) FROM (
                SELECT extract(epoch FROM past.finished_at - past.created_at)::float8 AS seconds
                FROM (SELECT instance_id, created_at, finished_at FROM operations
                      WHERE kind = $1 AND state = 'succeeded' AND retry_of IS NULL
                      ORDER BY finished_at DESC LIMIT 200) past
                JOIN instances i ON i.id = past.instance_id
                WHERE i.platform = (SELECT platform FROM instances WHERE id = $2)
                ORDER BY past.finished_at DESC LIMIT 20) durations",
        )
        .bind(operation.kind)
        .bind(operation.instance_id)
        .fetch_one(&self.pool)
        .await?;
        Ok(median)
    }

    /// Notes that a step has begun, or begun again. Nothing happens if there is no such operation
    /// at work: activities may be used without a server.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn begin_step(&self, operation_id: Uuid, name: &str) -> Result<(), StoreError> {
        let mut tx = self.lazy_transaction(operation_id).await?;
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
        commit(tx).await
    }

    /// Notes how a step's attempt ended.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn end_step(&self, operation_id: Uuid, name: &str, failure: Option<&Failure>) -> Result<(), StoreError> {
        let mut tx = self.lazy_transaction(operation_id).await?;
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

    /// Ends an operation whose workflow broke without ending it, and its instance as `failed`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn fail_operation(&self, id: Uuid, failure: Failure) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let (instance, operation) = lock_operation(&mut tx, id).await?;
        if operation.state.is_final() {
            return Ok(());
        }
        let message = failure.message.clone();
        // The one at which it broke; `finish_operation` takes what still runs for the step that calls it.
        sqlx::query(
            "UPDATE operation_steps SET state = 'failed', error = $2, finished_at = now()
             WHERE operation_id = $1 AND state = 'running'",
        )
        .bind(id)
        .bind(Json(&failure))
        .execute(&mut *tx)
        .await?;
        let failure = Json(StepFailure { step: operation.kind.to_string(), failure });
        finish_operation(&mut tx, &operation, OperationState::Failed, Some(&failure)).await?;
        let mine = match operation.kind {
            // Nobody else will clear away what is left of it.
            OperationKind::Create if operation.cancel_requested_at.is_some() && !delete_at_work(&mut tx, instance.id).await? => {
                Some(InstanceState::Deleting)
            }
            OperationKind::Create => Some(InstanceState::Creating),
            // It runs as before.
            OperationKind::Update => None,
            OperationKind::Delete => Some(InstanceState::Deleting),
        };
        if Some(instance.state) == mine {
            sqlx::query("UPDATE instances SET state = 'failed', failure = $2, health_status = NULL WHERE id = $1")
                .bind(instance.id)
                .bind(&failure)
                .execute(&mut *tx)
                .await?;
            let happening = Happening::of(&instance, "instance_failed", &message).in_operation(&operation);
            insert_event(&mut tx, &happening).await?;
        } else if operation.kind == OperationKind::Update {
            insert_event(&mut tx, &Happening::of(&instance, "update_failed", &message).in_operation(&operation)).await?;
        }
        commit(tx).await
    }
}

/// One operation with its steps.
pub(super) async fn operation_with_steps(connection: &mut PgConnection, id: Uuid) -> Result<Option<Operation>, StoreError> {
    let operation: Option<Operation> =
        sqlx::query_as("SELECT * FROM operations WHERE id = $1").bind(id).fetch_optional(&mut *connection).await?;
    let Some(mut operation) = operation else { return Ok(None) };
    add_steps(connection, std::slice::from_mut(&mut operation)).await?;
    Ok(Some(operation))
}

async fn add_steps(executor: impl PgExecutor<'_>, operations: &mut [Operation]) -> Result<(), StoreError> {
    #[derive(sqlx_macros::FromRow)]
    struct Row {
        operation_id: Uuid,
        #[sqlx(flatten)]
        step: Step,
    }
    let ids: Vec<Uuid> = operations.iter().map(|operation| operation.id).collect();
    let rows: Vec<Row> =
        sqlx::query_as("SELECT * FROM operation_steps WHERE operation_id = ANY($1) ORDER BY operation_id, position")
            .bind(ids)
            .fetch_all(executor)
            .await?;
    for Row { operation_id, step } in rows {
        if let Some(operation) = operations.iter_mut().find(|operation| operation.id == operation_id) {
            operation.steps.push(step);
        }
    }
    Ok(())
}

/// An operation and its instance, held until the transaction ends. Whoever holds both takes the
/// instance first.
pub(super) async fn lock_operation(connection: &mut PgConnection, id: Uuid) -> Result<(Instance, Operation), StoreError> {
    let instance: Option<Instance> =
        sqlx::query_as("SELECT * FROM instances WHERE id = (SELECT instance_id FROM operations WHERE id = $1) FOR NO KEY UPDATE")
            .bind(id)
            .fetch_optional(&mut *connection)
            .await?;
    let operation: Option<Operation> =
        sqlx::query_as("SELECT * FROM operations WHERE id = $1 FOR NO KEY UPDATE").bind(id).fetch_optional(connection).await?;
    instance.zip(operation).ok_or(StoreError::OperationNotFound(id))
}

/// Whether a delete of the instance is at work.
pub(super) async fn delete_at_work(connection: &mut PgConnection, instance_id: Uuid) -> Result<bool, StoreError> {
    let (at_work,): (bool,) = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM operations WHERE instance_id = $1 AND kind = 'delete' AND state IN ('pending', 'running'))",
    )
    .bind(instance_id)
    .fetch_one(connection)
    .await?;
    Ok(at_work)
}

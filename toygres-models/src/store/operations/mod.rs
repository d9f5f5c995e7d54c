//! Operations: requests that are kept, from their beginning to their end.
//!
//! [`request`] begins them, [`steps`] notes what they do, [`finish`] ends them; [`cancel`] and [`retry`] do what they
//! say. None of them knows a kind by name.

mod cancel;
mod finish;
pub(in crate::store) mod request;
mod retry;
mod steps;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

pub use finish::MetadataUpdate;
use request::NewOperation;
pub use request::{ChangeRequested, OperationRequested};

use super::{Instance, Operation, Step, Store, StoreError};
use crate::{InstanceSpec, OperationKind, OperationState, PlatformName};

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
        let mut operations: Vec<Operation> = sqlx::query_as(&format!(
            "SELECT {} FROM operations WHERE ($1::text[] IS NULL OR namespace = ANY($1))
                AND ($2::text IS NULL OR instance_name = $2) AND ($3::text IS NULL OR kind = $3)
                AND ($4::text IS NULL OR state = $4) AND ($5::uuid IS NULL OR id < $5)
             ORDER BY id DESC LIMIT $6",
            Operation::COLUMNS
        ))
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
        Ok(sqlx::query_as(&format!(
            "SELECT {} FROM operations WHERE state IN ('pending', 'running') ORDER BY id",
            Operation::COLUMNS
        ))
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

    /// How many operations of that kind toygres itself asked for on an instance, since then.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn own_operations_since(
        &self,
        instance_id: Uuid,
        kind: OperationKind,
        since: DateTime<Utc>,
    ) -> Result<i64, StoreError> {
        let (count,) = sqlx::query_as(
            "SELECT count(*) FROM operations WHERE instance_id = $1 AND kind = $2 AND actor = 'toygres' AND created_at > $3",
        )
        .bind(instance_id)
        .bind(kind)
        .bind(since)
        .fetch_one(&self.pool)
        .await?;
        Ok(count)
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
             WHERE o.id = $1 AND other.id <> o.id AND NOT other.kind = ANY($2) AND other.state IN ('pending', 'running') LIMIT 1",
        )
        .bind(operation_id)
        .bind(overtaking_kinds())
        .fetch_optional(&self.pool)
        .await?;
        Ok(kind.map(|(kind,)| kind))
    }

    /// How long an operation takes in all, in seconds: the median of the last twenty like it on its
    /// platform that succeeded. `None` without any.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn expected_seconds(&self, operation: &Operation) -> Result<Option<f64>, StoreError> {
        self.median_seconds(operation.kind, &operation.summary, operation.spec.platform).await
    }

    /// The same of an operation that would change an instance's spec to `spec`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn expected_seconds_of_change(&self, instance: &Instance, spec: &InstanceSpec) -> Result<Option<f64>, StoreError> {
        let operation = NewOperation { spec, ..NewOperation::on(instance, OperationKind::UPDATE) };
        self.median_seconds(OperationKind::UPDATE, &operation.summary(), spec.platform).await
    }

    async fn median_seconds(
        &self,
        kind: OperationKind,
        summary: &str,
        platform: PlatformName,
    ) -> Result<Option<f64>, StoreError> {
        // Of the newest few, by the index, so that it costs the same however many there were.
        let (median,): (Option<f64>,) = sqlx::query_as(
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) FROM (
                SELECT extract(epoch FROM past.finished_at - past.created_at)::float8 AS seconds
                FROM (SELECT created_at, finished_at, summary, spec FROM operations
                      WHERE kind = $1 AND state = 'succeeded' AND retry_of IS NULL
                      ORDER BY finished_at DESC LIMIT 200) past
                WHERE past.summary = $2 AND past.spec ->> 'platform' = $3
                ORDER BY past.finished_at DESC LIMIT 20) durations",
        )
        .bind(kind)
        .bind(summary)
        .bind(platform.as_str())
        .fetch_one(&self.pool)
        .await?;
        Ok(median)
    }
}

/// One operation with its steps.
pub(super) async fn operation_with_steps(connection: &mut PgConnection, id: Uuid) -> Result<Option<Operation>, StoreError> {
    let operation: Option<Operation> = sqlx::query_as(&format!("SELECT {} FROM operations WHERE id = $1", Operation::COLUMNS))
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?;
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
        sqlx::query_as("SELECT operation_id, name, state, attempts, started_at, finished_at, error FROM operation_steps WHERE operation_id = ANY($1) ORDER BY operation_id, position")
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

/// An operation and its instance, held until the transaction ends. A transaction that holds both takes the
/// instance first.
pub(super) async fn lock_operation(connection: &mut PgConnection, id: Uuid) -> Result<(Instance, Operation), StoreError> {
    let instance: Option<Instance> = sqlx::query_as(&format!(
        "SELECT {} FROM instances WHERE id = (SELECT instance_id FROM operations WHERE id = $1) FOR NO KEY UPDATE",
        Instance::COLUMNS
    ))
    .bind(id)
    .fetch_optional(&mut *connection)
    .await?;
    let operation: Option<Operation> =
        sqlx::query_as(&format!("SELECT {} FROM operations WHERE id = $1 FOR NO KEY UPDATE", Operation::COLUMNS))
            .bind(id)
            .fetch_optional(connection)
            .await?;
    instance.zip(operation).ok_or(StoreError::OperationNotFound(id))
}

/// Whether an operation that overtakes others is at work on the instance.
pub(super) async fn overtaking_operation(connection: &mut PgConnection, instance_id: Uuid) -> Result<bool, StoreError> {
    let (at_work,): (bool,) = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM operations WHERE instance_id = $1 AND kind = ANY($2) AND state IN ('pending', 'running'))",
    )
    .bind(instance_id)
    .bind(overtaking_kinds())
    .fetch_one(connection)
    .await?;
    Ok(at_work)
}

/// The names of the kinds that may begin while another operation is at work.
fn overtaking_kinds() -> Vec<&'static str> {
    OperationKind::ALL.iter().filter(|kind| kind.overtakes).map(|kind| kind.name).collect()
}

//! Instances: asked for, changed by their operations, looked up.

use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, Transaction};
use uuid::Uuid;

use super::{Instance, Operation, StepFailure, Store, StoreError};
use crate::{
    Cpu, DnsLabel, Failure, FailureKind, InstanceKey, InstanceOptions, InstanceState, Memory, OperationKind, OperationState,
    PlatformName, PostgresVersion, StorageClass, StorageSize,
};

/// An instance to be created.
#[derive(Debug, Clone)]
pub struct NewInstance {
    /// Namespace and name.
    pub key: InstanceKey,
    /// Where it is to run.
    pub platform: PlatformName,
    /// On which cluster, where the platform has several.
    pub cluster_id: Option<String>,
    /// Its version, resolved.
    pub postgres_version: PostgresVersion,
    /// Its storage.
    pub storage_size: StorageSize,
    /// What else it is to be.
    pub options: InstanceOptions,
    /// Who asked, and for what.
    pub cause: String,
}

/// What became of a request to create.
#[derive(Debug)]
pub enum Created {
    /// Written down; this operation will make it.
    New(Operation),
    /// A live instance of that name is there already, made by this operation.
    Existing(Box<Instance>, Option<Operation>),
}

/// What became of a request to delete.
#[derive(Debug)]
pub enum DeleteRequested {
    /// Written down; this operation will do it.
    New(Operation),
    /// This operation is at it already.
    AtWork(Operation),
}

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
}

impl Store {
    /// Writes down a new instance and the operation that will make it, both or neither.
    ///
    /// `before_commit` runs while the name is held: of two creates at once, one waits for the
    /// other and then sees its instance. What it stores for the name (the password) is thus never
    /// overwritten by a loser.
    ///
    /// # Errors
    /// [`StoreError::Refused`] with `before_commit`'s failure; nothing is written then.
    pub async fn create_instance(
        &self,
        new: &NewInstance,
        before_commit: impl AsyncFnOnce() -> Result<(), Failure>,
    ) -> Result<Created, StoreError> {
        // A loop, since the instance in the way may be gone by the time it is read.
        loop {
            let mut tx = self.pool.begin().await?;
            let instance: Option<Instance> = sqlx::query_as(
                "INSERT INTO instances (id, namespace, name, platform, cluster_id, postgres_version, storage_size_gb,
                    use_load_balancer, dns_label, cpu, memory, storage_class)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
                 ON CONFLICT (namespace, name) WHERE state <> 'deleted' DO NOTHING
                 RETURNING *",
            )
            .bind(Uuid::now_v7())
            .bind(new.key.namespace.as_str())
            .bind(new.key.name.as_str())
            .bind(new.platform)
            .bind(&new.cluster_id)
            .bind(new.postgres_version.to_string())
            .bind(new.storage_size.gb())
            .bind(new.options.use_load_balancer)
            .bind(new.options.dns_label.as_ref().map(DnsLabel::as_str))
            .bind(new.options.cpu.as_ref().map(Cpu::as_str))
            .bind(new.options.memory.as_ref().map(Memory::as_str))
            .bind(new.options.storage_class.as_ref().map(StorageClass::as_str))
            .fetch_optional(&mut *tx)
            .await?;
            if let Some(instance) = instance {
                let operation = insert_operation(&mut tx, OperationKind::Create, &instance, &new.cause).await?;
                let message =
                    format!("PostgreSQL {}, {} of storage, on {}", new.postgres_version, new.storage_size, new.platform);
                insert_event(&mut tx, &instance, "create_requested", &message, &new.cause, Some(operation.id)).await?;
                before_commit().await.map_err(StoreError::Refused)?;
                tx.commit().await?;
                return Ok(Created::New(operation));
            }
            drop(tx);
            match self.instance(&new.key).await {
                Ok(instance) => {
                    let operation = self.last_operation(instance.id, OperationKind::Create).await?;
                    return Ok(Created::Existing(Box::new(instance), operation));
                }
                Err(StoreError::InstanceNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Marks an instance as being deleted and writes down the operation that will do it.
    ///
    /// # Errors
    /// [`StoreError::InstanceNotFound`] if there is no live instance of that name.
    pub async fn delete_instance(&self, key: &InstanceKey, cause: &str) -> Result<DeleteRequested, StoreError> {
        let mut tx = self.pool.begin().await?;
        let instance = live_instance(&mut tx, key).await?;
        let at_work: Option<(Uuid,)> = sqlx::query_as(
            "SELECT id FROM operations WHERE instance_id = $1 AND kind = 'delete' AND state IN ('pending', 'running')",
        )
        .bind(instance.id)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some((id,)) = at_work {
            drop(tx);
            let operation = self.operation(id).await?;
            return operation.map(DeleteRequested::AtWork).ok_or_else(|| StoreError::InstanceNotFound(key.to_string()));
        }
        sqlx::query("UPDATE instances SET state = 'deleting', failure = NULL WHERE id = $1")
            .bind(instance.id)
            .execute(&mut *tx)
            .await?;
        let operation = insert_operation(&mut tx, OperationKind::Delete, &instance, cause).await?;
        let message = format!("it was {}", instance.state);
        insert_event(&mut tx, &instance, "delete_requested", &message, cause, Some(operation.id)).await?;
        tx.commit().await?;
        Ok(DeleteRequested::New(operation))
    }

    /// Takes over what a workflow found or did. `true` if the record had to be made.
    ///
    /// The state of the instance, the end of the operation and the event are written together.
    /// Repeating it changes nothing more. When an operation failed, the reason is that of its step
    /// that failed. A creation that a delete overtook ends without touching the instance.
    ///
    /// # Errors
    /// [`StoreError::IllegalTransition`] if the instance may not go to that state.
    pub async fn update_metadata(&self, update: &MetadataUpdate) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let found: Option<Instance> = sqlx::query_as("SELECT * FROM instances WHERE id = $1 FOR UPDATE")
            .bind(update.instance_id)
            .fetch_optional(&mut *tx)
            .await?;
        let created = found.is_none();
        let before = match found {
            Some(instance) => instance,
            None => {
                sqlx::query_as(
                    "INSERT INTO instances (id, namespace, name, platform, postgres_version, storage_size_gb, state)
                     VALUES ($1, 'default', $2, $3, 'unknown', 0, $4) RETURNING *",
                )
                .bind(update.instance_id)
                .bind(&update.instance_name)
                .bind(update.platform)
                .bind(update.state)
                .fetch_one(&mut *tx)
                .await?
            }
        };
        let operation = match update.operation_id {
            Some(id) => operation_at_work(&mut tx, id, update.instance_id).await?,
            None => None,
        };
        let creates = operation.as_ref().is_some_and(|(kind, _)| *kind == OperationKind::Create);
        let overtaken = creates && matches!(before.state, InstanceState::Deleting | InstanceState::Deleted);
        let failure = match update.state {
            InstanceState::Failed => failed_step(&mut tx, update.operation_id).await?.map(Json),
            // It made the instance, but nobody gets it: that is no success.
            _ if overtaken => Some(Json(StepFailure {
                step: "update-metadata".into(),
                failure: Failure::permanent(
                    FailureKind::Superseded,
                    format!("{}/{} is being deleted; its creation was given up", before.namespace, before.name),
                ),
            })),
            _ => None,
        };
        if !overtaken {
            sqlx::query(
                "UPDATE instances SET state = $2, failure = $3,
                    health_status = CASE WHEN $2 IN ('failed', 'deleted') THEN NULL ELSE coalesce($4, health_status) END,
                    ip_connection_string = coalesce($5, ip_connection_string),
                    dns_connection_string = coalesce($6, dns_connection_string),
                    health_check_orchestration_id = coalesce($7, health_check_orchestration_id),
                    deleted_at = CASE WHEN $2 = 'deleted' THEN coalesce(deleted_at, now()) END
                 WHERE id = $1",
            )
            .bind(update.instance_id)
            .bind(update.state)
            .bind(&failure)
            .bind(&update.health_status)
            .bind(&update.ip_connection_string)
            .bind(&update.dns_connection_string)
            .bind(&update.health_check_orchestration_id)
            .execute(&mut *tx)
            .await?;
        }
        if let (Some((kind, cause)), Some(id)) = (&operation, update.operation_id)
            && let Some(end) = if overtaken { Some(OperationState::Failed) } else { end_of(*kind, update.state) }
        {
            finish_operation(&mut tx, id, *kind, end, failure.as_ref()).await?;
            if !overtaken {
                let message = match (&failure, update.state) {
                    (Some(failure), _) => format!("{}: {}", failure.step, failure.failure.message),
                    (None, InstanceState::Running) => update.ip_connection_string.clone().unwrap_or_default(),
                    (None, _) => String::new(),
                };
                insert_event(&mut tx, &before, &format!("instance_{}", update.state), &message, cause, Some(id)).await?;
            }
        }
        tx.commit().await?;
        Ok(created)
    }

    /// A live instance.
    ///
    /// # Errors
    /// [`StoreError::InstanceNotFound`] if there is none of that name.
    pub async fn instance(&self, key: &InstanceKey) -> Result<Instance, StoreError> {
        live_instance(&mut *self.pool.acquire().await?, key).await
    }

    /// An instance by its id, a deleted one too.
    ///
    /// # Errors
    /// [`StoreError::InstanceNotFound`] if there never was one.
    pub async fn instance_by_id(&self, id: Uuid) -> Result<Instance, StoreError> {
        sqlx::query_as("SELECT * FROM instances WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| StoreError::InstanceNotFound(id.to_string()))
    }

    /// The instance that an operation is about, and what the operation does with it.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn instance_of(&self, operation_id: Uuid) -> Result<Option<(OperationKind, Instance)>, StoreError> {
        #[derive(sqlx::FromRow)]
        struct Row {
            operation_kind: OperationKind,
            #[sqlx(flatten)]
            instance: Instance,
        }
        let row: Option<Row> = sqlx::query_as(
            "SELECT o.kind AS operation_kind, i.* FROM operations o JOIN instances i ON i.id = o.instance_id WHERE o.id = $1",
        )
        .bind(operation_id)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| (row.operation_kind, row.instance)))
    }

    /// Live instances in order of namespace and name, of one namespace or of all, after the one
    /// that `after` names.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn instances(
        &self,
        namespace: Option<&str>,
        after: Option<&InstanceKey>,
        limit: i64,
    ) -> Result<Vec<Instance>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT * FROM instances WHERE state <> 'deleted' AND ($1::text IS NULL OR namespace = $1)
                AND ($2::text IS NULL OR (namespace, name) > ($2, $3))
             ORDER BY namespace, name LIMIT $4",
        )
        .bind(namespace)
        .bind(after.map(|key| key.namespace.as_str()))
        .bind(after.map(|key| key.name.as_str()))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// The platforms that have live instances.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn platforms_in_use(&self) -> Result<Vec<PlatformName>, StoreError> {
        let rows: Vec<(PlatformName,)> =
            sqlx::query_as("SELECT DISTINCT platform FROM instances WHERE state <> 'deleted' ORDER BY platform")
                .fetch_all(&self.pool)
                .await?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }

    /// The live instance of that name, or else the one that was deleted last.
    ///
    /// # Errors
    /// [`StoreError::InstanceNotFound`] if there never was one.
    pub async fn instance_or_last_deleted(&self, key: &InstanceKey) -> Result<Instance, StoreError> {
        sqlx::query_as("SELECT * FROM instances WHERE namespace = $1 AND name = $2 ORDER BY deleted_at DESC NULLS FIRST LIMIT 1")
            .bind(key.namespace.as_str())
            .bind(key.name.as_str())
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| StoreError::InstanceNotFound(key.to_string()))
    }
}

/// Which end of an operation the instance's new state means.
fn end_of(kind: OperationKind, state: InstanceState) -> Option<OperationState> {
    match (kind, state) {
        (OperationKind::Create, InstanceState::Running) | (OperationKind::Delete, InstanceState::Deleted) => {
            Some(OperationState::Succeeded)
        }
        (_, InstanceState::Failed) => Some(OperationState::Failed),
        _ => None,
    }
}

pub(super) async fn live_instance(connection: &mut PgConnection, key: &InstanceKey) -> Result<Instance, StoreError> {
    sqlx::query_as("SELECT * FROM instances WHERE namespace = $1 AND name = $2 AND state <> 'deleted' FOR NO KEY UPDATE")
        .bind(key.namespace.as_str())
        .bind(key.name.as_str())
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| StoreError::InstanceNotFound(key.to_string()))
}

async fn insert_operation(
    tx: &mut Transaction<'_, Postgres>,
    kind: OperationKind,
    instance: &Instance,
    cause: &str,
) -> Result<Operation, StoreError> {
    Ok(sqlx::query_as(
        "INSERT INTO operations (id, kind, instance_id, namespace, instance_name, cause)
         VALUES ($1, $2, $3, $4, $5, $6) RETURNING *",
    )
    .bind(Uuid::now_v7())
    .bind(kind)
    .bind(instance.id)
    .bind(&instance.namespace)
    .bind(&instance.name)
    .bind(cause)
    .fetch_one(&mut **tx)
    .await?)
}

pub(super) async fn insert_event(
    connection: &mut PgConnection,
    instance: &Instance,
    kind: &str,
    message: &str,
    cause: &str,
    operation_id: Option<Uuid>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO events (instance_id, namespace, instance_name, kind, message, cause, operation_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(instance.id)
    .bind(&instance.namespace)
    .bind(&instance.name)
    .bind(kind)
    .bind(message)
    .bind(cause)
    .bind(operation_id)
    .execute(connection)
    .await?;
    Ok(())
}

async fn operation_at_work(
    connection: &mut PgConnection,
    id: Uuid,
    instance_id: Uuid,
) -> Result<Option<(OperationKind, String)>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT kind, cause FROM operations WHERE id = $1 AND instance_id = $2 AND state IN ('pending', 'running') FOR UPDATE",
    )
    .bind(id)
    .bind(instance_id)
    .fetch_optional(connection)
    .await?)
}

/// The step of the operation that failed last.
async fn failed_step(connection: &mut PgConnection, operation_id: Option<Uuid>) -> Result<Option<StepFailure>, StoreError> {
    let row: Option<(String, Json<Failure>)> = sqlx::query_as(
        "SELECT name, error FROM operation_steps WHERE operation_id = $1 AND state = 'failed' AND error IS NOT NULL
         ORDER BY position DESC LIMIT 1",
    )
    .bind(operation_id)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(step, Json(failure))| StepFailure { step, failure }))
}

pub(super) async fn finish_operation(
    connection: &mut PgConnection,
    id: Uuid,
    kind: OperationKind,
    end: OperationState,
    failure: Option<&Json<StepFailure>>,
) -> Result<(), StoreError> {
    // A failed operation always says why, even when its workflow broke before any step did.
    let unknown = Json(StepFailure {
        step: kind.to_string(),
        failure: Failure::permanent(FailureKind::Internal, "no step reported why; see the server's log"),
    });
    let error = (end == OperationState::Failed).then(|| failure.unwrap_or(&unknown));
    sqlx::query(
        "UPDATE operations SET state = $2, error = $3, finished_at = now(), started_at = coalesce(started_at, now()),
            revision = revision + 1
         WHERE id = $1 AND state IN ('pending', 'running')",
    )
    .bind(id)
    .bind(end)
    .bind(error)
    .execute(&mut *connection)
    .await?;
    // The step that writes this down is done with it.
    sqlx::query(
        "UPDATE operation_steps SET state = 'succeeded', finished_at = now() WHERE operation_id = $1 AND state = 'running'",
    )
    .bind(id)
    .execute(connection)
    .await?;
    Ok(())
}

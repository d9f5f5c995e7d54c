//! What was asked for: an instance to be made, changed or removed, and the operation that will do it,
//! written together or not at all.

use std::time::Duration;

use serde_json::json;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::events::{Happening, insert_event};
use super::instances::lock_live_instance;
use super::{Instance, Operation, PreviousState, Requested, Store, StoreError, commit};
use crate::{
    Cpu, DnsLabel, Failure, FailureKind, InstanceKey, InstanceOptions, InstanceState, Labels, Memory, OperationKind,
    OperationState, PlatformName, PostgresVersion, StorageClass, StorageSize,
};

/// How long a create may take to store its password. A Kubernetes API may take its time; the request that asked is
/// answered, and given up, later than this.
const STORING_LIMIT: Duration = Duration::from_secs(20);
/// A create's transaction may pause for longer than others (see `TRANSACTION_PAUSE_LIMIT`), and than any request takes:
/// if the database ended it while the password is being stored, the name would be free for another create, whose
/// password this one would then overwrite.
const STORING_PAUSE_LIMIT: &str = "30s";

/// An instance to be created.
#[derive(Debug, Clone)]
pub struct NewInstance {
    /// Namespace and name.
    pub key: InstanceKey,
    /// Where it is to run.
    pub platform: PlatformName,
    /// On which of the platform's clusters or machines.
    pub cluster_id: Option<String>,
    /// Its version, resolved.
    pub postgres_version: PostgresVersion,
    /// Its storage.
    pub storage_size: StorageSize,
    /// What else it is to be.
    pub options: InstanceOptions,
    /// Its labels.
    pub labels: Labels,
    /// Whether it can't be deleted until that is taken back.
    pub delete_protection: bool,
    /// Who asked, and for what.
    pub requested: Requested,
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

/// What is to be different about an instance; `None` leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstanceChange {
    /// All of its labels.
    pub labels: Option<Labels>,
    /// Whether it can't be deleted until that is taken back.
    pub delete_protection: Option<bool>,
    /// Whether it may be reached from outside the platform's network.
    pub use_load_balancer: Option<bool>,
    /// The label of its public DNS name; `Some(None)` takes it away.
    pub dns_label: Option<Option<DnsLabel>>,
}

/// What became of a request to change an instance.
#[derive(Debug)]
pub enum UpdateRequested {
    /// It is like that already.
    Unchanged(Box<Instance>),
    /// Done: what changed is only on record.
    Done(Box<Instance>),
    /// Written down; this operation will bring the platform in line.
    New(Box<Operation>),
}

impl Store {
    /// Writes down a new instance and the operation that will make it, both or neither.
    ///
    /// `before_commit` runs while the name is held: of two creates at once, one waits for the
    /// other and then sees its instance. What it stores for the name (the password) is thus never
    /// overwritten by a loser.
    ///
    /// # Errors
    /// [`StoreError::QuotaExceeded`] if the namespace has no room for it; [`StoreError::Refused`] with
    /// `before_commit`'s failure, or one that may pass if that takes longer than 20 s. Nothing is written then.
    pub async fn create_instance(
        &self,
        new: &NewInstance,
        before_commit: impl AsyncFnOnce() -> Result<(), Failure>,
    ) -> Result<Created, StoreError> {
        // A loop, since the instance in the way may be gone by the time it is read.
        loop {
            let mut tx = self.pool.begin().await?;
            super::namespaces::check_quota(&mut tx, new).await?;
            let instance: Option<Instance> = sqlx::query_as(
                "INSERT INTO instances (id, namespace, name, platform, cluster_id, postgres_version, storage_size_gb,
                    use_load_balancer, dns_label, cpu, memory, storage_class, labels, delete_protection, revision)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
                    (SELECT coalesce(max(revision), 0) + 1 FROM instances WHERE namespace = $2 AND name = $3))
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
            .bind(Json(&new.labels))
            .bind(new.delete_protection)
            .fetch_optional(&mut *tx)
            .await?;
            if let Some(instance) = instance {
                let operation = insert_operation(&mut tx, OperationKind::Create, &instance, &new.requested, None, None).await?;
                sqlx::query("SELECT set_config('idle_in_transaction_session_timeout', $1, true)")
                    .bind(STORING_PAUSE_LIMIT)
                    .execute(&mut *tx)
                    .await?;
                let stored = tokio::time::timeout(STORING_LIMIT, before_commit()).await;
                stored.map_err(|_| StoreError::Refused(stored_too_slowly(&new.key)))?.map_err(StoreError::Refused)?;
                let message =
                    format!("PostgreSQL {}, {} of storage, on {}", new.postgres_version, new.storage_size, new.platform);
                let happening = Happening::of(&instance, "create_requested", &message).requested(&new.requested, operation.id);
                insert_event(&mut tx, &happening).await?;
                commit(tx).await?;
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

    /// Changes what is on record of an instance. What only the record holds is done with that; for
    /// the rest an operation is written down.
    ///
    /// # Errors
    /// [`StoreError::InstanceNotFound`]; [`StoreError::RevisionMismatch`] if the instance was changed
    /// since `expected_revision`; [`StoreError::NotNow`] if it is in a state, or has an operation at
    /// work, that the change can't go with. Nothing is written then.
    pub async fn update_instance(
        &self,
        key: &InstanceKey,
        expected_revision: Option<i64>,
        change: &InstanceChange,
        requested: &Requested,
    ) -> Result<UpdateRequested, StoreError> {
        let mut tx = self.pool.begin().await?;
        let before = lock_live_instance(&mut tx, key).await?;
        before.expect_revision(expected_revision)?;
        let labels = change.labels.clone().unwrap_or_else(|| before.labels.0.clone());
        let delete_protection = change.delete_protection.unwrap_or(before.delete_protection);
        let use_load_balancer = change.use_load_balancer.unwrap_or(before.use_load_balancer);
        let dns_label = match &change.dns_label {
            Some(label) => label.as_ref().map(|label| label.as_str().to_owned()),
            // A private instance has no public name.
            None => before.dns_label.clone().filter(|_| use_load_balancer),
        };
        let names_exposure = change.use_load_balancer.is_some() || change.dns_label.is_some();
        // After a change that failed the platform isn't what the record says: the same values again bring it there.
        let exposure_changes = use_load_balancer != before.use_load_balancer
            || dns_label != before.dns_label
            || (names_exposure && has_last_update_failed(&mut tx, before.id).await?);
        let mut changes = Vec::new();
        if labels != before.labels.0 {
            changes.push(format!("labels: {}", serde_json::to_string(&labels).unwrap_or_default()));
        }
        if delete_protection != before.delete_protection {
            changes.push(format!("delete_protection: {delete_protection}"));
        }
        if exposure_changes {
            changes.push(format!("use_load_balancer: {use_load_balancer}"));
            changes.extend(dns_label.as_ref().map(|label| format!("dns_label: {label}")));
        }
        if changes.is_empty() {
            return Ok(UpdateRequested::Unchanged(Box::new(before)));
        }
        if before.state == InstanceState::Deleting {
            return Err(StoreError::NotNow(format!("{key} is being deleted")));
        }
        if exposure_changes {
            expect_idle(&mut tx, key, &before).await?;
        }
        let after: Instance = sqlx::query_as(
            "UPDATE instances SET labels = $2, delete_protection = $3, use_load_balancer = $4, dns_label = $5
             WHERE id = $1 RETURNING *",
        )
        .bind(before.id)
        .bind(Json(&labels))
        .bind(delete_protection)
        .bind(use_load_balancer)
        .bind(&dns_label)
        .fetch_one(&mut *tx)
        .await?;
        let message = changes.join(", ");
        if !exposure_changes {
            insert_event(&mut tx, &Happening::of(&after, "instance_updated", &message).asked_by(requested)).await?;
            commit(tx).await?;
            return Ok(UpdateRequested::Done(Box::new(after)));
        }
        let previous = json!(before.exposure());
        let operation = insert_operation(&mut tx, OperationKind::Update, &after, requested, Some(previous), None).await?;
        let happening = Happening::of(&after, "update_requested", &message).requested(requested, operation.id);
        insert_event(&mut tx, &happening).await?;
        commit(tx).await?;
        Ok(UpdateRequested::New(Box::new(operation)))
    }

    /// Whether the platform may expose an instance in another way than its record says, as the last change of that failed.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn is_exposure_in_doubt(&self, instance_id: Uuid) -> Result<bool, StoreError> {
        has_last_update_failed(&mut *self.pool.acquire().await?, instance_id).await
    }

    /// Marks an instance as being deleted and writes down the operation that will do it.
    ///
    /// # Errors
    /// [`StoreError::InstanceNotFound`] if there is no live instance of that name;
    /// [`StoreError::Protected`] if it may not be deleted; [`StoreError::RevisionMismatch`] if it was
    /// changed since `expected_revision`.
    pub async fn delete_instance(
        &self,
        key: &InstanceKey,
        expected_revision: Option<i64>,
        requested: &Requested,
    ) -> Result<DeleteRequested, StoreError> {
        let mut tx = self.pool.begin().await?;
        let instance = lock_live_instance(&mut tx, key).await?;
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
        instance.expect_revision(expected_revision)?;
        if instance.delete_protection {
            return Err(StoreError::Protected(key.to_string()));
        }
        sqlx::query("UPDATE instances SET state = 'deleting', failure = NULL WHERE id = $1")
            .bind(instance.id)
            .execute(&mut *tx)
            .await?;
        let previous = json!(PreviousState { state: instance.state, failure: instance.failure.clone() });
        let operation = insert_operation(&mut tx, OperationKind::Delete, &instance, requested, Some(previous), None).await?;
        let message = format!("it was {}", instance.state);
        let happening = Happening::of(&instance, "delete_requested", &message).requested(requested, operation.id);
        insert_event(&mut tx, &happening).await?;
        commit(tx).await?;
        Ok(DeleteRequested::New(operation))
    }
}

fn stored_too_slowly(key: &InstanceKey) -> Failure {
    let message = format!("the password of {key} could not be stored within {} s; try again", STORING_LIMIT.as_secs());
    Failure::transient(FailureKind::TimedOut, message)
}

async fn has_last_update_failed(connection: &mut PgConnection, instance_id: Uuid) -> Result<bool, StoreError> {
    // One that was cancelled leaves the doubt as it was: it may have ended before it did anything.
    let state: Option<(OperationState,)> = sqlx::query_as(
        "SELECT state FROM operations WHERE instance_id = $1 AND kind = 'update' AND state <> 'cancelled'
         ORDER BY id DESC LIMIT 1",
    )
    .bind(instance_id)
    .fetch_optional(connection)
    .await?;
    Ok(state == Some((OperationState::Failed,)))
}

/// An operation that changes what runs needs an instance that runs, with nothing else at work on it.
pub(super) async fn expect_idle(tx: &mut PgConnection, key: &InstanceKey, instance: &Instance) -> Result<(), StoreError> {
    if instance.state != InstanceState::Running {
        return Err(StoreError::NotNow(format!("{key} is {}; only a running instance can be changed that way", instance.state)));
    }
    let at_work: Option<(Uuid, OperationKind)> = sqlx::query_as(
        "SELECT id, kind FROM operations WHERE instance_id = $1 AND state IN ('pending', 'running') ORDER BY id LIMIT 1",
    )
    .bind(instance.id)
    .fetch_optional(tx)
    .await?;
    match at_work {
        Some((id, kind)) => Err(StoreError::NotNow(format!("the {kind} operation {id} is at work on {key}; wait for its end"))),
        None => Ok(()),
    }
}

pub(super) async fn insert_operation(
    tx: &mut PgConnection,
    kind: OperationKind,
    instance: &Instance,
    requested: &Requested,
    previous: Option<serde_json::Value>,
    retry_of: Option<Uuid>,
) -> Result<Operation, StoreError> {
    Ok(sqlx::query_as(
        "INSERT INTO operations (id, kind, instance_id, namespace, instance_name, cause, actor, idempotency_key, previous, retry_of)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING *",
    )
    .bind(Uuid::now_v7())
    .bind(kind)
    .bind(instance.id)
    .bind(&instance.namespace)
    .bind(&instance.name)
    .bind(&requested.cause)
    .bind(&requested.actor)
    .bind(&requested.idempotency_key)
    .bind(previous.map(Json))
    .bind(retry_of)
    .fetch_one(tx)
    .await?)
}

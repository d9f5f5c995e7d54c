//! A new instance, written together with the operation that makes it, or not at all.

use std::time::Duration;

use sqlx::types::Json;
use uuid::Uuid;

use crate::store::events::{NewEvent, insert_event};
use crate::store::namespaces::check_quota;
use crate::store::operations::request::{NewOperation, insert_operation};
use crate::store::{Instance, Operation, Requested, Store, StoreError, commit};
use crate::{Failure, FailureKind, InstanceKey, InstanceSpec, OperationKind};

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
    /// On which of the platform's clusters or machines.
    pub cluster_id: Option<String>,
    /// What it is to be.
    pub spec: InstanceSpec,
    /// Who asked, and for what.
    pub requested: Requested,
}

/// What became of a request to create.
#[derive(Debug)]
pub enum Created {
    /// This operation makes it.
    New(Operation),
    /// A live instance of that name is there already, made by this operation.
    Existing(Box<Instance>, Option<Operation>),
}

impl Store {
    /// Writes a new instance and the operation that makes it, both or neither.
    ///
    /// `before_commit` runs while the name is locked: of two creates at once, one waits for the
    /// other and then sees its instance. What it stores for the name (the password) is thus never
    /// overwritten by the loser.
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
            check_quota(&mut tx, new).await?;
            let instance: Option<Instance> = sqlx::query_as(&format!(
                "INSERT INTO instances (id, namespace, name, cluster_id, spec, generation)
                 VALUES ($1, $2, $3, $4, $5,
                    (SELECT coalesce(max(generation), 0) + 1 FROM instances WHERE namespace = $2 AND name = $3))
                 ON CONFLICT (namespace, name) WHERE state <> 'deleted' DO NOTHING
                 RETURNING {}",
                Instance::COLUMNS
            ))
            .bind(Uuid::now_v7())
            .bind(new.key.namespace.as_str())
            .bind(new.key.name.as_str())
            .bind(&new.cluster_id)
            .bind(Json(&new.spec))
            .fetch_optional(&mut *tx)
            .await?;
            if let Some(instance) = instance {
                let operation = NewOperation::on(&instance, OperationKind::CREATE);
                let operation = insert_operation(&mut tx, &operation, &new.requested).await?;
                sqlx::query("SELECT set_config('idle_in_transaction_session_timeout', $1, true)")
                    .bind(STORING_PAUSE_LIMIT)
                    .execute(&mut *tx)
                    .await?;
                let stored = tokio::time::timeout(STORING_LIMIT, before_commit()).await;
                stored.map_err(|_| StoreError::Refused(stored_too_slowly(&new.key)))?.map_err(StoreError::Refused)?;
                let InstanceSpec { postgres_version, storage_size_gb, platform, .. } = &new.spec;
                let message = format!("PostgreSQL {postgres_version}, {storage_size_gb} of storage, on {platform}");
                let event = NewEvent::of(&instance, "create_requested", &message).requested(&new.requested, operation.id);
                insert_event(&mut tx, &event).await?;
                commit(tx).await?;
                return Ok(Created::New(operation));
            }
            drop(tx);
            match self.instance(&new.key).await {
                Ok(instance) => {
                    let operation = self.last_operation(instance.id, OperationKind::CREATE).await?;
                    return Ok(Created::Existing(Box::new(instance), operation));
                }
                Err(StoreError::InstanceNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn stored_too_slowly(key: &InstanceKey) -> Failure {
    let message = format!("the password of {key} could not be stored within {} s; try again", STORING_LIMIT.as_secs());
    Failure::transient(FailureKind::TimedOut, message)
}

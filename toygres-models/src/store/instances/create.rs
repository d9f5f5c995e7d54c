//! A new instance, written together with the operation that makes it, or not at all.

use sqlx::types::Json;
use uuid::Uuid;

use crate::store::events::{NewEvent, insert_event};
use crate::store::namespaces::check_quota;
use crate::store::operations::request::{NewOperation, insert_operation};
use crate::store::{Instance, Operation, Requested, Store, StoreError, commit};
use crate::{InstanceKey, InstanceSpec, OperationKind};

/// An instance to be created.
#[derive(Debug, Clone)]
pub struct NewInstance {
    /// Its id, by which its password is kept before it is on record.
    pub id: Uuid,
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
    /// # Errors
    /// [`StoreError::QuotaExceeded`] if the namespace has no room for it. Nothing is written then.
    pub async fn create_instance(&self, new: &NewInstance) -> Result<Created, StoreError> {
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
            .bind(new.id)
            .bind(new.key.namespace.as_str())
            .bind(new.key.name.as_str())
            .bind(&new.cluster_id)
            .bind(Json(&new.spec))
            .fetch_optional(&mut *tx)
            .await?;
            if let Some(instance) = instance {
                let operation = NewOperation::on(&instance, OperationKind::CREATE);
                let operation = insert_operation(&mut tx, &operation, &new.requested).await?;
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

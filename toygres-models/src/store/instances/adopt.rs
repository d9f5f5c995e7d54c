//! Instances that are on a platform and not on record: taken on record, with the operation that makes toygres able to
//! reach them.

use sqlx::types::Json;
use uuid::Uuid;

use crate::store::events::{NewEvent, insert_event};
use crate::store::operations::request::{NewOperation, insert_operation};
use crate::store::{Instance, Operation, Requested, Store, StoreError, commit};
use crate::{InstanceKey, InstanceSpec, InstanceState, InstanceStatus, MemberStatus, OperationKind, Power};

/// An instance to be taken on record.
#[derive(Debug, Clone)]
pub struct AdoptedInstance {
    /// Namespace and name.
    pub key: InstanceKey,
    /// The id that it had, where it is known.
    pub id: Option<Uuid>,
    /// On which of the platform's clusters or machines.
    pub cluster_id: Option<String>,
    /// The spec that it carries.
    pub spec: InstanceSpec,
    /// Its servers as they were seen.
    pub members: Vec<MemberStatus>,
    /// Who asked, and for what.
    pub requested: Requested,
}

impl Store {
    /// Writes an instance's record and the operation that adopts it, both or neither.
    ///
    /// # Errors
    /// [`StoreError::NotNow`] if there is a live instance of that name on record. Nothing is written then.
    pub async fn adopt_instance(&self, adopted: &AdoptedInstance) -> Result<Operation, StoreError> {
        let mut tx = self.pool.begin().await?;
        let state = match adopted.spec.power {
            Power::Running => InstanceState::Running,
            Power::Stopped => InstanceState::Stopped,
        };
        let status = InstanceStatus { members: adopted.members.clone(), ..InstanceStatus::default() };
        // An id that was used before here, of an instance that was deleted, is not used again.
        let instance: Option<Instance> = sqlx::query_as(&format!(
            "INSERT INTO instances (id, namespace, name, cluster_id, spec, generation, state, status)
             SELECT CASE WHEN $1 IS NULL OR EXISTS (SELECT FROM instances WHERE id = $1) THEN $2 ELSE $1 END, $3, $4, $5, $6,
                (SELECT coalesce(max(generation), 0) + 1 FROM instances WHERE namespace = $3 AND name = $4), $7, $8
             ON CONFLICT (namespace, name) WHERE state <> 'deleted' DO NOTHING
             RETURNING {}",
            Instance::COLUMNS
        ))
        .bind(adopted.id)
        .bind(Uuid::now_v7())
        .bind(adopted.key.namespace.as_str())
        .bind(adopted.key.name.as_str())
        .bind(&adopted.cluster_id)
        .bind(Json(&adopted.spec))
        .bind(state)
        .bind(Json(&status))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(instance) = instance else {
            return Err(StoreError::NotNow(format!("{} is on record already", adopted.key)));
        };
        let operation = NewOperation::on(&instance, OperationKind::ADOPT);
        let operation = insert_operation(&mut tx, &operation, &adopted.requested).await?;
        let message = format!("PostgreSQL {}, on {}", adopted.spec.postgres_version, adopted.spec.platform);
        let event = NewEvent::of(&instance, "adopt_requested", &message).requested(&adopted.requested, operation.id);
        insert_event(&mut tx, &event).await?;
        commit(tx).await?;
        Ok(operation)
    }
}

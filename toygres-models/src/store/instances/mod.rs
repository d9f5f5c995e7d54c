//! Instances: read, listed, created.

mod adopt;
mod create;

use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use super::{Instance, Operation, Store, StoreError, commit};
pub use adopt::AdoptedInstance;
pub use create::{Created, NewInstance};

use crate::{InstanceKey, InstanceState, LabelSelector, MemberStatus, PlatformName, PostgresVersion};

/// Which instances a list has; everything that is left out lets all through.
#[derive(Debug, Clone, Default)]
pub struct InstanceFilter {
    /// In one of these namespaces.
    pub namespaces: Option<Vec<String>>,
    /// On this platform.
    pub platform: Option<PlatformName>,
    /// In this state.
    pub state: Option<InstanceState>,
    /// With these labels.
    pub labels: Option<LabelSelector>,
    /// After this one in the list's order.
    pub after: Option<InstanceKey>,
}

/// An operation and its instance.
#[derive(Debug, Clone)]
pub struct OperationSubject {
    /// The operation, without its steps.
    pub operation: Operation,
    /// The instance that it is about.
    pub instance: Instance,
}

impl Instance {
    /// Fails if the spec was changed since the generation that the caller has seen.
    pub(super) fn expect_generation(&self, expected: Option<i64>) -> Result<(), StoreError> {
        match expected {
            Some(expected) if expected != self.generation => {
                Err(StoreError::GenerationMismatch { key: self.key(), expected, current: self.generation })
            }
            _ => Ok(()),
        }
    }
}

impl Store {
    /// A live instance.
    ///
    /// # Errors
    /// [`StoreError::InstanceNotFound`] if there is none of that name.
    pub async fn instance(&self, key: &InstanceKey) -> Result<Instance, StoreError> {
        self.first_named(key, "AND state <> 'deleted'").await
    }

    /// An instance by its id, a deleted one too.
    ///
    /// # Errors
    /// [`StoreError::InstanceNotFound`] if there never was one.
    pub async fn instance_by_id(&self, id: Uuid) -> Result<Instance, StoreError> {
        sqlx::query_as(&format!("SELECT {} FROM instances WHERE id = $1", Instance::COLUMNS))
            .bind(id)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| StoreError::InstanceNotFound(id.to_string()))
    }

    /// An operation and its instance, as they are now.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn subject_of(&self, operation_id: Uuid) -> Result<Option<OperationSubject>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let operation: Option<Operation> =
            sqlx::query_as(&format!("SELECT {} FROM operations WHERE id = $1", Operation::COLUMNS))
                .bind(operation_id)
                .fetch_optional(&mut *connection)
                .await?;
        let Some(operation) = operation else { return Ok(None) };
        let instance: Instance = sqlx::query_as(&format!("SELECT {} FROM instances WHERE id = $1", Instance::COLUMNS))
            .bind(operation.instance_id)
            .fetch_one(&mut *connection)
            .await?;
        Ok(Some(OperationSubject { operation, instance }))
    }

    /// Live instances in order of namespace and name, those that `filter` lets through.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn instances(&self, filter: &InstanceFilter, limit: i64) -> Result<Vec<Instance>, StoreError> {
        Ok(list(filter, limit).build_query_as().fetch_all(&self.pool).await?)
    }

    /// Notes the full version that an instance's server says it runs. What is known already is not written again.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn record_version(&self, id: Uuid, version: PostgresVersion) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some(instance) = lock_instance(&mut tx, id).await? else { return Ok(()) };
        let mut status = instance.status.0.clone();
        let version = Some(version.to_string());
        match status.members.first_mut() {
            Some(member) if member.postgres_version == version => return Ok(()),
            Some(member) => member.postgres_version = version,
            None => status.members.push(MemberStatus { postgres_version: version, ..MemberStatus::first() }),
        }
        sqlx::query("UPDATE instances SET status = $2 WHERE id = $1").bind(id).bind(Json(status)).execute(&mut *tx).await?;
        commit(tx).await
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
        self.first_named(key, "ORDER BY deleted_at DESC NULLS FIRST LIMIT 1").await
    }

    async fn first_named(&self, key: &InstanceKey, which: &'static str) -> Result<Instance, StoreError> {
        sqlx::query_as(&format!("SELECT {} FROM instances WHERE namespace = $1 AND name = $2 {which}", Instance::COLUMNS))
            .bind(key.namespace.as_str())
            .bind(key.name.as_str())
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| StoreError::InstanceNotFound(key.to_string()))
    }
}

/// An instance by its id, held until the transaction ends.
pub(super) async fn lock_instance(connection: &mut PgConnection, id: Uuid) -> Result<Option<Instance>, StoreError> {
    let instance = format!("SELECT {} FROM instances WHERE id = $1 FOR NO KEY UPDATE", Instance::COLUMNS);
    Ok(sqlx::query_as(&instance).bind(id).fetch_optional(connection).await?)
}

/// A live instance, held until the transaction ends.
pub(super) async fn lock_live_instance(connection: &mut PgConnection, key: &InstanceKey) -> Result<Instance, StoreError> {
    sqlx::query_as(&format!(
        "SELECT {} FROM instances WHERE namespace = $1 AND name = $2 AND state <> 'deleted' FOR NO KEY UPDATE",
        Instance::COLUMNS
    ))
    .bind(key.namespace.as_str())
    .bind(key.name.as_str())
    .fetch_optional(connection)
    .await?
    .ok_or_else(|| StoreError::InstanceNotFound(key.to_string()))
}

/// Live instances in order, those that `filter` lets through.
fn list(filter: &InstanceFilter, limit: i64) -> QueryBuilder<'_, Postgres> {
    let mut query = QueryBuilder::new(format!("SELECT {} FROM instances WHERE state <> 'deleted'", Instance::COLUMNS));
    if let Some(namespaces) = &filter.namespaces {
        query.push(" AND namespace = ANY(").push_bind(namespaces).push(")");
    }
    if let Some(platform) = filter.platform {
        query.push(" AND platform = ").push_bind(platform);
    }
    if let Some(state) = filter.state {
        query.push(" AND state = ").push_bind(state);
    }
    if let Some(selector) = &filter.labels {
        query.push(" AND spec -> 'labels' @> ").push_bind(Json(&selector.equal));
        query.push(" AND spec -> 'labels' ?& ").push_bind(&selector.present);
    }
    if let Some(after) = &filter.after {
        query.push(" AND (namespace, name) > (").push_bind(after.namespace.as_str());
        query.push(", ").push_bind(after.name.as_str()).push(")");
    }
    query.push(" ORDER BY namespace, name LIMIT ").push_bind(limit);
    query
}

//! Instances, looked up.

use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use super::{Instance, InstanceRow, Store, StoreError};
use crate::{InstanceKey, InstanceState, LabelSelector, OperationKind, OperationState, PlatformName};

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

/// What an operation's activities need to know of it.
#[derive(Debug, Clone, sqlx_macros::FromRow)]
pub struct OperationSubject {
    /// What the operation does.
    pub operation_kind: OperationKind,
    /// Where it is.
    pub operation_state: OperationState,
    /// Who cancelled it.
    pub cancel_requested_by: Option<String>,
    /// The instance that it is about.
    #[sqlx(flatten)]
    pub instance: Instance,
}

impl Instance {
    /// Fails if the instance was changed since the revision that the caller has seen.
    pub(super) fn expect_revision(&self, expected: Option<i64>) -> Result<(), StoreError> {
        match expected {
            Some(expected) if expected != self.revision => Err(StoreError::RevisionMismatch {
                key: format!("{}/{}", self.namespace, self.name),
                expected,
                current: self.revision,
            }),
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
        sqlx::query_as("SELECT * FROM instances WHERE namespace = $1 AND name = $2 AND state <> 'deleted'")
            .bind(key.namespace.as_str())
            .bind(key.name.as_str())
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| StoreError::InstanceNotFound(key.to_string()))
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

    /// The instance that an operation is about, and what has become of the operation.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn subject_of(&self, operation_id: Uuid) -> Result<Option<OperationSubject>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT o.kind AS operation_kind, o.state AS operation_state, o.cancel_requested_by, i.*
             FROM operations o JOIN instances i ON i.id = o.instance_id WHERE o.id = $1",
        )
        .bind(operation_id)
        .fetch_optional(&self.pool)
        .await?)
    }

    /// Live instances in order of namespace and name, those that `filter` lets through.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn instances(&self, filter: &InstanceFilter, limit: i64) -> Result<Vec<Instance>, StoreError> {
        Ok(list("*", filter, limit).build_query_as().fetch_all(&self.pool).await?)
    }

    /// The same, to be written as JSON.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn instance_rows(&self, filter: &InstanceFilter, limit: i64) -> Result<Vec<InstanceRow>, StoreError> {
        let mut query = list(&InstanceRow::columns(), filter, limit);
        Ok(query.build().try_map(InstanceRow::new).fetch_all(&self.pool).await?)
    }

    /// Notes the machine of local instances that were made before it was noted.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn adopt(&self, keys: &[InstanceKey], machine_id: &str) -> Result<(), StoreError> {
        let (namespaces, names): (Vec<_>, Vec<_>) = keys.iter().map(|key| (key.namespace.as_str(), key.name.as_str())).unzip();
        sqlx::query(
            "UPDATE instances SET cluster_id = $1
             WHERE platform = 'local' AND cluster_id IS NULL AND state <> 'deleted'
                AND (namespace, name) IN (SELECT * FROM unnest($2::text[], $3::text[]))",
        )
        .bind(machine_id)
        .bind(namespaces)
        .bind(names)
        .execute(&self.pool)
        .await?;
        Ok(())
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

/// A live instance, held until the transaction ends.
pub(super) async fn lock_live_instance(connection: &mut PgConnection, key: &InstanceKey) -> Result<Instance, StoreError> {
    sqlx::query_as("SELECT * FROM instances WHERE namespace = $1 AND name = $2 AND state <> 'deleted' FOR NO KEY UPDATE")
        .bind(key.namespace.as_str())
        .bind(key.name.as_str())
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| StoreError::InstanceNotFound(key.to_string()))
}

/// Live instances in order, those that `filter` lets through.
fn list<'f>(columns: &str, filter: &'f InstanceFilter, limit: i64) -> QueryBuilder<'f, Postgres> {
    let mut query = QueryBuilder::new(format!("SELECT {columns} FROM instances WHERE state <> 'deleted'"));
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
        query.push(" AND labels @> ").push_bind(Json(&selector.equal));
        query.push(" AND labels ?& ").push_bind(&selector.present);
    }
    if let Some(after) = &filter.after {
        query.push(" AND (namespace, name) > (").push_bind(after.namespace.as_str());
        query.push(", ").push_bind(after.name.as_str()).push(")");
    }
    query.push(" ORDER BY namespace, name LIMIT ").push_bind(limit);
    query
}

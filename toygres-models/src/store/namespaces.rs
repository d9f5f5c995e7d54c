//! Namespaces: what is used in each, and how much may be.

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Postgres, Transaction};
use utoipa::ToSchema;

use super::events::{NewEvent, insert_event};
use super::{NewInstance, Requested, Store, StoreError, commit};
use crate::Namespace;

/// A namespace, with what its instances use and may use. There is one where there are instances, or a
/// quota was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx_macros::FromRow, ToSchema)]
#[schema(as = Namespace)]
pub struct NamespaceRecord {
    /// Its name.
    pub name: String,
    /// How many instances it has.
    pub instances: i64,
    /// How much storage they have, in GB, as asked for.
    pub storage_gb: i64,
    /// How many instances it may have; no limit if there is none.
    pub max_instances: Option<i32>,
    /// How much storage they may have, in GB; no limit if there is none.
    pub max_storage_gb: Option<i64>,
    /// Counts the changes of the quota, 0 before the first; it is the ETag.
    pub revision: i64,
}

/// How much a namespace may have; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// How many instances.
    pub max_instances: Option<i32>,
    /// How much storage, in GB.
    pub max_storage_gb: Option<i64>,
}

const SELECT: &str = "
    WITH used AS (
        SELECT namespace, count(*) AS instances, sum(storage_size_gb)::bigint AS storage_gb
        FROM instances WHERE state <> 'deleted' GROUP BY namespace)
    SELECT name, coalesce(used.instances, 0) AS instances, coalesce(used.storage_gb, 0) AS storage_gb,
        max_instances, max_storage_gb, coalesce(quota.revision, 0) AS revision
    FROM (SELECT namespace AS name FROM used UNION SELECT name FROM namespaces) all_names
    LEFT JOIN used ON used.namespace = name LEFT JOIN namespaces quota USING (name)";

impl Store {
    /// Looks whether the namespace has room for a new instance now. The create will look again.
    ///
    /// # Errors
    /// [`StoreError::QuotaExceeded`] if it hasn't.
    pub async fn expect_room(&self, new: &NewInstance) -> Result<(), StoreError> {
        check_quota(&mut self.pool.begin().await?, new).await
    }

    /// Namespaces in order of their names, of `among` if given, after that one.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn namespaces(
        &self,
        among: Option<&[String]>,
        after: Option<&Namespace>,
        limit: i64,
    ) -> Result<Vec<NamespaceRecord>, StoreError> {
        Ok(sqlx::query_as(&format!(
            "{SELECT} WHERE ($1::text[] IS NULL OR name = ANY($1)) AND ($2::text IS NULL OR name > $2) ORDER BY name LIMIT $3"
        ))
        .bind(among)
        .bind(after.map(Namespace::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// One namespace.
    ///
    /// # Errors
    /// [`StoreError::NamespaceNotFound`] if it has neither an instance nor a quota.
    pub async fn namespace(&self, name: &Namespace) -> Result<NamespaceRecord, StoreError> {
        let mut connection = self.pool.acquire().await?;
        select(&mut connection, name).await?.ok_or_else(|| StoreError::NamespaceNotFound(name.to_string()))
    }

    /// Sets how much a namespace may have. What it has already stays, even if that is more; creates
    /// count from when this returns.
    ///
    /// # Errors
    /// [`StoreError::RevisionMismatch`] if the quota was changed since `expected_revision`.
    pub async fn set_quota(
        &self,
        name: &Namespace,
        quota: Quota,
        expected_revision: Option<i64>,
        requested: &Requested,
    ) -> Result<NamespaceRecord, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Waits for the creates that saw none.
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 7846919))").bind(name.as_str()).execute(&mut *tx).await?;
        let before: Option<(Option<i32>, Option<i64>, i64)> =
            sqlx::query_as("SELECT max_instances, max_storage_gb, revision FROM namespaces WHERE name = $1 FOR UPDATE")
                .bind(name.as_str())
                .fetch_optional(&mut *tx)
                .await?;
        let (max_instances, max_storage_gb, current) = before.unwrap_or_default();
        if let Some(expected) = expected_revision.filter(|expected| *expected != current) {
            return Err(StoreError::RevisionMismatch { key: format!("the namespace {name}"), expected, current });
        }
        let changes = before.is_none() || quota != Quota { max_instances, max_storage_gb };
        if changes {
            sqlx::query(
                "INSERT INTO namespaces AS kept (name, max_instances, max_storage_gb) VALUES ($1, $2, $3)
                 ON CONFLICT (name) DO UPDATE SET max_instances = EXCLUDED.max_instances,
                    max_storage_gb = EXCLUDED.max_storage_gb, revision = kept.revision + 1",
            )
            .bind(name.as_str())
            .bind(quota.max_instances)
            .bind(quota.max_storage_gb)
            .execute(&mut *tx)
            .await?;
        }
        let after = select(&mut tx, name).await?.ok_or_else(|| StoreError::NamespaceNotFound(name.to_string()))?;
        if changes {
            let message = quota.to_string();
            let event = NewEvent::in_namespace(name.as_str(), "quota_changed", &message);
            insert_event(&mut tx, &event.asked_by(requested)).await?;
        }
        commit(tx).await?;
        Ok(after)
    }
}

impl std::fmt::Display for Quota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.max_instances {
            Some(max) => write!(f, "at most {max} instances")?,
            None => f.write_str("any number of instances")?,
        }
        match self.max_storage_gb {
            Some(max) => write!(f, ", at most {max} GB of storage"),
            None => f.write_str(", any storage"),
        }
    }
}

async fn select(connection: &mut PgConnection, name: &Namespace) -> Result<Option<NamespaceRecord>, StoreError> {
    Ok(sqlx::query_as(&format!("{SELECT} WHERE name = $1")).bind(name.as_str()).fetch_optional(connection).await?)
}

/// Holds the namespace until the transaction ends, where it has a quota, and fails if the new
/// instance would exceed it: of two creates at once, the second counts the first.
pub(super) async fn check_quota(tx: &mut Transaction<'_, Postgres>, new: &NewInstance) -> Result<(), StoreError> {
    let namespace = new.key.namespace.as_str();
    // Creates don't wait for each other here, but setting the first quota waits for them.
    sqlx::query("SELECT pg_advisory_xact_lock_shared(hashtextextended($1, 7846919))").bind(namespace).execute(&mut **tx).await?;
    let quota: Option<(Option<i32>, Option<i64>)> = sqlx::query_as(
        "SELECT max_instances, max_storage_gb FROM namespaces
         WHERE name = $1 AND (max_instances IS NOT NULL OR max_storage_gb IS NOT NULL) FOR UPDATE",
    )
    .bind(namespace)
    .fetch_optional(&mut **tx)
    .await?;
    let Some((max_instances, max_storage_gb)) = quota else { return Ok(()) };
    // Another instance of that name: the create ends as it would without a quota.
    let (instances, storage_gb, exists): (i64, i64, bool) = sqlx::query_as(
        "SELECT count(*), coalesce(sum(storage_size_gb), 0)::bigint, coalesce(bool_or(name = $2), false) FROM instances
         WHERE namespace = $1 AND state <> 'deleted'",
    )
    .bind(namespace)
    .bind(new.key.name.as_str())
    .fetch_one(&mut **tx)
    .await?;
    if exists {
        return Ok(());
    }
    if let Some(max) = max_instances.filter(|max| instances + 1 > i64::from(*max)) {
        return Err(StoreError::QuotaExceeded(format!(
            "the namespace {namespace} may have {max} instances, and has {instances}"
        )));
    }
    let wanted_gb = i64::from(new.spec.storage_size_gb.gb());
    if let Some(max) = max_storage_gb.filter(|max| storage_gb + wanted_gb > *max) {
        return Err(StoreError::QuotaExceeded(format!(
            "the namespace {namespace} may have {max} GB of storage and has {storage_gb} GB; {wanted_gb} GB more would exceed that"
        )));
    }
    Ok(())
}

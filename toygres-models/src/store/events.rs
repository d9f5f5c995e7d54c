//! Events: what happened to instances, and why.

use uuid::Uuid;

use super::instances::insert_event;
use super::{Event, Store, StoreError};
use crate::{InstanceKey, InstanceState};

impl Store {
    /// An instance's events in order, after the one of that number.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn events(&self, instance_id: Uuid, after: i64, limit: i64) -> Result<Vec<Event>, StoreError> {
        Ok(sqlx::query_as("SELECT * FROM events WHERE instance_id = $1 AND id > $2 ORDER BY id LIMIT $3")
            .bind(instance_id)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?)
    }

    /// Writes down what the platform saw happen to a live instance, and its health after it. An
    /// instance that isn't there (any more), is being deleted, or runs on another cluster than
    /// `cluster_id` is no error: events and deletions may cross, and names are the same elsewhere.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn record_platform_event(
        &self,
        key: &InstanceKey,
        cluster_id: Option<&str>,
        kind: &str,
        message: &str,
        cause: &str,
        healthy: bool,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let instance = match super::instances::live_instance(&mut tx, key).await {
            Ok(instance) => instance,
            Err(StoreError::InstanceNotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        if instance.state == InstanceState::Deleting || instance.cluster_id.as_deref() != cluster_id {
            return Ok(());
        }
        insert_event(&mut tx, &instance, kind, message, cause, None).await?;
        set_health(&mut tx, instance.id, healthy).await?;
        Ok(tx.commit().await?)
    }

    /// Notes an instance's health as it was just observed.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn record_health(&self, key: &InstanceKey, healthy: bool) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        match super::instances::live_instance(&mut tx, key).await {
            Ok(instance) => set_health(&mut tx, instance.id, healthy).await?,
            Err(StoreError::InstanceNotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        Ok(tx.commit().await?)
    }
}

async fn set_health(connection: &mut sqlx::PgConnection, instance_id: Uuid, healthy: bool) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE instances SET health_status = $2
         WHERE id = $1 AND state = 'running' AND health_status IS DISTINCT FROM $2",
    )
    .bind(instance_id)
    .bind(if healthy { "healthy" } else { "unhealthy" })
    .execute(connection)
    .await?;
    Ok(())
}

//! TCP ports of the local platform's instances: each belongs to one instance.

use super::{Store, StoreError};
use crate::InstanceKey;

impl Store {
    /// The port that belongs to the instance.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn port(&self, key: &InstanceKey) -> Result<Option<u16>, StoreError> {
        let port: Option<(i32,)> = sqlx::query_as("SELECT port FROM ports WHERE namespace = $1 AND name = $2")
            .bind(key.namespace.as_str())
            .bind(key.name.as_str())
            .fetch_optional(&self.pool)
            .await?;
        Ok(port.and_then(|(port,)| u16::try_from(port).ok()))
    }

    /// The ports that belong to any instance.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn ports(&self) -> Result<Vec<u16>, StoreError> {
        let ports: Vec<(i32,)> = sqlx::query_as("SELECT port FROM ports").fetch_all(&self.pool).await?;
        Ok(ports.into_iter().filter_map(|(port,)| u16::try_from(port).ok()).collect())
    }

    /// Gives a port to the instance in place of the one it has. `false` if another instance has it.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn claim_port(&self, key: &InstanceKey, port: u16) -> Result<bool, StoreError> {
        let claimed = sqlx::query(
            "INSERT INTO ports (port, namespace, name) VALUES ($1, $2, $3)
             ON CONFLICT (namespace, name) DO UPDATE SET port = EXCLUDED.port",
        )
        .bind(i32::from(port))
        .bind(key.namespace.as_str())
        .bind(key.name.as_str())
        .execute(&self.pool)
        .await;
        match claimed {
            Ok(_) => Ok(true),
            Err(error) if error.as_database_error().is_some_and(|error| error.is_unique_violation()) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Frees the instance's port. Repeating it is no error.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn release_port(&self, key: &InstanceKey) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM ports WHERE namespace = $1 AND name = $2")
            .bind(key.namespace.as_str())
            .bind(key.name.as_str())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

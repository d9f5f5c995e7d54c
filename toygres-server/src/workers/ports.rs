//! The local platform's ports, kept in the metadata store.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use rand::seq::SliceRandom;
use toygres_activities::platform::local::{PortRegistry, exhausted};
use toygres_models::{Failure, FailureKind, InstanceKey, Store};

/// Ports from the table `ports`, whose primary key makes each one's owner unique.
pub struct StorePorts(pub Store);

#[async_trait]
impl PortRegistry for StorePorts {
    async fn claim(&self, key: &InstanceKey, range: RangeInclusive<u16>, unusable: &[u16]) -> Result<u16, Failure> {
        if let Some(port) = self.0.port(key).await?
            && !unusable.contains(&port)
        {
            return Ok(port);
        }
        let taken = self.0.ports().await?;
        let mut free: Vec<u16> = range.clone().filter(|port| !taken.contains(port) && !unusable.contains(port)).collect();
        // In any order: toygres servers with other stores on this machine begin elsewhere.
        free.shuffle(&mut rand::rng());
        for port in free {
            if self.0.claim_port(key, port).await? {
                return Ok(port);
            }
        }
        Err(exhausted(&range))
    }

    async fn keep(&self, key: &InstanceKey, port: u16) -> Result<(), Failure> {
        if self.0.port(key).await? == Some(port) || self.0.claim_port(key, port).await? {
            return Ok(());
        }
        let message = format!("the port {port} of {key} belongs to another instance on record; nothing was changed");
        Err(Failure::permanent(FailureKind::Conflict, message))
    }

    async fn release(&self, key: &InstanceKey) -> Result<(), Failure> {
        Ok(self.0.release_port(key).await?)
    }
}

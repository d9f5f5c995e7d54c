//! TCP ports: one for each instance, unique on this machine.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;
use toygres_models::{Failure, FailureKind, InstanceKey};

use super::files::lock;
use super::host::LocalHost;
use super::record::{Record, instance_folders};

/// Who remembers which instance has which port.
#[async_trait]
pub trait PortRegistry: Send + Sync {
    /// The port that the instance has, unless it is among `unusable`; else a free one of `range`
    /// that isn't, which it has from then on.
    ///
    /// # Errors
    /// [`Exhausted`](FailureKind::Exhausted) if no port of the range is free.
    async fn claim(&self, key: &InstanceKey, range: RangeInclusive<u16>, unusable: &[u16]) -> Result<u16, Failure>;

    /// Notes the port that the instance has already, of one that is adopted.
    ///
    /// # Errors
    /// [`Conflict`](FailureKind::Conflict) if another instance has it.
    async fn keep(&self, key: &InstanceKey, port: u16) -> Result<(), Failure>;

    /// Gives the instance's port back. No error if it has none.
    async fn release(&self, key: &InstanceKey) -> Result<(), Failure>;
}

/// Remembers ports in the instances' own `instance.json`: for programs that use the activities
/// without a server, one at a time on a state directory.
pub struct DirectoryPorts {
    instances: PathBuf,
    /// Claimed, but perhaps not written down by the instance yet.
    claimed: Mutex<HashMap<InstanceKey, u16>>,
}

impl DirectoryPorts {
    /// For the instances of one machine's state directory.
    #[must_use]
    pub fn new(host: &LocalHost) -> Self {
        Self::of(host.state_dir())
    }

    fn of(state_dir: &Path) -> Self {
        Self { instances: state_dir.join("instances"), claimed: Mutex::default() }
    }
}

#[async_trait]
impl PortRegistry for DirectoryPorts {
    async fn claim(&self, key: &InstanceKey, range: RangeInclusive<u16>, unusable: &[u16]) -> Result<u16, Failure> {
        let mut claimed = lock(&self.claimed);
        let mut taken = claimed.clone();
        for (key, home) in instance_folders(&self.instances)? {
            if let Ok(Some(record)) = Record::read(&home) {
                taken.entry(key).or_insert(record.port);
            }
        }
        if let Some(port) = taken.get(key).filter(|port| !unusable.contains(port)) {
            return Ok(*port);
        }
        let count = u32::from(range.end().saturating_sub(*range.start())) + 1;
        // A random place to begin, so that two state directories on a machine rarely meet.
        let start = u32::try_from(uuid::Uuid::new_v4().as_u128() % u128::from(count)).unwrap_or(0);
        let free = (0..count)
            .filter_map(|step| u16::try_from(u32::from(*range.start()) + (start + step) % count).ok())
            .find(|port| !unusable.contains(port) && !taken.values().any(|taken| taken == port));
        let port = free.ok_or_else(|| exhausted(&range))?;
        claimed.insert(key.clone(), port);
        Ok(port)
    }

    async fn keep(&self, _key: &InstanceKey, _port: u16) -> Result<(), Failure> {
        // It stands in the instance's own record.
        Ok(())
    }

    async fn release(&self, key: &InstanceKey) -> Result<(), Failure> {
        lock(&self.claimed).remove(key);
        Ok(())
    }
}

/// The failure for a range with no free port.
#[must_use]
pub fn exhausted(range: &RangeInclusive<u16>) -> Failure {
    Failure::permanent(
        FailureKind::Exhausted,
        format!(
            "all ports from {} to {} are taken by instances or other programs; delete an instance, or give the server a wider --port-range",
            range.start(),
            range.end()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> InstanceKey {
        InstanceKey::parse("default", name).unwrap()
    }

    #[tokio::test]
    async fn a_port_is_kept_unique_and_given_back() {
        let state = tempfile::tempdir().unwrap();
        let ports = DirectoryPorts::of(state.path());
        let first = ports.claim(&key("a"), 20_000..=20_001, &[]).await.unwrap();
        assert_eq!(ports.claim(&key("a"), 20_000..=20_001, &[]).await.unwrap(), first);
        let second = ports.claim(&key("b"), 20_000..=20_001, &[]).await.unwrap();
        assert_ne!(first, second);
        let full = ports.claim(&key("c"), 20_000..=20_001, &[]).await.unwrap_err();
        assert_eq!(full.kind, FailureKind::Exhausted);
        ports.release(&key("a")).await.unwrap();
        assert_eq!(ports.claim(&key("c"), 20_000..=20_001, &[]).await.unwrap(), first);
    }

    #[tokio::test]
    async fn what_is_written_down_is_taken_and_what_is_unusable_is_replaced() {
        let state = tempfile::tempdir().unwrap();
        let home = state.path().join("instances/default/a");
        std::fs::create_dir_all(&home).unwrap();
        let record = Record {
            key: key("a"),
            postgres_version: "15.18".parse().unwrap(),
            bin_dir: "/".into(),
            port: 20_000,
            provisioned: false,
            instance_id: None,
            spec: toygres_models::InstanceSpec::new(toygres_models::PlatformName::Local, "15".parse().unwrap()),
            restart: None,
        };
        record.write(&home).unwrap();
        let ports = DirectoryPorts::of(state.path());
        assert_eq!(ports.claim(&key("b"), 20_000..=20_001, &[]).await.unwrap(), 20_001);
        assert_eq!(ports.claim(&key("a"), 20_000..=20_001, &[]).await.unwrap(), 20_000);
        assert_eq!(ports.claim(&key("a"), 20_000..=20_002, &[20_000]).await.unwrap(), 20_002);
    }
}

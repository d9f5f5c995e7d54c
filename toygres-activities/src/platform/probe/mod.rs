//! Probes: whether an instance's server takes a write, and what it says of itself, in one statement over a connection that is
//! kept; and what that says about its health.

mod judgement;
mod kept;
mod sample;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use toygres_models::{Failure, FailureKind, Health, HealthReasonKind, HealthStatus, InstanceKey};

pub use kept::Probed;
pub(crate) use kept::{Knock, Probes};
pub use sample::{Activity, Archiver, Checkpoints, Database, DatabaseSize, Sample, Slot, Slow, Standby, Wal, WalFiles};

use super::{Observation, Phase, Platform};

/// The file system that has an instance's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// Its size.
    pub size_bytes: u64,
    /// What is in use, by others too where the file system has more than this instance.
    pub used_bytes: u64,
    /// Whether others than the instance use it.
    pub is_shared: bool,
}

impl Volume {
    /// What `df -Pk` says of it.
    #[must_use]
    pub(crate) fn of_df(output: &str) -> Option<Self> {
        let mut columns = output.lines().nth(1)?.split_whitespace().rev().skip(2);
        let mut kilobytes = || columns.next()?.parse::<u64>().ok()?.checked_mul(1024);
        // From the right: capacity and mount point are left out; then available, used.
        let (available, used) = (kilobytes()?, kilobytes()?);
        Some(Self { size_bytes: available.checked_add(used)?, used_bytes: used, is_shared: false })
    }
}

/// What was found out about an instance that answers.
#[derive(Debug, Clone)]
pub struct Probe {
    /// What its server said, and when.
    pub probed: Arc<Probed>,
    /// Its file system, where that is known.
    pub volume: Option<Volume>,
    /// When its server's certificate ends, where that is known.
    pub certificate_ends_at: Option<DateTime<Utc>>,
}

/// How an instance is, and what its server said, if it did.
pub struct Checked {
    /// How it is.
    pub health: Health,
    /// What it said.
    pub probe: Option<Probe>,
    /// Why its platform can't be asked, if that is so.
    pub platform_failure: Option<Failure>,
}

/// Looks at an instance that is to run. A probe of the last `max_age` will do.
pub async fn check(platform: &dyn Platform, key: &InstanceKey, max_age: Duration) -> Checked {
    let failure = match platform.probe(key, max_age).await {
        Ok(probe) => return Checked { health: judgement::of(&probe), probe: Some(probe), platform_failure: None },
        Err(failure) => failure,
    };
    match platform.observe(key).await {
        Ok(seen) => Checked { health: without_answer(&failure, seen), probe: None, platform_failure: None },
        Err(unknown) => {
            let health = Health::of(HealthStatus::Unknown, HealthReasonKind::NotObserved, &unknown.message);
            Checked { health, probe: None, platform_failure: Some(unknown) }
        }
    }
}

/// How an instance is that gives no sample.
fn without_answer(failure: &Failure, seen: Option<Observation>) -> Health {
    let unhealthy = |kind, message: &str| Health::of(HealthStatus::Unhealthy, kind, message);
    let Some(seen) = seen else {
        return unhealthy(HealthReasonKind::NotReady, "nothing of it is there any more");
    };
    if !seen.ready && seen.reason.is_none() {
        return unhealthy(HealthReasonKind::NotReady, &format!("its server isn't ready ({})", seen.phase.as_str()));
    }
    let words = seen.reason.as_ref().filter(|_| !seen.ready).unwrap_or(failure);
    match kind_of(words) {
        // Its users may not notice.
        HealthReasonKind::LockedOut if seen.phase == Phase::Running => {
            Health::of(HealthStatus::Degraded, HealthReasonKind::LockedOut, &words.message)
        }
        // The way to it is at fault.
        HealthReasonKind::NotObserved => Health::of(HealthStatus::Unknown, HealthReasonKind::NotObserved, &words.message),
        kind => unhealthy(kind, &words.message),
    }
}

fn kind_of(failure: &Failure) -> HealthReasonKind {
    match failure.kind {
        FailureKind::TimedOut => HealthReasonKind::NoAnswer,
        // Its role, or the database that it comes to.
        FailureKind::ConnectionFailed | FailureKind::InvalidInput if !failure.retryable => HealthReasonKind::LockedOut,
        FailureKind::ConnectionFailed => HealthReasonKind::ProbeFailed,
        FailureKind::Exhausted => HealthReasonKind::ConnectionsUsedUp,
        FailureKind::Platform if failure.retryable => HealthReasonKind::NotObserved,
        _ => HealthReasonKind::NotReady,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn df_is_read_from_its_end() {
        let df =
            "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda 1000 300 600 34% /var/lib/postgresql/data\n";
        assert_eq!(Volume::of_df(df), Some(Volume { size_bytes: 900 << 10, used_bytes: 300 << 10, is_shared: false }));
        for odd in ["", "x", "a\nb", "a\n1 2 3 4 5", "a\n/dev/sda 1 -2 3 4% /", "a\nx 1 99999999999999999999 3 4% /"] {
            assert_eq!(
                Volume::of_df(odd).map(|volume| volume.used_bytes),
                if odd.contains("1 2 3") { Some(2 << 10) } else { None },
                "{odd}"
            );
        }
    }
}

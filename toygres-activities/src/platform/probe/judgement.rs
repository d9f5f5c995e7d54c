//! What a probe says about an instance's health.

use std::time::Duration;

use chrono::Utc;
use toygres_models::{Health, HealthReason, HealthReasonKind, HealthStatus};

use super::{Probe, Sample, Volume};

/// From here on a disk, or the connections, are nearly used up.
const NEARLY: f64 = 0.8;
/// A server needs room for a segment of WAL, or it ends.
const LEAST_ROOM_BYTES: u64 = 32 << 20;
/// On the machine's own disk, which may be large, and well filled by others.
const LITTLE_ROOM_BYTES: u64 = 10 << 30;
/// A transaction that is open for longer keeps vacuum from its work.
const LONG_TRANSACTION: Duration = Duration::from_secs(60 * 60);
/// PostgreSQL warns from 40 million transactions before the end of the 2.1 billion that there are, and stops at 3 million; its
/// vacuum goes to all lengths from 1.6 billion on (`vacuum_failsafe_age`).
const WRAPAROUND_AGE: i64 = 1_600_000_000;
/// What a slot may keep without being read.
const RETAINED_BYTES: i64 = 1 << 30;
/// Certificates are renewed long before that.
const CERTIFICATE_DAYS: i64 = 14;

/// How an instance is that answered.
pub(super) fn of(probe: &Probe) -> Health {
    let sample = &probe.probed.sample;
    let mut grave = Vec::new();
    let mut slight = Vec::new();
    grave.extend(read_only(sample));
    connections(sample, &mut grave, &mut slight);
    if let Some(volume) = probe.volume {
        disk(volume, &mut grave, &mut slight);
    }
    slight.extend(read_only_databases(sample));
    slight.extend(restart_pending(sample));
    slight.extend(transactions(sample));
    slight.extend(slots(sample));
    slight.extend(archiver(sample));
    slight.extend(collations(sample));
    slight.extend(certificate(probe));
    let status = match (grave.is_empty(), slight.is_empty()) {
        (false, _) => HealthStatus::Unhealthy,
        (true, false) => HealthStatus::Degraded,
        (true, true) => HealthStatus::Healthy,
    };
    grave.extend(slight);
    Health { status, reasons: grave }
}

fn reason(kind: HealthReasonKind, message: impl AsRef<str>) -> HealthReason {
    HealthReason::new(kind, message.as_ref())
}

fn read_only(sample: &Sample) -> Option<HealthReason> {
    (sample.read_only && !sample.in_recovery).then(|| {
        reason(
            HealthReasonKind::ReadOnly,
            "its transactions are read-only, by the setting default_transaction_read_only; ALTER SYSTEM RESET and a reload undo that",
        )
    })
}

fn read_only_databases(sample: &Sample) -> Option<HealthReason> {
    let names = &sample.read_only_databases;
    (!names.is_empty()).then(|| {
        let message = format!(
            "transactions are read-only in {}, by default_transaction_read_only; ALTER DATABASE … RESET undoes that",
            names.join(", ")
        );
        reason(HealthReasonKind::ReadOnly, message)
    })
}

fn connections(sample: &Sample, grave: &mut Vec<HealthReason>, slight: &mut Vec<HealthReason>) {
    let (taken, all) = (sample.activity.total, sample.ordinary_connections());
    if taken >= all {
        let message = format!("all its {all} connections are taken: PostgreSQL says \"too many clients already\" to others");
        grave.push(reason(HealthReasonKind::ConnectionsUsedUp, message));
    } else if taken as f64 >= all as f64 * NEARLY {
        slight.push(reason(HealthReasonKind::ConnectionsNearlyUsedUp, format!("{taken} of its {all} connections are taken")));
    }
}

fn disk(volume: Volume, grave: &mut Vec<HealthReason>, slight: &mut Vec<HealthReason>) {
    let Volume { size_bytes, used_bytes, is_shared } = volume;
    let free = size_bytes.saturating_sub(used_bytes);
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    if free < LEAST_ROOM_BYTES {
        let message = format!("its disk is full: {} MB of {:.1} GB are left", free / 1_000_000, gigabytes(size_bytes));
        grave.push(reason(HealthReasonKind::DiskFull, message));
    } else if used_bytes as f64 >= size_bytes as f64 * NEARLY && (!is_shared || free < LITTLE_ROOM_BYTES) {
        let percent = used_bytes as f64 / size_bytes as f64 * 100.0;
        let message = format!("its disk is {percent:.0} % full: {:.1} of {:.1} GB", gigabytes(used_bytes), gigabytes(size_bytes));
        slight.push(reason(HealthReasonKind::DiskNearlyFull, message));
    }
}

fn restart_pending(sample: &Sample) -> Option<HealthReason> {
    let names = &sample.slow.restart_pending;
    (!names.is_empty())
        .then(|| reason(HealthReasonKind::RestartPending, format!("it has to be restarted for {}", names.join(", "))))
}

fn transactions(sample: &Sample) -> Vec<HealthReason> {
    let mut reasons = Vec::new();
    let activity = &sample.activity;
    if activity.longest_transaction_seconds >= LONG_TRANSACTION.as_secs_f64() {
        let message = format!(
            "the process {} has had a transaction open for {}: vacuum removes nothing that was deleted since",
            activity.longest_transaction_pid.unwrap_or_default(),
            hours(activity.longest_transaction_seconds)
        );
        reasons.push(reason(HealthReasonKind::LongTransaction, message));
    } else if sample.prepared_transaction_seconds >= LONG_TRANSACTION.as_secs_f64() {
        let message = format!(
            "a transaction has been prepared for {} and neither committed nor rolled back (pg_prepared_xacts)",
            hours(sample.prepared_transaction_seconds)
        );
        reasons.push(reason(HealthReasonKind::LongTransaction, message));
    }
    if sample.transaction_age >= WRAPAROUND_AGE {
        let message = format!(
            "its oldest rows are {} million transactions old, and at 2,144 million it takes no writes: VACUUM FREEZE is due",
            sample.transaction_age / 1_000_000
        );
        reasons.push(reason(HealthReasonKind::WraparoundNear, message));
    }
    reasons
}

fn hours(seconds: f64) -> String {
    let minutes = (seconds / 60.0) as i64;
    format!("{} h {:02} min", minutes / 60, minutes % 60)
}

fn slots(sample: &Sample) -> Option<HealthReason> {
    let holds = |slot: &&super::Slot| {
        !slot.active && slot.retained_bytes.is_some_and(|bytes| bytes >= RETAINED_BYTES)
            || ["unreserved", "lost"].contains(&&*slot.wal_status)
    };
    let slot = sample.slots.iter().filter(holds).max_by_key(|slot| slot.retained_bytes)?;
    let message = match &*slot.wal_status {
        "lost" => {
            format!("WAL that the replication slot {} needs is removed: drop the slot, and set up its reader again", slot.name)
        }
        _ => format!(
            "the replication slot {} keeps {:.1} GB of WAL that nobody reads; pg_drop_replication_slot gives it up",
            slot.name,
            slot.retained_bytes.unwrap_or_default() as f64 / 1e9
        ),
    };
    Some(reason(HealthReasonKind::SlotRetainsWal, message))
}

fn archiver(sample: &Sample) -> Option<HealthReason> {
    let archiver = &sample.archiver;
    let failed_at = archiver.last_failed_at.filter(|_| sample.archive_mode != "off")?;
    let is_mended = archiver.last_archived_at.is_some_and(|archived| archived > failed_at);
    (!is_mended).then(|| reason(HealthReasonKind::ArchivingFails, "its WAL can't be archived, and stays on its disk"))
}

fn collations(sample: &Sample) -> Option<HealthReason> {
    let names = &sample.slow.collation_mismatches;
    if names.is_empty() {
        return None;
    }
    let message = format!(
        "{} was made with another version of its collation than the server has: reindex what sorts text, then ALTER DATABASE … \
         REFRESH COLLATION VERSION",
        names.join(", ")
    );
    Some(reason(HealthReasonKind::CollationMismatch, message))
}

fn certificate(probe: &Probe) -> Option<HealthReason> {
    let ends_at = probe.certificate_ends_at?;
    let days = (ends_at - Utc::now()).num_days();
    (days < CERTIFICATE_DAYS).then(|| {
        let message = format!("its certificate ends on {}, and was not renewed; toygres's log says why", ends_at.format("%F"));
        reason(HealthReasonKind::CertificateExpires, message)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::platform::probe::Probed;

    const SAMPLE: &str = r#"{
        "written": "0/1", "in_recovery": false, "server_version": "17.4", "started_at": 1.5, "read_only": false,
        "read_only_databases": null, "max_connections": 100, "reserved_connections": 3,
        "activity": {"total": 1, "active": 1, "idle": 0, "idle_in_transaction": 0, "waiting_for_lock": 0,
            "longest_transaction_seconds": 0, "longest_transaction_pid": null},
        "prepared_transaction_seconds": 0, "transaction_age": 1000, "databases": null, "slots": null, "standbys": null,
        "archive_mode": "off", "archiver": {"archived_count": 0, "failed_count": 0, "last_archived_at": null, "last_failed_at": null},
        "wal": {"records": 1, "bytes": 1}, "checkpoints": {"timed": 1, "requested": 1, "write_milliseconds": 1,
            "sync_milliseconds": 1, "buffers_written": 1, "buffers_clean": 1, "maxwritten_clean": 1, "buffers_alloc": 1},
        "settings": {"work_mem_bytes": 4194304}, "volume": null
    }"#;

    fn judged(change: impl FnOnce(&mut Sample), volume: Option<Volume>) -> (HealthStatus, Vec<HealthReasonKind>) {
        let mut sample = Sample::parse(SAMPLE).unwrap();
        change(&mut sample);
        let probed = Arc::new(Probed { at: Utc::now(), latency: Duration::from_millis(1), sample });
        let health = of(&Probe { probed, volume, certificate_ends_at: None });
        (health.status, health.kinds().collect())
    }

    #[test]
    fn every_reason_that_holds_is_given_and_the_gravest_first() {
        use HealthReasonKind as Kind;
        assert_eq!(judged(|_| {}, None), (HealthStatus::Healthy, vec![]));
        let volume = |used_bytes| Some(Volume { size_bytes: 10 << 30, used_bytes, is_shared: false });
        assert_eq!(judged(|_| {}, volume(7 << 30)), (HealthStatus::Healthy, vec![]));
        assert_eq!(judged(|_| {}, volume(9 << 30)), (HealthStatus::Degraded, vec![Kind::DiskNearlyFull]));
        assert_eq!(judged(|_| {}, volume(10 << 30)), (HealthStatus::Unhealthy, vec![Kind::DiskFull]));
        let full = |sample: &mut Sample| {
            sample.activity.total = 96;
            sample.slow.restart_pending = vec!["shared_buffers".into()];
            sample.activity.longest_transaction_seconds = 4000.0;
        };
        let kinds = vec![Kind::ConnectionsUsedUp, Kind::RestartPending, Kind::LongTransaction];
        assert_eq!(judged(full, None), (HealthStatus::Unhealthy, kinds));
        let slot = |active, retained_bytes| super::super::Slot {
            name: "s".into(),
            kind: "logical".into(),
            active,
            wal_status: "reserved".into(),
            safe_wal_size: None,
            retained_bytes: Some(retained_bytes),
        };
        assert_eq!(judged(|sample| sample.slots = vec![slot(true, 2 << 30)], None).1, vec![]);
        assert_eq!(judged(|sample| sample.slots = vec![slot(false, 2 << 30)], None).1, vec![Kind::SlotRetainsWal]);
    }

    #[test]
    fn what_postgresql_does_not_answer_is_no_sample() {
        for odd in ["", "{}", "null", "[1]", &SAMPLE.replace("\"max_connections\": 100", "\"max_connections\": \"many\"")] {
            assert!(Sample::parse(odd).is_err(), "{odd}");
        }
        let long = Sample::parse(&SAMPLE.replace("17.4", &"x".repeat(10_000))).unwrap();
        assert_eq!(long.server_version.len(), 63);
        let odd = Sample::parse(&SAMPLE.replace("17.4", "1\\u0000\\u001b7")).unwrap();
        assert_eq!(odd.server_version, "17");
        assert!(Sample::parse(&SAMPLE.replace("17.4", &"x".repeat(300_000))).is_err());
    }
}

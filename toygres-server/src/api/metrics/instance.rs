//! An instance's metrics, by the names of postgres_exporter where it has one, so that dashboards and rules for that one work.

use chrono::Utc;
use toygres_activities::platform::probe::{Checked, Probe, Sample};
use toygres_models::HealthStatus;
use toygres_models::store::Instance;

use super::exposition::Page;

/// Adds what a look at an instance found. `common` are labels of all its samples.
pub(super) fn add(page: &mut Page, common: &[(&str, &str)], instance: &Instance, checked: Option<&Checked>) {
    let probe = checked.and_then(|checked| checked.probe.as_ref());
    let status = checked.map(|checked| checked.health.status).or(instance.status.health_status);
    let mut of = Of { page, common };
    of.gauge("pg_up", "Whether the server answered", &[], f64::from(u8::from(probe.is_some())));
    for known in HealthStatus::ALL {
        let is = f64::from(u8::from(status == Some(*known)));
        of.gauge("toygres_instance_health", "How the instance is", &[("status", known.as_str())], is);
    }
    for reason in checked.iter().flat_map(|checked| &checked.health.reasons) {
        of.gauge("toygres_instance_health_reason", "Why it isn't healthy", &[("reason", reason.kind.as_str())], 1.0);
    }
    if let Some(probe) = probe {
        of.add_probe(probe);
    }
}

struct Of<'a> {
    page: &'a mut Page,
    common: &'a [(&'a str, &'a str)],
}

fn float(number: i64) -> f64 {
    number as f64
}

impl Of<'_> {
    fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        self.page.gauge(name, help, &[self.common, labels].concat(), value);
    }

    fn counter(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        self.page.counter(name, help, &[self.common, labels].concat(), value);
    }

    fn add_probe(&mut self, probe: &Probe) {
        let sample = &probe.probed.sample;
        let latency = probe.probed.latency.as_secs_f64();
        self.gauge("toygres_probe_duration_seconds", "How long the probe took, with a write to disk", &[], latency);
        if let Some(volume) = probe.volume {
            self.gauge("toygres_volume_size_bytes", "Size of its file system", &[], volume.size_bytes as f64);
            self.gauge("toygres_volume_used_bytes", "What of it is in use", &[], volume.used_bytes as f64);
        }
        if let Some(ends_at) = probe.certificate_ends_at {
            let left = (ends_at - Utc::now()).as_seconds_f64();
            self.gauge("toygres_certificate_expiry_seconds", "Seconds until its certificate ends", &[], left);
        }
        self.add_server(sample);
        self.add_databases(sample);
        self.add_wal(sample);
        self.add_slow(sample);
    }

    fn add_server(&mut self, sample: &Sample) {
        let short = sample.server_version.split(' ').next().unwrap_or_default();
        let version = [("version", sample.server_version.as_str()), ("short_version", short)];
        self.gauge("pg_static", "Version of the server", &version, 1.0);
        self.gauge("pg_postmaster_start_time_seconds", "When the server started", &[], sample.started_at);
        self.gauge("pg_replication_is_replica", "Whether it is a standby", &[], f64::from(u8::from(sample.in_recovery)));
        let activity = &sample.activity;
        let rest = activity.total - activity.active - activity.idle - activity.idle_in_transaction;
        for (state, count) in [
            ("active", activity.active),
            ("idle", activity.idle),
            ("idle in transaction", activity.idle_in_transaction),
            ("other", rest),
        ] {
            self.gauge("pg_stat_activity_count", "Sessions of clients by state", &[("state", state)], float(count));
        }
        let longest = activity.longest_transaction_seconds;
        self.gauge("pg_stat_activity_max_tx_duration", "How long the oldest transaction has been open, in seconds", &[], longest);
        let waiting = float(activity.waiting_for_lock);
        self.gauge("toygres_sessions_waiting_for_lock", "Sessions that wait for a lock", &[], waiting);
        for (name, help, key) in SETTINGS {
            if let Some(value) = sample.settings.get(*key) {
                self.gauge(name, help, &[], *value);
            }
        }
        for standby in &sample.standbys {
            let labels = [("application_name", standby.application_name.as_str()), ("client_addr", &standby.client_addr)];
            if let Some(bytes) = standby.lag_bytes {
                self.gauge(
                    "pg_stat_replication_pg_wal_lsn_diff",
                    "WAL that a standby hasn't applied, in bytes",
                    &labels,
                    float(bytes),
                );
            }
            if let Some(seconds) = standby.lag_seconds {
                self.gauge("pg_replication_lag_seconds", "How far a standby is behind", &labels, seconds);
            }
        }
    }

    fn add_databases(&mut self, sample: &Sample) {
        for database in &sample.databases {
            let label = [("datname", database.name.as_str())];
            self.gauge("pg_stat_database_numbackends", "Sessions in the database", &label, float(database.numbackends));
            let age = float(database.transaction_age);
            self.gauge("pg_database_transaction_age", "Transactions since its oldest row that isn't frozen", &label, age);
            for (name, help, value) in [
                ("pg_stat_database_xact_commit", "Transactions that were committed", database.xact_commit),
                ("pg_stat_database_xact_rollback", "Transactions that were rolled back", database.xact_rollback),
                ("pg_stat_database_blks_read", "Blocks that were read from disk", database.blks_read),
                ("pg_stat_database_blks_hit", "Blocks that were found in memory", database.blks_hit),
                ("pg_stat_database_tup_returned", "Rows that were scanned", database.tup_returned),
                ("pg_stat_database_tup_fetched", "Rows that were fetched by index", database.tup_fetched),
                ("pg_stat_database_tup_inserted", "Rows that were inserted", database.tup_inserted),
                ("pg_stat_database_tup_updated", "Rows that were updated", database.tup_updated),
                ("pg_stat_database_tup_deleted", "Rows that were deleted", database.tup_deleted),
                ("pg_stat_database_conflicts", "Queries that recovery cancelled", database.conflicts),
                ("pg_stat_database_temp_files", "Temporary files", database.temp_files),
                ("pg_stat_database_temp_bytes", "Bytes of temporary files", database.temp_bytes),
                ("pg_stat_database_deadlocks", "Deadlocks", database.deadlocks),
            ] {
                self.counter(name, help, &label, float(value));
            }
        }
    }

    fn add_wal(&mut self, sample: &Sample) {
        let checkpoints = &sample.checkpoints;
        let major: u32 = sample.server_version.split(['.', ' ']).next().and_then(|major| major.parse().ok()).unwrap_or_default();
        let seconds = |milliseconds: f64| milliseconds / 1000.0;
        // From 17 on PostgreSQL tells of the checkpointer by itself, and postgres_exporter follows.
        let named = if major >= 17 { CHECKPOINTER } else { BGWRITER };
        let values = [
            float(checkpoints.timed),
            float(checkpoints.requested),
            seconds(checkpoints.write_milliseconds),
            seconds(checkpoints.sync_milliseconds),
            float(checkpoints.buffers_written),
        ];
        for ((name, help), value) in named.iter().zip(values) {
            self.counter(name, help, &[], value);
        }
        for (name, help, value) in [
            ("pg_stat_bgwriter_buffers_clean_total", "Buffers that the background writer wrote", checkpoints.buffers_clean),
            ("pg_stat_bgwriter_maxwritten_clean_total", "Rounds that it ended early", checkpoints.maxwritten_clean),
            ("pg_stat_bgwriter_buffers_alloc_total", "Buffers that were allocated", checkpoints.buffers_alloc),
            ("pg_stat_wal_records_total", "Records of WAL that were written", sample.wal.records),
            ("pg_stat_archiver_archived_count", "Files of WAL that were archived", sample.archiver.archived_count),
            ("pg_stat_archiver_failed_count", "Tries to archive that failed", sample.archiver.failed_count),
        ] {
            self.counter(name, help, &[], float(value));
        }
        self.counter("pg_stat_wal_bytes_total", "Bytes of WAL that were written", &[], sample.wal.bytes);
        for slot in &sample.slots {
            let label = [("slot_name", slot.name.as_str()), ("slot_type", &slot.kind)];
            let is_active = f64::from(u8::from(slot.active));
            self.gauge("pg_replication_slot_slot_is_active", "Whether somebody reads the slot", &label, is_active);
            if let Some(bytes) = slot.safe_wal_size {
                self.gauge("pg_replication_slot_safe_wal_size_bytes", "WAL until the slot is lost", &label, float(bytes));
            }
            if let Some(bytes) = slot.retained_bytes {
                self.gauge("pg_replication_slots_pg_wal_lsn_diff", "WAL that the slot keeps, in bytes", &label, float(bytes));
            }
        }
    }

    fn add_slow(&mut self, sample: &Sample) {
        let slow = &sample.slow;
        let pending = slow.restart_pending.len() as f64;
        self.gauge("toygres_instance_restart_pending", "Settings that wait for a restart", &[], pending);
        let mismatches = slow.collation_mismatches.len() as f64;
        self.gauge("toygres_collation_mismatches", "Databases with another collation version", &[], mismatches);
        for mode in LOCK_MODES {
            let count = slow.locks.get(*mode).copied().unwrap_or_default();
            self.gauge("pg_locks_count", "Locks by their mode", &[("mode", mode)], count);
        }
        for database in &slow.database_sizes {
            self.gauge("pg_database_size_bytes", "Size of the database", &[("datname", &database.name)], database.bytes);
        }
        if let Some(files) = &sample.slow.wal_files {
            self.gauge("pg_wal_segments", "Files of WAL", &[], float(files.count));
            self.gauge("pg_wal_size_bytes", "Their size", &[], files.bytes);
        }
    }
}

/// <https://www.postgresql.org/docs/current/explicit-locking.html>
const LOCK_MODES: &[&str] = &[
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
    "SIReadLock",
];
const CHECKPOINTER: &[(&str, &str)] = &[
    ("pg_stat_checkpointer_num_timed_total", "Checkpoints for their time"),
    ("pg_stat_checkpointer_num_requested_total", "Checkpoints that were asked for"),
    ("pg_stat_checkpointer_write_time_total", "Seconds that they wrote"),
    ("pg_stat_checkpointer_sync_time_total", "Seconds that they waited for the disk"),
    ("pg_stat_checkpointer_buffers_written_total", "Buffers that they wrote"),
];
const BGWRITER: &[(&str, &str)] = &[
    ("pg_stat_bgwriter_checkpoints_timed_total", "Checkpoints for their time"),
    ("pg_stat_bgwriter_checkpoints_req_total", "Checkpoints that were asked for"),
    ("pg_stat_bgwriter_checkpoint_write_time_total", "Seconds that they wrote"),
    ("pg_stat_bgwriter_checkpoint_sync_time_total", "Seconds that they waited for the disk"),
    ("pg_stat_bgwriter_buffers_checkpoint_total", "Buffers that they wrote"),
];
const SETTINGS: &[(&str, &str, &str)] = &[
    ("pg_settings_max_connections", "Setting max_connections", "max_connections"),
    ("pg_settings_max_worker_processes", "Setting max_worker_processes", "max_worker_processes"),
    ("pg_settings_autovacuum_max_workers", "Setting autovacuum_max_workers", "autovacuum_max_workers"),
    ("pg_settings_autovacuum_freeze_max_age", "Setting autovacuum_freeze_max_age", "autovacuum_freeze_max_age"),
    ("pg_settings_shared_buffers_bytes", "Setting shared_buffers", "shared_buffers_bytes"),
    ("pg_settings_effective_cache_size_bytes", "Setting effective_cache_size", "effective_cache_size_bytes"),
    ("pg_settings_maintenance_work_mem_bytes", "Setting maintenance_work_mem", "maintenance_work_mem_bytes"),
    ("pg_settings_work_mem_bytes", "Setting work_mem", "work_mem_bytes"),
    ("pg_settings_max_wal_size_bytes", "Setting max_wal_size", "max_wal_size_bytes"),
];

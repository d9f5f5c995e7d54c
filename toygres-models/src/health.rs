//! How an instance is, and why.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::state::text_enum;

text_enum!(
    /// How an instance is that is to run.
    HealthStatus, "health_status" {
        /// It takes writes, and nothing is amiss.
        Healthy = "healthy",
        /// It takes writes, and something has to be seen to.
        Degraded = "degraded",
        /// Its clients can't work.
        Unhealthy = "unhealthy",
        /// It can't be looked at now.
        Unknown = "unknown",
    }
);

text_enum!(
    /// Why an instance isn't healthy; stable words that programs may match on.
    HealthReasonKind, "kind" {
        /// Its server isn't ready, by what its platform sees.
        NotReady = "not_ready",
        /// Its server is there, and doesn't answer.
        NoAnswer = "no_answer",
        /// Its server answers, and refuses or breaks off what toygres asks.
        ProbeFailed = "probe_failed",
        /// A superuser of the instance took toygres's log-in away.
        LockedOut = "locked_out",
        /// All connections are taken that ordinary roles may have.
        ConnectionsUsedUp = "connections_used_up",
        /// Most of them are.
        ConnectionsNearlyUsedUp = "connections_nearly_used_up",
        /// The file system of its data has no room left.
        DiskFull = "disk_full",
        /// It has little.
        DiskNearlyFull = "disk_nearly_full",
        /// Transactions are read-only unless they say otherwise.
        ReadOnly = "read_only",
        /// A setting was changed that takes a restart.
        RestartPending = "restart_pending",
        /// A transaction has been open for long: vacuum can't remove what was deleted since.
        LongTransaction = "long_transaction",
        /// Transaction ids are running out, as vacuum doesn't get on.
        WraparoundNear = "wraparound_near",
        /// A replication slot keeps WAL that nobody fetches.
        SlotRetainsWal = "slot_retains_wal",
        /// Databases were made with another version of their collation than the server has.
        CollationMismatch = "collation_mismatch",
        /// The server's certificate ends soon.
        CertificateExpires = "certificate_expires",
        /// The owner can't log in with the password that toygres keeps for it.
        PasswordDiffers = "password_differs",
        /// WAL can't be archived.
        ArchivingFails = "archiving_fails",
        /// Its health changes again and again.
        Flapping = "flapping",
        /// Its operation failed, and its server came up afterwards.
        CameUpLate = "came_up_late",
        /// It can't be looked at: its platform doesn't answer, or no server that serves it runs.
        NotObserved = "not_observed",
    }
);

/// One reason why an instance isn't healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthReason {
    /// The kind.
    pub kind: HealthReasonKind,
    /// What was seen, and what to do, for a person.
    pub message: String,
}

impl HealthReason {
    /// Of words of several lines the first is kept, and nothing that a text can't have in the metadata store.
    #[must_use]
    pub fn new(kind: HealthReasonKind, words: &str) -> Self {
        let first = words.lines().next().unwrap_or_default();
        Self { kind, message: first.chars().filter(|character| !character.is_control()).collect() }
    }
}

/// How an instance is, with every reason that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// How it is.
    pub status: HealthStatus,
    /// Why it isn't healthy, the gravest first.
    pub reasons: Vec<HealthReason>,
}

impl Health {
    /// Nothing is amiss.
    #[must_use]
    pub fn healthy() -> Self {
        Self { status: HealthStatus::Healthy, reasons: Vec::new() }
    }

    /// For one reason. Of a message of several lines the first is kept.
    #[must_use]
    pub fn of(status: HealthStatus, kind: HealthReasonKind, message: &str) -> Self {
        Self { status, reasons: vec![HealthReason::new(kind, message)] }
    }

    /// With one more reason, because of which something has to be seen to.
    pub fn degrade(&mut self, kind: HealthReasonKind, message: &str) {
        if self.status == HealthStatus::Healthy {
            self.status = HealthStatus::Degraded;
        }
        self.reasons.push(HealthReason::new(kind, message));
    }

    /// Whether its platform sees that its server isn't ready.
    #[must_use]
    pub fn is_not_ready(&self) -> bool {
        self.status == HealthStatus::Unhealthy && self.kinds().any(|kind| kind == HealthReasonKind::NotReady)
    }

    /// The kinds of its reasons.
    pub fn kinds(&self) -> impl Iterator<Item = HealthReasonKind> {
        self.reasons.iter().map(|reason| reason.kind)
    }

    /// All reasons in one sentence each.
    #[must_use]
    pub fn words(&self) -> String {
        self.reasons.iter().map(|reason| reason.message.as_str()).collect::<Vec<_>>().join("; ")
    }
}

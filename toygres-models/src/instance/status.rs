//! What was seen of an instance.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Failure, Health, HealthReason, HealthStatus};

/// What was seen of an instance. Written by operations and by those who watch the platform, never by a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceStatus {
    /// Its servers.
    #[serde(default)]
    pub members: Vec<MemberStatus>,
    /// How it is reached by address, without the password.
    #[serde(default)]
    pub ip_connection_string: Option<String>,
    /// How it is reached by public name, without the password.
    #[serde(default)]
    pub dns_connection_string: Option<String>,
    /// How it is; none while it isn't to run.
    #[serde(default)]
    pub health_status: Option<HealthStatus>,
    /// Every reason why it isn't healthy, the gravest first.
    #[serde(default)]
    pub health_reasons: Vec<HealthReason>,
    /// Since when its health is what it is.
    #[serde(default)]
    pub health_since: Option<DateTime<Utc>>,
    /// The workflow that watches its health.
    #[serde(default)]
    pub health_check_orchestration_id: Option<String>,
    /// Why its state is `failed`.
    #[serde(default)]
    pub failure: Option<StepFailure>,
}

impl InstanceStatus {
    /// Its health, where it has one.
    #[must_use]
    pub fn health(&self) -> Option<Health> {
        self.health_status.map(|status| Health { status, reasons: self.health_reasons.clone() })
    }

    /// Notes its health, `None` while it isn't to run.
    pub fn set_health(&mut self, health: Option<Health>) {
        let status = health.as_ref().map(|health| health.status);
        if self.health_status != status {
            self.health_since = status.map(|_| Utc::now());
        }
        self.health_status = status;
        self.health_reasons = health.map(|health| health.reasons).unwrap_or_default();
    }
}

/// One server of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberStatus {
    /// Its number; 0 is the first.
    pub member: u32,
    /// `primary`; there are no standbys yet.
    pub role: String,
    /// `Pending`, `Running`, `Failed` or `Stopped`.
    pub phase: String,
    /// The full version of PostgreSQL that it runs, where that is known.
    pub postgres_version: Option<String>,
    /// What it runs: an image, with its digest where it has one; on the local platform the folder of the programs.
    pub image: Option<String>,
    /// Settings of PostgreSQL that toygres made from what its server may use, by their names.
    #[serde(default)]
    pub derived: BTreeMap<String, String>,
}

impl MemberStatus {
    /// The first member, of which nothing else is known yet.
    #[must_use]
    pub fn first() -> Self {
        Self {
            member: 0,
            role: "primary".into(),
            phase: "Pending".into(),
            postgres_version: None,
            image: None,
            derived: BTreeMap::new(),
        }
    }
}

/// A step that failed, and its failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepFailure {
    /// The step's name.
    pub step: String,
    /// What went wrong.
    #[serde(flatten)]
    pub failure: Failure,
}

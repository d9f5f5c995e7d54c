//! What goes over the wire besides the store's records: requests, connections, pages, problems.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use toygres_models::instance::Effect;
use toygres_models::store::{HealthChange, Instance, Token};
use toygres_models::{ClientSession, Drift, HealthReason, HealthStatus, InstanceSpec, InstanceState, PlatformName, Role};
use utoipa::ToSchema;

pub use crate::manifest::{InstanceManifest, ManifestError};

/// What a problem's `type` begins with; a stable word follows.
pub const PROBLEM_TYPE: &str = "urn:toygres:problem:";

/// Header with the context that the server's kubeconfig has to be used with: a safeguard for a client that
/// means a particular cluster. A server that was started with another one refuses the request.
pub const KUBE_CONTEXT: &str = "x-toygres-kube-context";

/// The content type of a problem.
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// Header that names a request: sent again with the same key, it is carried out once.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Header with the `id` of the last event that was received: a stream goes on after it.
pub const LAST_EVENT_ID: &str = "last-event-id";
/// The event that says that a log has ended. A stream that ends without it was cut off.
pub const LOG_END: &str = "end";
/// The event that says that a log goes on, and has nothing new.
pub const LOG_KEEP_ALIVE: &str = "keep-alive";

/// A whole number, in any of the spellings that JSON has for it: `10`, `10.0` and `1e1` are the same.
pub(crate) fn whole<'de, T: TryFrom<i64>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    struct Whole;

    impl<'de> Visitor<'de> for Whole {
        type Value = Option<i64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }

        fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        // Asked for as a number, so that whatever reads the document tells where it isn't one.
        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_i64(self)
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
            Ok(Some(number))
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
            i64::try_from(number).map(Some).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
            /// Up to here a floating-point number stands for one whole number only.
            const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
            if number.fract() == 0.0 && number.abs() < MAX_EXACT {
                return Ok(Some(number as i64));
            }
            Err(E::invalid_value(de::Unexpected::Float(number), &self))
        }
    }

    let Some(number) = deserializer.deserialize_option(Whole)? else { return Ok(None) };
    T::try_from(number).map(Some).map_err(|_| de::Error::invalid_value(de::Unexpected::Signed(number), &Whole))
}

/// Answer of `GET /v1/instances/{name}/health`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceHealth {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it is in its life; only one that runs has a health.
    pub state: InstanceState,
    /// How it is.
    pub health_status: Option<HealthStatus>,
    /// Every reason why it isn't healthy, the gravest first.
    pub health_reasons: Vec<HealthReason>,
    /// Since when.
    pub health_since: Option<DateTime<Utc>>,
    /// The workflow that looks at it.
    pub health_check_orchestration_id: Option<String>,
    /// How long its server took to answer, with a write to its disk.
    pub latency_milliseconds: Option<f64>,
    /// When it answered.
    pub answered_at: Option<DateTime<Utc>>,
    /// The latest changes, the newest first.
    pub changes: Vec<HealthChange>,
}

impl From<&Instance> for InstanceHealth {
    /// As the record has it: without what only a look tells.
    fn from(instance: &Instance) -> Self {
        let status = instance.status.0.clone();
        Self {
            namespace: instance.namespace.clone(),
            name: instance.name.clone(),
            state: instance.state,
            health_status: status.health_status,
            health_reasons: status.health_reasons,
            health_since: status.health_since,
            health_check_orchestration_id: status.health_check_orchestration_id,
            latency_milliseconds: None,
            answered_at: None,
            changes: Vec::new(),
        }
    }
}

/// The load of an instance. Counters are PostgreSQL's, since its statistics were last reset; what isn't known is null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceUsage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How it is.
    pub health_status: Option<HealthStatus>,
    /// When its server said so; null if it doesn't answer.
    pub at: Option<DateTime<Utc>>,
    /// Clients' sessions.
    pub connections: Option<i64>,
    /// How many there may be of ordinary roles.
    pub max_connections: Option<i64>,
    /// Sessions that run a statement.
    pub active: Option<i64>,
    /// Sessions that wait for a lock.
    pub waiting_for_lock: Option<i64>,
    /// Transactions that ended, by a commit or not.
    pub transactions: Option<i64>,
    /// Blocks that were found in PostgreSQL's own cache.
    pub blocks_hit: Option<i64>,
    /// Blocks that were not.
    pub blocks_read: Option<i64>,
    /// How long the oldest transaction has been open.
    pub longest_transaction_seconds: Option<f64>,
    /// The size of its databases.
    pub databases_bytes: Option<i64>,
    /// What is in use of its file system, by others too where that isn't its own.
    pub volume_used_bytes: Option<u64>,
    /// The size of its file system.
    pub volume_size_bytes: Option<u64>,
    /// How far the slowest standby is behind.
    pub replication_lag_seconds: Option<f64>,
}

/// Answer of `GET /v1/usage`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The instances that are to run, in order of namespace and name.
    pub items: Vec<InstanceUsage>,
}

/// Answer of `GET /v1/instances/{name}/activity`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceActivity {
    /// What it has to do, as of now.
    pub usage: InstanceUsage,
    /// Its clients' sessions, those with the oldest transactions first, at most 200; null where they can't be asked for.
    pub sessions: Option<Vec<ClientSession>>,
    /// Why they can't.
    pub problem: Option<String>,
}

/// Answer of `GET /v1/instances/{name}/drift`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceDrift {
    /// What isn't as the spec has it.
    pub items: Vec<Drift>,
    /// What could not be compared now, and why.
    pub not_compared: Option<String>,
}

/// Answer of `GET /v1/instances/{name}/connection`. Holds the password.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User name.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// Database name.
    pub database: String,
    /// Until when the password lets in, where it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<DateTime<Utc>>,
    /// `verify-full`, or `require` where the CA's certificate isn't on this machine.
    pub sslmode: String,
    /// Path of the CA's certificate on the server's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificate_path: Option<String>,
    /// The CA's certificate, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificate: Option<String>,
    /// Where it runs.
    pub platform: PlatformName,
    /// Which cluster, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Whether the host is known inside the platform's own network only: from elsewhere, the way is
    /// a port-forward.
    pub internal: bool,
    /// All of the above in one URI, percent-encoded.
    pub uri: String,
}

/// An instance that is on a platform and not on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdoptableInstance {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The id that it had on record, where it is known.
    pub instance_id: Option<uuid::Uuid>,
    /// The spec that it carries beside its data.
    pub spec: InstanceSpec,
}

/// What a `PUT /v1/instances/{name}` would do: the answer to one with `dry_run=true`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// What would be done.
    pub action: PlanAction,
    /// What would be different, field by field; of a create, all that the document names.
    pub changes: Vec<FieldChange>,
    /// What can't be changed yet. If there is any, nothing would be done.
    pub refused: Vec<FieldChange>,
    /// Why nothing can be done with the instance at all, as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The generation of the instance that was compared; none if there is no instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// What clients of the instance notice; none if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
    /// About how long it takes, going by earlier ones like it; none without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_seconds: Option<f64>,
}

/// What a plan comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlanAction {
    /// There is no such instance: it is made.
    Create,
    /// It is changed; without changes, its platform is brought to its spec.
    Update,
    /// It is as it is asked for.
    None,
    /// It can't be made what is asked for.
    Refuse,
}

/// A field in which an instance isn't what is asked for. A password is `(hidden)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldChange {
    /// The field.
    pub field: String,
    /// What it is; null if there is none.
    pub from: Value,
    /// What is asked for.
    pub to: Value,
    /// What the change does.
    pub effect: Effect,
    /// Whether it can be reverted: a cancel or a failure restores what was before.
    pub can_revert: bool,
}

/// A token as it is asked for: the body of `POST /v1/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenManifest {
    /// Whose it is: 1 to 50 of `a-z0-9-`, a letter first. Events name it as the actor.
    pub name: String,
    /// What it lets its holder do.
    #[schema(value_type = Role)]
    pub role: String,
    /// Where; in every namespace if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 100)]
    pub namespaces: Option<Vec<String>>,
    /// How long it lasts, at most ten years; until it is revoked if left out.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub ttl_seconds: Option<i64>,
}

/// Answer of `POST /v1/tokens`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct MintedToken {
    /// The token's record.
    #[serde(flatten)]
    pub token: Token,
    /// What its holder sends as `Authorization: Bearer SECRET`. It is shown once.
    pub secret: String,
}

/// Answer of `GET /v1/whoami`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhoAmI {
    /// The token's name; `root` for the server's own.
    pub name: String,
    /// What it lets its holder do.
    pub role: Role,
    /// Where; in every namespace if there are none.
    pub namespaces: Option<Vec<String>>,
    /// When it ends by itself; never if there is no time.
    pub expires_at: Option<DateTime<Utc>>,
}

/// How much a namespace may have: the body of `PUT /v1/namespaces/{name}`. What is left out has no limit.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaManifest {
    /// How many instances.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 0)]
    pub max_instances: Option<i32>,
    /// How much storage, in GB.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 0)]
    pub max_storage_gb: Option<i64>,
}

/// A page of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Give it as `cursor` to get the next page; none on the last.
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// A page of at most `limit` of `items`, of which one more than that was asked for, to know whether
    /// there is a next page. `cursor` tells where that goes on.
    pub fn cut(mut items: Vec<T>, limit: i64, cursor: impl FnOnce(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(cursor);
        Self { items, next_cursor }
    }
}

/// Answer of `/healthz` and `/readyz`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, or what is wrong.
    pub status: String,
    /// The server's version.
    pub version: String,
}

/// What a server tells of itself to programs on its machine, by its Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalServer {
    /// Where browsers and programs reach it, by TCP.
    pub url: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
}

/// An error, as RFC 9457 has it: `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A stable URN: `urn:toygres:problem:` and a word such as `invalid`, `not_found` or `conflict`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind, for a person.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong, what is unchanged and what to do.
    pub detail: String,
    /// The field that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl Problem {
    /// The stable word of its type, such as `not_found`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.kind.strip_prefix(PROBLEM_TYPE).unwrap_or(&self.kind)
    }
}

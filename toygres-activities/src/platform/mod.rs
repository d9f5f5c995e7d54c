//! Where instances run: one trait, an implementation a platform.
//!
//! [`local`] runs them as server processes on this machine, [`kubernetes`] as pods. The conformance suite in
//! `tests/it/support/checks.rs` states the promises below as tests, run against every implementation.

pub mod certificates;
mod default_folder;
mod diagnosis;
pub mod kubernetes;
pub mod local;
pub(crate) mod logs;
pub mod probe;
pub(crate) mod session;
pub(crate) mod sizing;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use probe::Probe;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use toygres_models::{
    Drift, Failure, InstanceKey, InstanceSpec, Invalid, MemberStatus, PlatformName, PostgresVersion, ServerAddress,
};
use uuid::Uuid;

pub use default_folder::DefaultFolder;
pub use diagnosis::Diagnosis;
pub use logs::{LogLine, LogRequest, LogStream, MAX_LINE_BYTES};
pub use session::OwnSession;
pub use toygres_models::OfferedVersion;

/// An instance to be deployed.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// Namespace and name.
    pub key: InstanceKey,
    /// The id of its record in the metadata store, where it has one.
    pub instance_id: Option<Uuid>,
    /// What it is to be. A platform that can't enforce a field says so in its docs.
    pub spec: InstanceSpec,
    /// Password of its owner, set when the instance is made.
    pub password: SecretString,
    /// Whether it was brought up before: its data must be there then, and missing data is not made again.
    pub data_exists: bool,
}

/// The record that an instance carries beside its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRecord {
    /// Namespace and name.
    pub key: InstanceKey,
    /// The id that it had in the metadata store, where it had one.
    pub instance_id: Option<Uuid>,
    /// What it was to be.
    pub spec: InstanceSpec,
}

/// What an instance's server is doing; the words are those of a Kubernetes pod's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not started yet, or being started or recovering.
    Pending,
    /// Its process runs.
    Running,
    /// Its process ended, or it can't be started.
    Failed,
    /// It is stopped, as its spec says.
    Stopped,
}

impl Phase {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Pending, Self::Running, Self::Failed, Self::Stopped];

    /// `Pending`, `Running`, `Failed` or `Stopped`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Failed => "Failed",
            Self::Stopped => "Stopped",
        }
    }
}

/// What was seen of an instance at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// What its server is doing.
    pub phase: Phase,
    /// Whether it answers SQL.
    pub ready: bool,
    /// Why it isn't ready, in the platform's words, where known; of one that is ready, what keeps clients from using it.
    pub reason: Option<Failure>,
    /// The full version of PostgreSQL that it runs, where known.
    pub postgres_version: Option<PostgresVersion>,
    /// What it runs: an image, with its digest where it has one; locally the folder of the programs.
    pub image: Option<String>,
    /// Settings of PostgreSQL that were made from what its server may use, by their names, where known.
    pub derived: BTreeMap<String, String>,
}

impl Observation {
    /// Of a server in that phase, with nothing else known.
    #[must_use]
    pub fn new(phase: Phase, ready: bool, reason: Option<Failure>) -> Self {
        Self { phase, ready, reason, postgres_version: None, image: None, derived: BTreeMap::new() }
    }

    /// The status of the instance's first member.
    #[must_use]
    pub fn member(&self) -> MemberStatus {
        MemberStatus {
            phase: self.phase.as_str().into(),
            postgres_version: self.postgres_version.map(|version| version.to_string()),
            image: self.image.clone(),
            derived: self.derived.clone(),
            ..MemberStatus::first()
        }
    }
}

/// How an instance is reached. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where its server listens.
    pub address: ServerAddress,
    /// The same by public DNS name, where it has one.
    pub dns_address: Option<ServerAddress>,
    /// The load balancer's address, where it has one.
    pub external_ip: Option<String>,
    /// The public DNS name, where it has one.
    pub dns_name: Option<String>,
}

/// A way to an instance, open as long as this value lives.
pub struct Reach {
    /// Host to connect to in place of the endpoint's; the server's certificate is valid for it.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
    /// What keeps it open.
    pub held: Box<dyn std::any::Any + Send + Sync>,
}

/// Something that happened to an instance without anyone asking for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformEvent {
    /// The instance.
    pub key: InstanceKey,
    /// A stable word: `server_exited`, `server_restarted`, `server_start_failed`.
    pub kind: &'static str,
    /// What happened and why, in one sentence or a few lines, with the server's own words.
    pub message: String,
    /// Whether the instance answers SQL after it.
    pub healthy: bool,
}

/// Where instances run.
///
/// Every verb converges: it may be repeated at any time, may overlap its own repeat or another
/// verb, and may be cut off at any point, the whole program's end included; running it again
/// finishes the work. What toygres didn't make is never changed or removed. A [`Failure`] says
/// whether trying again can help and carries the platform's own words. No verb lets a password
/// out: not into argv, environment, logs, files other than the secret store's, or errors.
#[async_trait]
pub trait Platform: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> PlatformName;

    /// Which of several clusters this is, where there can be several and it may be known: the same
    /// from any machine, another for any other cluster.
    async fn cluster_id(&self) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    /// Whether an instance of that name and with that spec can be here at all. Writes nothing
    /// and makes no call.
    ///
    /// # Errors
    /// Names the field that the platform doesn't offer, and why.
    fn check(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<(), Invalid>;

    /// The versions that are available, newest first. What would have to be fetched is listed as far as
    /// the archive can be reached now.
    async fn versions(&self) -> Result<Vec<OfferedVersion>, Failure>;

    /// The version that a create takes: the default one for `None`; otherwise `wanted`, made
    /// full where it is at hand. Writes nothing.
    ///
    /// # Errors
    /// Permanent, and listing the known ones, if there is no such version.
    async fn resolve_version(&self, wanted: Option<PostgresVersion>) -> Result<PostgresVersion, Failure>;

    /// Takes that version's major from now on where none is named, if none was taken before.
    async fn keep_default_version(&self, _version: PostgresVersion) {}

    /// Makes the instance what its spec says: with its password set, and its server started or, of one that is to be
    /// stopped, ended. `true` if anything had to be made, `false` if all of it was there. Missing parts around intact
    /// data are made again; data never is. A caller that drops it gives it up: it ends at
    /// the next point where it can, and a removal that is asked for after that has the last word.
    ///
    /// # Errors
    /// [`Conflict`](toygres_models::FailureKind::Conflict) if an instance of that name with
    /// another version is there.
    async fn ensure(&self, deployment: &Deployment) -> Result<bool, Failure>;

    /// Stops the server cleanly and starts it again, once for each `request_id`. Returns when the new server is being
    /// started. `false` if that request's restart was done before.
    ///
    /// # Errors
    /// [`NotFound`](toygres_models::FailureKind::NotFound) if there is no such instance.
    async fn restart(&self, key: &InstanceKey, request_id: &str) -> Result<bool, Failure>;

    /// Sets the password of the owner, which is made with its database where it isn't there, over toygres's own way in.
    ///
    /// # Errors
    /// [`NotFound`](toygres_models::FailureKind::NotFound) if there is no such instance; retryable if its server doesn't
    /// answer.
    async fn set_password(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure>;

    /// Makes the extensions that the spec names in its database, and removes those of toygres's that it doesn't name.
    ///
    /// # Errors
    /// As [`set_password`](Self::set_password); permanent, and about `extensions`, where the server refuses one.
    async fn set_extensions(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<(), Failure>;

    /// Lets the superuser `postgres` log in with that password until then. A password that it had before ends.
    ///
    /// # Errors
    /// As [`set_password`](Self::set_password); permanent where nothing would keep a superuser in its instance.
    async fn open_superuser(&self, key: &InstanceKey, password: &SecretString, valid_until: DateTime<Utc>)
    -> Result<(), Failure>;

    /// Looks once. `None` if there is no such instance.
    async fn observe(&self, key: &InstanceKey) -> Result<Option<Observation>, Failure>;

    /// What the instance's server says now, or said within `max_age`, over a connection that is kept. It is a write, too: it
    /// returns when that is on disk.
    ///
    /// # Errors
    /// [`NotFound`](toygres_models::FailureKind::NotFound) if there is no such instance,
    /// [`TimedOut`](toygres_models::FailureKind::TimedOut) if its server doesn't answer, and
    /// [`Platform`](toygres_models::FailureKind::Platform) if there is no way to it from here.
    async fn probe(&self, key: &InstanceKey, max_age: Duration) -> Result<Probe, Failure>;

    /// Returns as soon as the instance is ready, waiting can't help (an error with the reason), or
    /// `timeout` is over (an observation that isn't ready).
    async fn wait_ready(&self, key: &InstanceKey, timeout: Duration) -> Result<Observation, Failure>;

    /// How the instance is reached.
    ///
    /// # Errors
    /// [`NotFound`](toygres_models::FailureKind::NotFound) if there is no such instance.
    async fn endpoint(&self, key: &InstanceKey) -> Result<Endpoint, Failure>;

    /// A way from here to one of this platform's endpoints, where `host` can't be reached as it is:
    /// a name that only resolves inside the platform's network. `None` is the ordinary way.
    async fn reach(&self, _host: &str, _port: u16) -> Result<Option<Reach>, Failure> {
        Ok(None)
    }

    /// Stops the instance cleanly and removes everything of it, a half-made one's parts too, and
    /// returns when it is gone. `true` if there was anything.
    async fn remove(&self, key: &InstanceKey) -> Result<bool, Failure>;

    /// The instances of which there is anything, half-made ones included, in order of their keys.
    async fn list(&self) -> Result<Vec<InstanceKey>, Failure>;

    /// What of an instance whose data is intact others changed or removed. `ensure` puts right what needs no person.
    async fn drift(&self, _key: &InstanceKey, _spec: &InstanceSpec) -> Result<Vec<Drift>, Failure> {
        Ok(Vec::new())
    }

    /// The instances of which something may have been changed since they were last compared. Cheaper than to compare all.
    async fn suspects(&self) -> Result<Vec<InstanceKey>, Failure> {
        Ok(Vec::new())
    }

    /// A session of toygres's own in the instance.
    ///
    /// # Errors
    /// As [`set_password`](Self::set_password).
    async fn session(&self, key: &InstanceKey) -> Result<OwnSession, Failure>;

    /// The records of all instances whose data is here, in order of their keys. Half-made ones have none.
    async fn records(&self) -> Result<Vec<InstanceRecord>, Failure>;

    /// The server's log, line by line, oldest first. Memory is bounded, however long the log or one of
    /// its lines is. The stream ends where the log does; when it follows, with the instance.
    ///
    /// Following, and a request with [`after`](LogRequest::after), go on over restarts of the server, over
    /// the log's being cut for its length, and over the replacement of what the server runs in: no line is
    /// left out or comes twice, as long as the platform still has it. A listener that stops ends all
    /// work on it.
    ///
    /// # Errors
    /// [`NotFound`](toygres_models::FailureKind::NotFound) if there is no such instance,
    /// [`InvalidInput`](toygres_models::FailureKind::InvalidInput) if `after` is no position. In the stream,
    /// where it ends: that the log can't be read on.
    async fn logs(&self, key: &InstanceKey, request: LogRequest) -> Result<LogStream, Failure>;

    /// The last lines of the server's log, at most `lines`, oldest first.
    ///
    /// # Errors
    /// As [`logs`](Self::logs).
    async fn log_tail(&self, key: &InstanceKey, lines: usize) -> Result<Vec<String>, Failure> {
        let stream = self.logs(key, LogRequest::tail(lines)).await?;
        futures::StreamExt::take(stream, lines).map_ok(|line| line.text).try_collect().await
    }

    /// Whether what it was opened with has changed since, so that it should be opened anew.
    fn is_outdated(&self) -> bool {
        false
    }

    /// Ends what it does by itself: watching, supervising, preparing. Instances run on.
    fn shutdown(&self);

    /// After [`shutdown`](Self::shutdown), ends the servers that depend on this machine, cleanly. Their specs stay, so the next
    /// toygres starts them again.
    async fn stop_servers(&self) {}

    /// What happens to instances from now on. A receiver that lags loses the oldest.
    fn events(&self) -> broadcast::Receiver<PlatformEvent>;
}

/// Runs work in a task of its own, to its end even if the caller gives up: file work can't be cut off, a request that is
/// on its way can't be called back, and a lock that is released before the end would protect nothing.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T, Failure>> + Send + 'static) -> Result<T, Failure> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::transient(toygres_models::FailureKind::Internal, format!("the work was cut off: {error}"))),
    }
}

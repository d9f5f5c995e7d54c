//! The local platform: PostgreSQL servers as processes on this machine, a directory each.
//!
//! How it differs from what the [`Platform`](super::Platform) trait promises in general:
//!
//! - **Storage size is only a promise.** A directory has no limit of its own; the size is written
//!   down and shown, and the disk's room is shared by all.
//! - Load balancers and DNS names don't exist here: an instance listens on 127.0.0.1, whatever is
//!   asked for.
//! - Servers outlive toygres. While toygres runs, it restarts those that end on their own; when it
//!   starts, it finds those that run and starts those that should.
//! - Where toygres runs as root, each instance's server has a user id of its own. On Linux every server is confined to its
//!   own files, port and processes besides ([`confinement`]). A superuser of an instance can run programs, and they reach no
//!   more than that; but they share the machine's processor, memory and disk with everybody.
//! - Under systemd, stopping toygres's unit stops the servers too, unless it says
//!   `KillMode=process`.
//! - A provisioned instance keeps its port. If another program has taken it, the instance is down
//!   until that program ends.
//!
//! On disk, in the state directory:
//!
//! | path | content |
//! |---|---|
//! | `instances/<namespace>/<name>/` | `instance.json`, `data/`, `log/`, `toygres.conf`, `pg_hba.conf`, `server.crt`, `server.key` |
//! | `control/` | the control database: `data/`, `log/`, `toygres.conf`, `pg_hba.conf`, `password` |
//! | `pool/<version>@<programs>/` | data directories made ahead of need |
//! | `run/` | the control database's socket |
//! | `default-version` | the major of a create that names no version |
//! | `id` | what tells this machine's instances from those of others that share a database |
//! | `ca.crt`, `ca.key` | the CA that signs the instances' certificates |
//! | `client-ca.crt`, `client-ca.key` | the CA that signs those with which toygres logs in to instances |
//! | `api-ca.crt`, `api-ca.key` | the CA that signs the API's certificate |
//!
//! The modules, from the ground up: `files`, `account` and `owners` (whom servers run as), `confinement` (what they reach),
//! `tenant_file` (what a tenant can write), `logs`, `programs` (which PostgreSQL),
//! `server` (one data directory and its server: configuration, processes, and keeping it running), `pool` (initdb ahead of
//! need), `control`, `record` and `ports`, `instance` and `creation`, and on top `host` and `platform`; `diagnose` looks at all
//! of it.

mod account;
mod confinement;
mod control;
mod creation;
mod diagnose;
mod files;
mod host;
mod instance;
mod logs;
mod owners;
mod platform;
mod pool;
mod ports;
pub mod programs;
mod record;
mod server;
mod tenant_file;

use std::ops::RangeInclusive;
use std::path::PathBuf;

use toygres_models::{Failure, FailureKind, PostgresVersion};

use super::DefaultFolder;

pub use account::Account;
pub use confinement::{Confinement, confinement};
pub use control::ControlServer;
pub use diagnose::diagnose;
pub use host::LocalHost;
pub use platform::LocalPlatform;
pub use ports::{DirectoryPorts, PortRegistry, exhausted};
pub use programs::archives::FetchProgress;

/// How the local platform is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalConfig {
    /// Instances and everything else that has to last.
    pub state_dir: PathBuf,
    /// Fetched programs; may be deleted while nothing made of them runs.
    pub cache_dir: PathBuf,
    /// The ports that instances get.
    pub port_range: RangeInclusive<u16>,
    /// How many data directories are kept ready; 0 turns the pool off.
    pub pool_size: usize,
    /// Whom initdb and the control database run as, when toygres runs as root; instances too, where they can't have user ids
    /// of their own.
    pub run_as_user: Option<String>,
    /// The version of a create that names none; the newest at hand at the first such create if there is none.
    pub default_version: Option<PostgresVersion>,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            state_dir: DefaultFolder::State.of_this_process(),
            cache_dir: DefaultFolder::Cache.of_this_process(),
            port_range: Self::DEFAULT_PORT_RANGE,
            pool_size: Self::DEFAULT_POOL_SIZE,
            run_as_user: None,
            default_version: None,
        }
    }
}

impl LocalConfig {
    /// Below the range from which the system takes ports for outgoing connections.
    pub const DEFAULT_PORT_RANGE: RangeInclusive<u16> = 20_000..=29_999;
    /// Enough for a burst of creates; each directory takes 40 MB.
    pub const DEFAULT_POOL_SIZE: usize = 8;

    /// From `TOYGRES_STATE_DIR`, `TOYGRES_CACHE_DIR`, `TOYGRES_PORT_RANGE`, `TOYGRES_POOL_SIZE`, `TOYGRES_DEFAULT_VERSION` and
    /// `TOYGRES_RUN_AS_USER`; the default for each that is unset or empty.
    ///
    /// # Errors
    /// Names the variable that can't be understood.
    pub fn from_environment() -> Result<Self, Failure> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let refuse = |name: &str, value: &str, wanted: &str| {
            Failure::permanent(FailureKind::InvalidInput, format!("{name}={value:?} can't be used; give {wanted}"))
        };
        let mut config = Self::default();
        config.state_dir = path("TOYGRES_STATE_DIR").unwrap_or(config.state_dir);
        config.cache_dir = path("TOYGRES_CACHE_DIR").unwrap_or(config.cache_dir);
        config.run_as_user = set("TOYGRES_RUN_AS_USER");
        if let Some(value) = set("TOYGRES_PORT_RANGE") {
            let range = value.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
            config.port_range = range.ok_or_else(|| refuse("TOYGRES_PORT_RANGE", &value, "a range such as 20000-29999"))?;
        }
        if let Some(value) = set("TOYGRES_POOL_SIZE") {
            config.pool_size = value.parse().map_err(|_| refuse("TOYGRES_POOL_SIZE", &value, "a number such as 2"))?;
        }
        if let Some(value) = set("TOYGRES_DEFAULT_VERSION") {
            let version = value.parse().map_err(|_| refuse("TOYGRES_DEFAULT_VERSION", &value, "a version such as 17"))?;
            config.default_version = Some(version);
        }
        Ok(config)
    }
}

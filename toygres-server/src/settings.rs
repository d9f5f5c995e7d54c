//! The settings of a server, checked. Where they come from is the starter's business.

mod state_dir;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use toygres_activities::platform::kubernetes::KubernetesConfig;
use toygres_activities::platform::local::LocalConfig;
use toygres_models::{PlatformName, PostgresVersion};

pub use state_dir::{StartLine, StateDir, parse_token};

/// Where the server listens unless told otherwise; if that port is taken, on a free one.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7654);

/// What a server is told.
#[derive(Clone)]
pub struct ServerSettings {
    /// Everything that toygres keeps: instances, the control database, token, log. Absolute.
    pub state_dir: PathBuf,
    /// What can be fetched again: PostgreSQL builds. Absolute.
    pub cache_dir: PathBuf,
    /// The database for metadata and workflows; the server runs one of its own if there is none.
    pub database_url: Option<SecretString>,
    /// Where the server listens, if it was asked for: then there is no falling back.
    pub listen: Option<SocketAddr>,
    /// How the server's API is served over TLS, if it is.
    pub tls: Option<TlsSettings>,
    /// Whether the server may speak plain HTTP beyond this machine.
    pub allow_plaintext: bool,
    /// The platforms that the server serves, the default one first.
    pub platforms: Vec<PlatformName>,
    /// The settings of the Kubernetes platform.
    pub kubernetes: KubernetesConfig,
    /// The server's own token; the state directory's if there is none.
    pub token: Option<SecretString>,
    /// The instances' ports.
    pub port_range: RangeInclusive<u16>,
    /// How many prepared data directories are kept ready.
    pub pool_size: usize,
    /// How long events are kept, and what they tell of.
    pub event_retention: Duration,
    /// How long a server may take to become ready before its operation fails.
    pub ready_timeout: Duration,
    /// How often instances are looked at.
    pub health_interval: Duration,
    /// How the server writes its log.
    pub log_format: LogFormat,
    /// Whether admins may log in to instances as superuser.
    pub hands_out_superuser: bool,
    /// The operating system's user that instances run as when toygres runs as root.
    pub run_as_user: Option<String>,
    /// Whether the instances on this machine stop when the server does.
    pub stop_instances: bool,
    /// The version of a create on this machine that names none.
    pub default_version: Option<PostgresVersion>,
}

impl ServerSettings {
    /// The files that the server keeps for those who look for it.
    #[must_use]
    pub fn state(&self) -> StateDir<'_> {
        StateDir::new(&self.state_dir)
    }

    /// The settings of the local platform among them.
    #[must_use]
    pub fn local_config(&self) -> LocalConfig {
        LocalConfig {
            state_dir: self.state_dir.clone(),
            cache_dir: self.cache_dir.clone(),
            port_range: self.port_range.clone(),
            pool_size: self.pool_size,
            run_as_user: self.run_as_user.clone(),
            default_version: self.default_version,
        }
    }
}

impl fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A database URL holds a password; `SecretString` hides it.
        f.debug_struct("ServerSettings")
            .field("state_dir", &self.state_dir)
            .field("cache_dir", &self.cache_dir)
            .field("database_url", &self.database_url)
            .field("listen", &self.listen)
            .field("port_range", &self.port_range)
            .field("pool_size", &self.pool_size)
            .field("run_as_user", &self.run_as_user)
            .finish_non_exhaustive()
    }
}

/// How a log's lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// Each line an object, for programs.
    Json,
}

impl LogFormat {
    /// `text` or `json`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Where the API's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSettings {
    /// toygres's own CA signs it.
    Own {
        /// Names and addresses for it besides those that the server knows by itself.
        names: Vec<String>,
    },
    /// From files, which may be replaced while the server runs.
    Given {
        /// The certificate and behind it its issuers', in PEM. Absolute.
        certificate: PathBuf,
        /// Its private key, in PEM. Absolute.
        key: PathBuf,
    },
}

/// Whether a certificate can be for it: an address, a DNS name, or one with a wildcard before it.
#[must_use]
pub fn is_server_name(name: &str) -> bool {
    let plain = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        inner && !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
    };
    let dns = name.strip_prefix("*.").unwrap_or(name);
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && dns.split('.').all(plain))
}

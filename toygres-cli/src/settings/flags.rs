//! The settings as flags of every command.

use std::collections::BTreeMap;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Table,
    /// The API's records as JSON.
    Json,
    /// The API's records as YAML.
    Yaml,
}

impl FromStr for OutputFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, true).map_err(|_| format!("{text:?} is unknown; known are table, json, yaml"))
    }
}

const EVERYDAY: &str = "Global options";
const KUBERNETES: &str = "Settings of the Kubernetes platform";
const SETTINGS: &str = "Settings (also environment variables, and keys of the config file such as state_dir)";

/// The settings as flags; the fields are the settings' keys. All are text here: [`Settings`](super::Settings)
/// checks them, whichever source they come from.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub struct SettingFlags {
    /// Namespace to work in [default: default] [env: TOYGRES_NAMESPACE]
    #[arg(short, long, global = true, value_name = "NAMESPACE", help_heading = EVERYDAY)]
    pub namespace: Option<String>,

    /// How to print results: table, json or yaml [default: table] [env: TOYGRES_OUTPUT]
    #[arg(short, long, global = true, value_name = "FORMAT", help_heading = EVERYDAY)]
    pub output: Option<String>,

    /// Print nothing but the result [env: TOYGRES_QUIET]
    #[arg(short, long, global = true, help_heading = EVERYDAY)]
    pub quiet: bool,

    /// Config file [default: ~/.config/toygres/config.toml, for root /etc/toygres/config.toml]
    /// [env: TOYGRES_CONFIG]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true, help_heading = SETTINGS)]
    pub config: Option<String>,

    /// Where instances, their data and the server's own files are kept
    /// [default: ~/.local/state/toygres, for root /var/lib/toygres] [env: TOYGRES_STATE_DIR]
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true, help_heading = SETTINGS)]
    pub state_dir: Option<String>,

    /// Where fetched PostgreSQL builds are kept
    /// [default: ~/.cache/toygres, for root /var/cache/toygres] [env: TOYGRES_CACHE_DIR]
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true, help_heading = SETTINGS)]
    pub cache_dir: Option<String>,

    /// Database for metadata and workflows, instead of one that the server runs itself. With a
    /// password in it, better give it by the environment: everyone on this machine can read
    /// arguments [env: TOYGRES_DATABASE_URL]
    #[arg(long, global = true, value_name = "URL", hide_short_help = true, help_heading = SETTINGS)]
    pub database_url: Option<String>,

    /// Where the server listens; without it, a free port is taken if 7654 isn't one
    /// [default: 127.0.0.1:7654] [env: TOYGRES_LISTEN]
    #[arg(long, global = true, value_name = "ADDRESS:PORT", hide_short_help = true, help_heading = SETTINGS)]
    pub listen: Option<String>,

    /// File with the database's URL, so that its password is in no environment
    /// [env: TOYGRES_DATABASE_URL_FILE]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true, help_heading = SETTINGS)]
    pub database_url_file: Option<String>,

    /// Serve plain HTTP beyond this machine, and send tokens over it: only where the network is
    /// trusted, or something in front of the server speaks TLS [env: TOYGRES_ALLOW_PLAINTEXT]
    #[arg(long, global = true, hide_short_help = true, help_heading = SETTINGS)]
    pub allow_plaintext: bool,

    /// Serve the API over TLS, with a certificate of toygres's own CA: for localhost, this host's name
    /// and the address of --listen [env: TOYGRES_TLS]
    #[arg(long, global = true, hide_short_help = true, help_heading = SETTINGS)]
    pub tls: bool,

    /// More names and addresses for that certificate, with commas between them [env: TOYGRES_TLS_NAMES]
    #[arg(long, global = true, value_name = "LIST", hide_short_help = true, help_heading = SETTINGS)]
    pub tls_names: Option<String>,

    /// Serve the API over TLS with this certificate, its issuers' behind it, in PEM. A new one in its
    /// place is loaded by itself [env: TOYGRES_TLS_CERTIFICATE]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true, help_heading = SETTINGS)]
    pub tls_certificate: Option<String>,

    /// Its key, in PEM; nobody else may be able to read it [env: TOYGRES_TLS_KEY]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true, help_heading = SETTINGS)]
    pub tls_key: Option<String>,

    /// Certificate of the CA that the server of --url has its certificate from, in PEM
    /// [default: the system's CAs] [env: TOYGRES_CA_CERTIFICATE]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true, help_heading = SETTINGS)]
    pub ca_certificate: Option<String>,

    /// The platforms that the server serves, the default one first
    /// [default: local,kubernetes] [env: TOYGRES_PLATFORMS]
    #[arg(long, global = true, value_name = "LIST", hide_short_help = true, help_heading = SETTINGS)]
    pub platforms: Option<String>,

    /// The server to talk to, instead of the one on this machine [env: TOYGRES_URL]
    #[arg(long, global = true, value_name = "URL", hide_short_help = true, help_heading = SETTINGS)]
    pub url: Option<String>,

    /// Which server to talk to, of those that you logged in to; local is the one on this machine
    /// [default: that of `toygres context use`] [env: TOYGRES_CONTEXT]
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "url", help_heading = EVERYDAY)]
    pub context: Option<String>,

    /// The server's token. Hidden: everyone on the machine can read arguments, so the help offers
    /// the file and the environment instead.
    #[arg(long, global = true, value_name = "TOKEN", hide = true, help_heading = SETTINGS)]
    pub token: Option<String>,

    /// File with the server's token. TOYGRES_TOKEN holds the token itself
    /// [default: token in the state directory] [env: TOYGRES_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true, help_heading = SETTINGS)]
    pub token_file: Option<String>,

    /// Ports for instances [default: 20000-29999] [env: TOYGRES_PORT_RANGE]
    #[arg(long, global = true, value_name = "FIRST-LAST", hide_short_help = true, help_heading = SETTINGS)]
    pub port_range: Option<String>,

    /// How many data directories to keep prepared, 0 to 32; each has about 40 MB
    /// [default: 8] [env: TOYGRES_POOL_SIZE]
    #[arg(long, global = true, value_name = "NUMBER", hide_short_help = true, help_heading = SETTINGS)]
    pub pool_size: Option<String>,

    /// How long events are kept, and operations and deleted instances on record
    /// [default: 30d] [env: TOYGRES_EVENT_RETENTION]
    #[arg(long, global = true, value_name = "TIME", hide_short_help = true, help_heading = SETTINGS)]
    pub event_retention: Option<String>,

    /// How long a server may take to become ready before its operation fails, 10 to 3600
    /// [default: 300] [env: TOYGRES_READY_TIMEOUT_SECONDS]
    #[arg(long, global = true, value_name = "SECONDS", hide_short_help = true, help_heading = SETTINGS)]
    pub ready_timeout_seconds: Option<String>,

    /// How often instances are looked at, 1 to 3600
    /// [default: 10] [env: TOYGRES_HEALTH_INTERVAL_SECONDS]
    #[arg(long, global = true, value_name = "SECONDS", hide_short_help = true, help_heading = SETTINGS)]
    pub health_interval_seconds: Option<String>,

    /// How the server writes its log: text or json [default: text] [env: TOYGRES_LOG_FORMAT]
    #[arg(long, global = true, value_name = "FORMAT", hide_short_help = true, help_heading = SETTINGS)]
    pub log_format: Option<String>,

    /// Whether admins may log in to instances as superuser: `admins` or `never`. A key of the config file and a variable
    /// alone: as a flag, it is the user's wish to log in so.
    #[arg(skip)]
    pub superuser: Option<String>,

    /// PostgreSQL version of a create on this machine that names none
    /// [default: the newest at hand at the first such create] [env: TOYGRES_DEFAULT_VERSION]
    #[arg(long, global = true, value_name = "VERSION", hide_short_help = true, help_heading = SETTINGS)]
    pub default_version: Option<String>,

    /// When toygres runs as root: the system user of initdb and the control database [env: TOYGRES_RUN_AS_USER]
    #[arg(long, global = true, value_name = "USER", hide_short_help = true, help_heading = SETTINGS)]
    pub run_as_user: Option<String>,

    /// Context of the kubeconfig [default: its current one] [env: TOYGRES_KUBE_CONTEXT]
    #[arg(long, global = true, value_name = "CONTEXT", hide_short_help = true, help_heading = KUBERNETES)]
    pub kube_context: Option<String>,

    /// Namespaces that the server serves, with commas between them
    /// [default: all] [env: TOYGRES_KUBE_NAMESPACES]
    #[arg(long, global = true, value_name = "LIST", hide_short_help = true, help_heading = KUBERNETES)]
    pub kube_namespaces: Option<String>,

    /// For a server in a cluster: the Secret in its own namespace that holds its token and its CA;
    /// made where it is missing [env: TOYGRES_KUBE_SECRET]
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true, help_heading = KUBERNETES)]
    pub kube_secret: Option<String>,

    /// Repository of the PostgreSQL images
    /// [default: docker.io/library/postgres] [env: TOYGRES_IMAGE_REPOSITORY]
    #[arg(long, global = true, value_name = "REPOSITORY", hide_short_help = true, help_heading = KUBERNETES)]
    pub image_repository: Option<String>,

    /// Versions that have an image, each with a tag, a digest or a whole reference if its own name
    /// isn't the tag: 18,17=17.6-bookworm,16=sha256:…
    /// [default: each major] [env: TOYGRES_IMAGES]
    #[arg(long, global = true, value_name = "LIST", hide_short_help = true, help_heading = KUBERNETES)]
    pub images: Option<String>,

    /// User in the image that servers run as: 999 in Debian's, 70 in Alpine's
    /// [default: 999] [env: TOYGRES_IMAGE_USER_ID]
    #[arg(long, global = true, value_name = "UID", hide_short_help = true, help_heading = KUBERNETES)]
    pub image_user_id: Option<String>,

    /// How long a pod may be without a node that can take it, or without an image because the registry fails; less
    /// where no autoscaler adds nodes [default: 180] [env: TOYGRES_SCHEDULING_TIMEOUT_SECONDS]
    #[arg(long, global = true, value_name = "SECONDS", hide_short_help = true, help_heading = KUBERNETES)]
    pub scheduling_timeout_seconds: Option<String>,

    /// The cluster's DNS domain [default: cluster.local] [env: TOYGRES_CLUSTER_DOMAIN]
    #[arg(long, global = true, value_name = "DOMAIN", hide_short_help = true, help_heading = KUBERNETES)]
    pub cluster_domain: Option<String>,
}

impl SettingFlags {
    /// Every setting's key, with the text of the flag where it was given.
    pub(super) fn texts(&self) -> BTreeMap<String, Option<String>> {
        use serde_json::Value;
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else { return BTreeMap::new() };
        let text = |value| match value {
            Value::String(text) => Some(text),
            Value::Bool(true) => Some("true".into()),
            _ => None,
        };
        fields.into_iter().map(|(key, value)| (key, text(value))).collect()
    }
}

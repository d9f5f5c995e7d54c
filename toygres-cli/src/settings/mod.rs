//! The settings of command line and server alike.
//!
//! Each one is a flag, an environment variable and a key of the config file: `--state-dir`,
//! `TOYGRES_STATE_DIR`, `state_dir`. A flag wins over the environment, that over the file, and
//! that over the default. Every value arrives as text together with its [`Source`], so that one
//! parser serves all three and an error names the place that has to be mended.

mod contexts;
mod flags;
mod source;
mod tls;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use toygres_activities::context::{DEFAULT_HEALTH_INTERVAL, DEFAULT_READY_TIMEOUT, MAX_READY_TIMEOUT};
use toygres_activities::platform::DefaultFolder;
use toygres_activities::platform::kubernetes::KubernetesConfig;
use toygres_activities::platform::local::LocalConfig;
use toygres_models::{Invalid, Namespace, PlatformName};
use toygres_server::settings::{DEFAULT_LISTEN, LogFormat, ServerSettings, parse_token};
use url::Url;

pub use contexts::{Context, ContextName, Contexts, ContextsError, LOCAL};
pub use flags::{OutputFormat, SettingFlags};
pub use source::{SettingsError, Source};

use source::{Sources, Value};
use tls::tls;

/// The instances' ports.
const DEFAULT_PORT_RANGE: RangeInclusive<u16> = LocalConfig::DEFAULT_PORT_RANGE;
/// How many prepared data directories are kept ready.
const DEFAULT_POOL_SIZE: usize = LocalConfig::DEFAULT_POOL_SIZE;
/// How long events are kept.
const DEFAULT_EVENT_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Who may log in to instances as superuser.
const ADMINS: &str = "admins";
const NEVER: &str = "never";
/// A prepared data directory has about 40 MB; more of them would only fill the disk.
const MAX_POOL_SIZE: usize = 32;

/// What a server is started with, and what a command that finds one running can't change. Those of Kubernetes are too, but
/// for its context.
const OF_A_START: [&str; 15] = [
    "cache_dir",
    "database_url",
    "database_url_file",
    "default_version",
    "event_retention",
    "listen",
    "log_format",
    "platforms",
    "pool_size",
    "port_range",
    "ready_timeout_seconds",
    "run_as_user",
    "tls",
    "tls_certificate",
    "tls_names",
];

/// The keys of the token: itself, or a file's name.
const TOKEN: [&str; 2] = ["token", "token_file"];

/// Keys of settings with the text that was given for each.
type GivenTexts = Vec<(&'static str, String)>;

/// What is set, checked and with its defaults filled in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What a server that is started here is told.
    pub server: ServerSettings,
    /// The settings of the Kubernetes platform as they were given, for another process.
    kubernetes_texts: GivenTexts,
    /// The CA that signed the certificate of the server that commands talk to; the system's if there is
    /// none. Absolute.
    pub ca_certificate: Option<PathBuf>,
    /// Whether commands may send tokens over plain HTTP beyond this machine.
    pub allow_plaintext: bool,
    /// The platform that commands mean, if one was given.
    pub platform: Option<PlatformName>,
    /// The server that commands talk to; the one on this machine if there is none.
    pub url: Option<Url>,
    /// The context that commands use, if one was named nearer than a URL.
    pub context: Option<ContextName>,
    /// Where the contexts are.
    contexts_file: Option<PathBuf>,
    /// The CA of the context's server, in PEM, unless another was given by flag or environment.
    pub context_ca_certificate: Option<String>,
    /// The bearer token that commands send; the state directory's if there is none.
    pub token: Option<SecretString>,
    /// Whether the token is the config file's: then it isn't meant for a context's server.
    token_is_from_file: bool,
    /// The same of the CA.
    ca_certificate_is_from_file: bool,
    /// The namespace that commands work in, if one was given.
    pub namespace: Option<Namespace>,
    /// How commands print their results.
    pub output: OutputFormat,
    /// Whether commands print nothing but their result.
    pub quiet: bool,
    /// The config file that was read.
    pub config_file: Option<PathBuf>,
    /// The flags that were given and are for a server that is started.
    pub flags_of_a_start: Vec<String>,
    /// Each setting, and where it is from.
    pub shown: Vec<ShownSetting>,
}

/// A setting as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownSetting {
    /// Its key.
    pub key: String,
    /// Its value; none where it has none. `(hidden)` where it is a secret.
    pub value: Option<String>,
    /// Where it was given, or `default`.
    pub source: String,
}

impl Settings {
    /// Brings together the flags, this process's environment and the config file.
    ///
    /// # Errors
    /// If a value can't be used, the config file has an unknown key, or it was named and can't be
    /// read. The error names the source, and never repeats a secret.
    pub fn resolve(flags: &SettingFlags) -> Result<Self, SettingsError> {
        let is_root = rustix::process::geteuid().is_root();
        Self::resolve_with(flags, &|name| std::env::var_os(name), is_root)
    }

    fn resolve_with(
        flags: &SettingFlags,
        environment: &dyn Fn(&str) -> Option<OsString>,
        is_root: bool,
    ) -> Result<Self, SettingsError> {
        let folders = Folders { environment, is_root };
        let sources = Sources::gather(flags, environment, folders.config_file())?;
        let state_dir = folders.path_or_default(&sources, "state_dir", DefaultFolder::State)?;
        let (kubernetes, kubernetes_texts) = kubernetes(&sources, &state_dir)?;
        let (url, context) = match sources.find_nearest(&["url", "context"]) {
            Some(("context", value)) => (None, Some(value.parse(str::parse)?)),
            Some((_, value)) => (Some(value.parse(parse_url)?), None),
            None => (None, None),
        };
        let is_from_file = |keys: &[&'static str]| {
            sources.find_nearest(keys).is_some_and(|(_, value)| matches!(value.source, Source::File { .. }))
        };
        let of_a_start = OF_A_START.into_iter().chain(KubernetesConfig::KEYS).filter(|key| *key != "kube_context");
        let flags_of_a_start = of_a_start.filter_map(|key| match sources.find(key)?.source {
            Source::Flag(flag) => Some(flag),
            _ => None,
        });
        let flags_of_a_start = flags_of_a_start.collect();
        let config_file = sources.config_file().map(Path::to_owned).or_else(|| folders.config_file());
        let token = secret(&sources, &folders, TOKEN, parse_token)?;
        let allow_plaintext = sources.parse("allow_plaintext", parse_bool)?.unwrap_or_default();
        let server = ServerSettings {
            state_dir,
            cache_dir: folders.path_or_default(&sources, "cache_dir", DefaultFolder::Cache)?,
            database_url: secret(&sources, &folders, ["database_url", "database_url_file"], parse_database_url)?,
            listen: sources.parse("listen", parse_listen)?,
            tls: tls(&sources, &folders)?,
            allow_plaintext,
            platforms: sources.parse("platforms", parse_platforms)?.unwrap_or_else(|| PlatformName::ALL.into()),
            kubernetes,
            token: token.clone(),
            port_range: sources.parse("port_range", parse_port_range)?.unwrap_or(DEFAULT_PORT_RANGE),
            pool_size: sources.parse("pool_size", parse_pool_size)?.unwrap_or(DEFAULT_POOL_SIZE),
            event_retention: sources.parse("event_retention", parse_retention)?.unwrap_or(DEFAULT_EVENT_RETENTION),
            ready_timeout: sources.parse("ready_timeout_seconds", parse_ready_timeout)?.unwrap_or(DEFAULT_READY_TIMEOUT),
            health_interval: sources.parse("health_interval_seconds", parse_health_interval)?.unwrap_or(DEFAULT_HEALTH_INTERVAL),
            log_format: sources.parse("log_format", parse_log_format)?.unwrap_or_default(),
            hands_out_superuser: sources.parse("superuser", parse_superuser)?.unwrap_or(true),
            run_as_user: sources.parse("run_as_user", parse_user)?,
            stop_instances: false,
            default_version: sources.parse("default_version", |text| text.parse().map_err(problem))?,
        };
        let settings = Self {
            server,
            kubernetes_texts,
            ca_certificate: sources.find("ca_certificate").map(|value| folders.path(&value)).transpose()?,
            allow_plaintext,
            platform: sources.parse("platform", |text| text.parse().map_err(problem))?,
            url,
            context,
            contexts_file: config_file.map(|file| file.with_file_name("contexts.toml")),
            context_ca_certificate: None,
            token,
            token_is_from_file: is_from_file(&TOKEN),
            ca_certificate_is_from_file: is_from_file(&["ca_certificate"]),
            namespace: sources.parse("namespace", |text| text.parse().map_err(problem))?,
            output: sources.parse("output", |text| text.parse())?.unwrap_or_default(),
            quiet: sources.parse("quiet", parse_bool)?.unwrap_or_default(),
            config_file: sources.config_file().map(Path::to_owned),
            flags_of_a_start,
            shown: Vec::new(),
        };
        Ok(Self { shown: shown(&sources, &settings), ..settings })
    }

    /// The same for a command that talks to a server: with the address and the token of the context,
    /// unless a URL was given. A token that was given by flag or environment wins over the context's.
    ///
    /// # Errors
    /// If the context isn't there, or the file can't be used.
    pub fn with_context(mut self) -> Result<Self, ContextsError> {
        if self.url.is_some() || self.context.as_ref().is_some_and(ContextName::is_local) {
            return Ok(self);
        }
        let contexts = match &self.contexts_file {
            Some(file) => Contexts::read(file)?,
            None => Contexts::default(),
        };
        let Some(name) = self.context.as_ref().or(contexts.current.as_ref()) else { return Ok(self) };
        let Context { url, token, ca_certificate } = contexts.get(name)?.clone();
        self.url = Some(url);
        // Its log-in has asked for that, if the address needs it.
        self.allow_plaintext = true;
        self.ca_certificate = self.ca_certificate.filter(|_| !self.ca_certificate_is_from_file);
        self.context_ca_certificate = ca_certificate.filter(|_| self.ca_certificate.is_none());
        self.token = self.given_token().cloned().or(Some(token));
        Ok(self)
    }

    /// The token that was given by flag or environment.
    #[must_use]
    pub fn given_token(&self) -> Option<&SecretString> {
        self.token.as_ref().filter(|_| !self.token_is_from_file)
    }

    /// The CA's certificate that was given by flag or environment.
    #[must_use]
    pub fn given_ca_certificate(&self) -> Option<&Path> {
        self.ca_certificate.as_deref().filter(|_| !self.ca_certificate_is_from_file)
    }

    /// The file with the contexts.
    ///
    /// # Errors
    /// If there is no folder for it.
    pub fn contexts_file(&self) -> Result<&Path, ContextsError> {
        self.contexts_file.as_deref().ok_or(ContextsError::NoFolder)
    }

    /// The namespace that a command works in.
    #[must_use]
    pub fn namespace_or_default(&self) -> Namespace {
        self.namespace.clone().unwrap_or_default()
    }

    /// The environment that gives another `toygres` process the same server settings. Secrets are
    /// in it: an environment is private to the user, an argument vector is not.
    #[must_use]
    pub fn to_environment(&self) -> Vec<(String, OsString)> {
        let server = &self.server;
        let (first, last) = server.port_range.clone().into_inner();
        let platforms: Vec<_> = server.platforms.iter().map(|platform| platform.as_str()).collect();
        let secret = |secret: &SecretString| OsString::from(secret.expose_secret());
        let mut values: Vec<(&str, OsString)> = vec![
            ("state_dir", server.state_dir.clone().into()),
            ("cache_dir", server.cache_dir.clone().into()),
            ("port_range", format!("{first}-{last}").into()),
            ("pool_size", server.pool_size.to_string().into()),
            ("event_retention", humantime::format_duration(server.event_retention).to_string().into()),
            ("ready_timeout_seconds", server.ready_timeout.as_secs().to_string().into()),
            ("health_interval_seconds", server.health_interval.as_secs().to_string().into()),
            ("log_format", server.log_format.as_str().into()),
            ("allow_plaintext", server.allow_plaintext.to_string().into()),
            ("superuser", if server.hands_out_superuser { ADMINS } else { NEVER }.into()),
            ("platforms", platforms.join(",").into()),
        ];
        values.extend(server.tls.iter().flat_map(tls::to_texts));
        values.extend(server.database_url.as_ref().map(|url| ("database_url", secret(url))));
        values.extend(server.listen.map(|listen| ("listen", listen.to_string().into())));
        values.extend(server.token.as_ref().map(|token| ("token", secret(token))));
        values.extend(server.default_version.map(|version| ("default_version", version.to_string().into())));
        values.extend(server.run_as_user.as_ref().map(|user| ("run_as_user", user.into())));
        values.extend(self.kubernetes_texts.iter().map(|(key, text)| (*key, text.into())));
        values.extend(self.config_file.as_ref().map(|file| ("config", file.into())));
        let mut environment: Vec<_> = values.into_iter().map(|(key, value)| (source::variable(key), value)).collect();
        environment.extend(kubeconfig());
        environment
    }
}

/// Each setting's value: what the server is told, or else what was given.
fn shown(sources: &Sources, settings: &Settings) -> Vec<ShownSetting> {
    const SECRETS: [&str; 2] = ["database_url", "token"];
    let of_server = settings.to_environment();
    let kubernetes = &settings.server.kubernetes;
    // What the server is told nothing of where nothing was given.
    let defaults = [
        ("cluster_domain", kubernetes.cluster_domain.clone()),
        ("image_user_id", kubernetes.user_id.to_string()),
        ("listen", DEFAULT_LISTEN.to_string()),
        ("namespace", settings.namespace_or_default().to_string()),
        ("output", "table".to_owned()),
        ("quiet", settings.quiet.to_string()),
        ("scheduling_timeout_seconds", kubernetes.scheduling_timeout_seconds.to_string()),
        ("tls", settings.server.tls.is_some().to_string()),
    ];
    let shown = |key: &str| {
        // Of a secret and the file that has it, the nearer one counts.
        let pairs = [TOKEN, ["database_url", "database_url_file"]];
        let given = match pairs.iter().find(|pair| pair[0] == key) {
            Some(pair) => sources.find_nearest(pair).map(|(_, value)| value),
            None => sources.find(key),
        };
        let variable = source::variable(key);
        let effective = of_server.iter().find(|(name, _)| *name == variable).map(|(_, text)| text.to_string_lossy().into_owned());
        let default = || Some(defaults.iter().find(|(name, _)| *name == key)?.1.clone());
        let as_given = || given.as_ref().map(|given| given.text.clone());
        // A URL that isn't looked at, since a context is nearer, may be anything.
        let value =
            if key == "url" { settings.url.as_ref().map(Url::to_string) } else { effective.or_else(as_given).or_else(default) };
        ShownSetting {
            key: key.to_owned(),
            value: value.map(|value| if SECRETS.contains(&key) { "(hidden)".to_owned() } else { value }),
            source: given.map_or_else(|| "default".to_owned(), |given| given.source.to_string()),
        }
    };
    sources.keys().map(shown).collect()
}

/// `KUBECONFIG` with absolute paths: the other process may run in another folder.
fn kubeconfig() -> Option<(String, OsString)> {
    let paths = std::env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty())?;
    let absolute = std::env::split_paths(&paths).map(|path| std::path::absolute(&path).unwrap_or(path));
    Some(("KUBECONFIG".to_owned(), std::env::join_paths(absolute).unwrap_or(paths)))
}

/// What paths are derived from.
struct Folders<'a> {
    environment: &'a dyn Fn(&str) -> Option<OsString>,
    is_root: bool,
}

impl Folders<'_> {
    fn default(&self, folder: DefaultFolder) -> Option<PathBuf> {
        folder.path(self.environment, self.is_root)
    }

    fn config_file(&self) -> Option<PathBuf> {
        Some(self.default(DefaultFolder::Config)?.join("config.toml"))
    }

    /// The path that was given, or the default one.
    fn path_or_default(&self, sources: &Sources, key: &'static str, folder: DefaultFolder) -> Result<PathBuf, SettingsError> {
        match sources.find(key) {
            Some(value) => self.path(&value),
            None => self.default(folder).ok_or(SettingsError::NoHome { key }),
        }
    }

    /// An absolute path: `~/` is the home folder, which no shell replaces in a file, and a
    /// relative path in the config file starts at that file's folder.
    fn path(&self, value: &Value) -> Result<PathBuf, SettingsError> {
        let refuse = |problem: &str| Err(value.refused(problem));
        if value.text.is_empty() {
            return refuse("is empty; give a path");
        }
        let mut path = PathBuf::from(&value.text);
        if let Ok(rest) = path.strip_prefix("~") {
            match (self.environment)("HOME").map(PathBuf::from).filter(|home| home.is_absolute()) {
                Some(home) => path = home.join(rest),
                None => return refuse("begins with ~, and HOME isn't set"),
            }
        }
        if let Source::File { path: file, .. } = &value.source
            && let Some(folder) = file.parent()
        {
            path = folder.join(path);
        }
        std::path::absolute(path).or_else(|_| refuse("is relative, and the current directory is gone"))
    }
}

/// A secret itself, or else the one in a file; the nearer source wins.
fn secret(
    sources: &Sources,
    folders: &Folders<'_>,
    [itself, in_file]: [&'static str; 2],
    parser: fn(&str) -> Result<SecretString, String>,
) -> Result<Option<SecretString>, SettingsError> {
    match sources.find_nearest(&[itself, in_file]) {
        None => Ok(None),
        Some((key, value)) if key == itself => value.parse(parser).map(Some),
        Some((_, value)) => {
            let path = folders.path(&value)?;
            let text = std::fs::read_to_string(&path)
                .map_err(|error| value.refused(format!("{} can't be read: {error}", path.display())))?;
            parser(text.trim_end()).map(Some).map_err(|problem| value.refused(problem))
        }
    }
}

/// The Kubernetes platform's settings, checked, and as they were given.
fn kubernetes(sources: &Sources, state_dir: &Path) -> Result<(KubernetesConfig, GivenTexts), SettingsError> {
    let mut values = Vec::new();
    for key in KubernetesConfig::KEYS {
        if let Some(value) = sources.find(key) {
            let text = value.parse(|text| Ok(text.to_owned()))?;
            values.push((key, text, value));
        }
    }
    let get = |key: &'static str| values.iter().find(|(known, ..)| *known == key).map(|(_, text, _)| text.clone());
    let config = KubernetesConfig::from_settings(state_dir.to_owned(), &get).map_err(|Invalid { field, problem }| {
        let refused = values.iter().find(|(key, ..)| *key == field).map(|(.., value)| value.refused(&problem));
        refused.unwrap_or(SettingsError::Value { from: Source::Flag(field.to_owned()), problem })
    })?;
    Ok((config, values.into_iter().map(|(key, text, _)| (key, text)).collect()))
}

/// An [`Invalid`] without its field: the source names the setting.
fn problem(invalid: Invalid) -> String {
    invalid.problem
}

fn parse_database_url(text: &str) -> Result<SecretString, String> {
    // The text may hold a password: errors don't repeat it.
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => Ok(text.into()),
        _ => Err("is not a URL such as postgresql://user@host:5432/database".into()),
    }
}

fn parse_platforms(text: &str) -> Result<Vec<PlatformName>, String> {
    let mut platforms = Vec::new();
    for name in text.split(',') {
        let name: PlatformName = name.trim().parse().map_err(problem)?;
        if platforms.contains(&name) {
            return Err(format!("{name} is listed twice"));
        }
        platforms.push(name);
    }
    Ok(platforms)
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address with a port, such as {DEFAULT_LISTEN}"))
}

/// The address of a server.
///
/// # Errors
/// What is wrong with it.
pub fn parse_url(text: &str) -> Result<Url, String> {
    let wanted = "give one such as http://127.0.0.1:7654";
    // User name and password would be repeated in errors; they have no meaning here anyway.
    if text.contains('@') {
        return Err(format!("has a user name in it; {wanted}, and the token by TOYGRES_TOKEN"));
    }
    let mut url = Url::parse(text).map_err(|error| format!("{text:?} is not a URL ({error}); {wanted}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{text:?} is not a server's address; {wanted}"));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

fn parse_port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let refuse = || format!("{text:?} is not a range of ports from 1024 to 65535, such as 20000-29999");
    let (first, last) = text.split_once('-').ok_or_else(refuse)?;
    let port = |part: &str| part.trim().parse::<u16>().ok().filter(|port| *port >= 1024);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(refuse()),
    }
}

fn parse_pool_size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| *size <= MAX_POOL_SIZE);
    size.ok_or_else(|| format!("{text:?} is not a number from 0 to {MAX_POOL_SIZE}"))
}

fn parse_retention(text: &str) -> Result<Duration, String> {
    let range = Duration::from_secs(1)..=Duration::from_secs(100 * 366 * 24 * 60 * 60);
    let time = humantime::parse_duration(text).ok().filter(|time| range.contains(time));
    time.ok_or_else(|| format!("{text:?} is not a length of time from 1s to 100y, such as 30d"))
}

fn parse_ready_timeout(text: &str) -> Result<Duration, String> {
    let most = MAX_READY_TIMEOUT.as_secs();
    let seconds = text.parse().ok().filter(|seconds| (10..=most).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| format!("{text:?} is not a number of seconds from 10 to {most}"))
}

fn parse_health_interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| format!("{text:?} is not a number of seconds from 1 to 3600"))
}

fn parse_log_format(text: &str) -> Result<LogFormat, String> {
    [LogFormat::Text, LogFormat::Json]
        .into_iter()
        .find(|format| format.as_str() == text)
        .ok_or_else(|| format!("{text:?} is unknown; known are text, json"))
}

/// Whether the superuser's password is handed out.
fn parse_superuser(text: &str) -> Result<bool, String> {
    match text {
        ADMINS => Ok(true),
        NEVER => Ok(false),
        _ => Err(format!("{text:?} is unknown; known are {ADMINS} and {NEVER}")),
    }
}

fn parse_user(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if text.is_empty() || text.starts_with('-') || !text.chars().all(plain) {
        return Err(format!("{text:?} is not a user's name"));
    }
    if matches!(text, "root" | "nobody") {
        return Err(format!("PostgreSQL can't run safely as {text}; name a user of its own, such as toygres"));
    }
    Ok(text.to_owned())
}

fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests;

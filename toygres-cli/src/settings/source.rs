//! Where a setting's value comes from: flags, the environment, the config file, in this order.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::SettingFlags;

/// Settings that are no flags of every command: flags of `create` take their place there.
const OF_CREATE: [&str; 4] = ["cpu", "memory", "platform", "storage_class"];

/// The place that a value was given in, as an error names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag.
    Flag(String),
    /// An environment variable.
    Environment(String),
    /// A line of the config file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::Environment(variable) => write!(f, "the environment variable {variable}"),
            Self::File { path, line, key } => write!(f, "{key} in {} (line {line})", path.display()),
        }
    }
}

/// A setting that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A value was refused.
    #[error("{from}: {problem}")]
    Value {
        /// Where it was given.
        from: Source,
        /// What is wrong with it; never holds a secret.
        problem: String,
    },
    /// The config file has a key that isn't known.
    #[error("{key:?} in {} (line {line}) is no setting; known are {known}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// All keys.
        known: String,
    },
    /// The config file isn't TOML.
    #[error("{} (line {line}) is not valid TOML: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// The config file can't be read, or was named and isn't there.
    #[error("the config file {} can't be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no home folder to derive a default from.
    #[error("HOME isn't set, so there is no default folder; set it, or give --{}", key.replace('_', "-"))]
    NoHome {
        /// The setting that would do instead.
        key: &'static str,
    },
}

/// The environment variable of a setting.
pub(super) fn variable(key: &str) -> String {
    format!("TOYGRES_{}", key.to_ascii_uppercase())
}

/// A value as text, with the place it was given in.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) text: String,
    pub(super) source: Source,
}

impl Value {
    pub(super) fn refused(&self, problem: impl Into<String>) -> SettingsError {
        SettingsError::Value { from: self.source.clone(), problem: problem.into() }
    }

    pub(super) fn parse<T>(&self, parser: impl Fn(&str) -> Result<T, String>) -> Result<T, SettingsError> {
        parser(&self.text).map_err(|problem| self.refused(problem))
    }
}

/// Flags, environment and config file, nearest first.
pub(super) struct Sources {
    keys: BTreeSet<String>,
    layers: [BTreeMap<String, Value>; 3],
    config_file: Option<PathBuf>,
}

impl Sources {
    /// Reads all three. A config file in its default place may be missing.
    pub(super) fn gather(
        flags: &SettingFlags,
        environment: &dyn Fn(&str) -> Option<OsString>,
        default_config_file: Option<PathBuf>,
    ) -> Result<Self, SettingsError> {
        let given = flags.texts();
        let mut keys: BTreeSet<&str> = given.keys().map(String::as_str).chain(OF_CREATE).collect();
        let by_flag = |(key, text): (&String, &Option<String>)| {
            let source = Source::Flag(format!("--{}", key.replace('_', "-")));
            Some((key.clone(), Value { text: text.clone()?, source }))
        };
        let mut from_flags: BTreeMap<_, _> = given.iter().filter_map(by_flag).collect();
        let mut from_environment = BTreeMap::new();
        for key in &keys {
            let source = Source::Environment(variable(key));
            // An empty variable is how a script says that one isn't set.
            let Some(text) = environment(&variable(key)).filter(|text| !text.is_empty()) else { continue };
            let Ok(text) = text.into_string() else {
                return Err(SettingsError::Value { from: source, problem: "is not valid UTF-8".into() });
            };
            from_environment.insert((*key).to_owned(), Value { text, source });
        }
        keys.remove("config");
        let all = keys.iter().map(|key| (*key).to_owned()).collect();
        let named = from_flags.remove("config").or(from_environment.remove("config"));
        let file = match (named.map(|value| PathBuf::from(value.text)), default_config_file) {
            (Some(path), _) => Some((read(&path)?, path)),
            (None, Some(path)) => read_if_there(&path)?.map(|text| (text, path)),
            (None, None) => None,
        };
        let (from_file, config_file) = match file {
            Some((text, path)) => (parse(&path, &text, &keys)?, Some(std::path::absolute(&path).unwrap_or(path))),
            None => (BTreeMap::new(), None),
        };
        Ok(Self { keys: all, layers: [from_flags, from_environment, from_file], config_file })
    }

    pub(super) fn config_file(&self) -> Option<&Path> {
        self.config_file.as_deref()
    }

    /// All settings but the config file itself.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }

    pub(super) fn find(&self, key: &str) -> Option<Value> {
        self.layers.iter().find_map(|layer| layer.get(key)).cloned()
    }

    /// The nearest value of several settings that stand for the same thing.
    pub(super) fn find_nearest(&self, keys: &[&'static str]) -> Option<(&'static str, Value)> {
        let find_in = |layer: &BTreeMap<_, Value>| keys.iter().find_map(|key| Some((*key, layer.get(*key)?.clone())));
        self.layers.iter().find_map(find_in)
    }

    pub(super) fn parse<T>(
        &self,
        key: &'static str,
        parser: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, SettingsError> {
        self.find(key).map(|value| value.parse(parser)).transpose()
    }
}

fn read(path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|source| SettingsError::Unreadable { path: path.to_owned(), source })
}

fn read_if_there(path: &Path) -> Result<Option<String>, SettingsError> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(SettingsError::Unreadable { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(path: &Path, text: &str, known: &BTreeSet<&str>) -> Result<BTreeMap<String, Value>, SettingsError> {
    let line_of = |offset: usize| text.get(..offset).unwrap_or(text).matches('\n').count() + 1;
    let table: BTreeMap<Spanned<String>, toml::Value> = toml::from_str(text).map_err(|error| SettingsError::Syntax {
        path: path.to_owned(),
        line: line_of(error.span().map_or(0, |span| span.start)),
        // The parser's full report would print the line itself, which may hold a secret.
        problem: error.message().to_owned(),
    })?;
    let mut values = BTreeMap::new();
    for (key, value) in table {
        let (line, key) = (line_of(key.span().start), key.into_inner());
        if !known.contains(key.as_str()) {
            let known = known.iter().copied().collect::<Vec<_>>().join(", ");
            return Err(SettingsError::UnknownKey { path: path.to_owned(), line, key, known });
        }
        let source = Source::File { path: path.to_owned(), line, key: key.clone() };
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(flag) => flag.to_string(),
            _ => return Err(SettingsError::Value { from: source, problem: "text, a number or true/false is wanted".into() }),
        };
        values.insert(key, Value { text, source });
    }
    Ok(values)
}

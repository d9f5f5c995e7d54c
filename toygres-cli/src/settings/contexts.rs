//! Contexts: the servers that this user has logged in to, each with its address and a token, in
//! `contexts.toml` beside the config file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toygres_server::private_file::{self, Unsafe};
use url::Url;

/// The context that always is: the server on this machine.
pub const LOCAL: &str = "local";
const MAX_NAME_LENGTH: usize = 100;

/// A context's name: 1 to 100 of `a-zA-Z0-9._-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContextName(String);

impl ContextName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for the server on this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.0 == LOCAL
    }
}

impl FromStr for ContextName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > MAX_NAME_LENGTH || !text.bytes().all(plain) {
            return Err(format!(
                "{text:?} can't be a context's name; give 1 to {MAX_NAME_LENGTH} letters, digits, '.', '_' and '-'"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ContextName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ContextName> for String {
    fn from(name: ContextName) -> Self {
        name.0
    }
}

impl fmt::Display for ContextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A server that the user has logged in to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Its address.
    #[serde(serialize_with = "as_text", deserialize_with = "url")]
    pub url: Url,
    /// The user's token there.
    #[serde(serialize_with = "exposed", deserialize_with = "secret")]
    pub token: SecretString,
    /// The CA that its certificate is of, in PEM; the system's CAs if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificate: Option<String>,
}

fn as_text<S: Serializer>(url: &Url, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(url)
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    Ok(String::deserialize(deserializer)?.into())
}

fn exposed<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

/// All contexts, as the file has them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The one that commands use unless another is named; the server on this machine if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<ContextName>,
    /// By their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<ContextName, Context>,
}

/// Why the contexts can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextsError {
    /// There is no folder for them.
    #[error("HOME isn't set, so there is no folder for contexts; set it, or give --config")]
    NoFolder,
    /// The file can't be read, or not be trusted.
    #[error("{} is not read: {why}", path.display())]
    NotRead {
        /// The file.
        path: PathBuf,
        /// Why.
        why: Unsafe,
    },
    /// The file isn't what was written.
    #[error("{} is not valid: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What the parser says; never a secret.
        problem: String,
    },
    /// The file can't be written; it is as it was.
    #[error("{} can't be written, and is as it was: {source}", path.display())]
    NotWritten {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No context of that name.
    #[error("there is no context {0}")]
    Unknown(ContextName),
}

impl Contexts {
    /// Reads them; there are none where there is no file.
    ///
    /// # Errors
    /// If the file can't be read, isn't valid, or isn't this user's alone.
    pub fn read(path: &Path) -> Result<Self, ContextsError> {
        let text = private_file::read(path).map_err(|why| ContextsError::NotRead { path: path.to_owned(), why })?;
        let invalid = |error: toml::de::Error| {
            // The parser's full report would print the line itself, which may hold a token.
            ContextsError::Invalid { path: path.to_owned(), problem: error.message().to_owned() }
        };
        text.map_or_else(|| Ok(Self::default()), |text| toml::from_str(&text).map_err(invalid))
    }

    /// Changes them as they are now, and writes them for this user alone: all or nothing, and one process at a time.
    ///
    /// # Errors
    /// Those of `change`, and of reading and writing; the file is as it was then.
    pub fn change<T>(path: &Path, change: impl FnOnce(&mut Self) -> Result<T, ContextsError>) -> Result<T, ContextsError> {
        let not_written = |source| ContextsError::NotWritten { path: path.to_owned(), source };
        let lock = || {
            let folder = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            // The folder, since the file is another one after each change.
            let folder = File::open(folder)?;
            folder.lock().map(|()| folder)
        };
        let _folder = lock().map_err(not_written)?;
        let mut contexts = Self::read(path)?;
        let changed = change(&mut contexts)?;
        contexts.write(path).map_err(not_written)?;
        Ok(changed)
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let text = toml::to_string(self).map_err(std::io::Error::other)?;
        private_file::write(path, text.as_bytes())
    }

    /// The one of that name.
    ///
    /// # Errors
    /// [`ContextsError::Unknown`].
    pub fn get(&self, name: &ContextName) -> Result<&Context, ContextsError> {
        self.contexts.get(name).ok_or_else(|| ContextsError::Unknown(name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn context(token: &str) -> Context {
        Context {
            url: "https://toygres.example.org/".parse().unwrap(),
            token: token.into(),
            ca_certificate: Some("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".into()),
        }
    }

    #[test]
    fn contexts_read_back_from_a_private_file_in_a_private_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config/toygres/contexts.toml");
        assert!(Contexts::read(&path).unwrap().contexts.is_empty());
        let name: ContextName = "prod.example-1".parse().unwrap();
        let log_in = |contexts: &mut Contexts| {
            contexts.contexts.insert(name.clone(), context("hunter2"));
            contexts.current = Some(name.clone());
            Ok(())
        };
        Contexts::change(&path, log_in).unwrap();
        let contexts = Contexts::read(&path).unwrap();
        let read = &contexts;
        assert_eq!(read.current.as_ref(), Some(&name));
        let read = read.get(&name).unwrap();
        assert_eq!((read.token.expose_secret(), &read.ca_certificate), ("hunter2", &context("").ca_certificate));
        assert!(!format!("{read:?}").contains("hunter2"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(contexts.get(&"other".parse().unwrap()).unwrap_err().to_string().contains("other"));
    }

    #[test]
    fn of_changes_at_once_none_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("contexts.toml");
        let insert = |name: String| {
            Contexts::change(&path, |contexts| {
                contexts.contexts.insert(name.parse().unwrap(), context("t"));
                Ok(())
            })
        };
        std::thread::scope(|scope| {
            for number in 0..20 {
                scope.spawn(move || insert(format!("c-{number}")).unwrap());
            }
        });
        assert_eq!(Contexts::read(&path).unwrap().contexts.len(), 20);
        let refused = Contexts::change(&path, |contexts| {
            contexts.contexts.clear();
            contexts.get(&"other".parse().unwrap()).map(drop)
        });
        assert!(matches!(refused, Err(ContextsError::Unknown(_))));
        assert_eq!(Contexts::read(&path).unwrap().contexts.len(), 20, "a refused change was written");
    }

    #[test]
    fn a_file_that_cannot_be_trusted_or_understood_is_refused_without_its_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("contexts.toml");
        for text in ["token = 'hunter2'", "[contexts.a]\ntoken = hunter2", "[contexts.a]\nurl = 'hunter2'\ntoken = 'hunter2'"] {
            private_file::write(&path, text.as_bytes()).unwrap();
            let error = Contexts::read(&path).unwrap_err();
            assert!(matches!(error, ContextsError::Invalid { .. }) && !error.to_string().contains("hunter2"), "{error}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Contexts::read(&path).unwrap_err().to_string().contains("0644"));
    }

    #[test]
    fn names_are_plain() {
        let long = "a".repeat(101);
        for bad in ["", "a b", "a/b", "ü", "a\n", &long] {
            assert!(bad.parse::<ContextName>().is_err(), "{bad:?} was taken");
        }
    }
}

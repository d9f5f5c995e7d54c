//! The files through which servers on this machine and their clients find each other.

use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// The server's files in the state directory.
#[derive(Debug, Clone, Copy)]
pub struct StateDir<'a> {
    path: &'a Path,
}

impl<'a> StateDir<'a> {
    pub(super) fn new(path: &'a Path) -> Self {
        Self { path }
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// Which server runs here: a [`ServerRecord`], written by it.
    #[must_use]
    pub fn server_record_path(&self) -> PathBuf {
        self.path.join("server.json")
    }

    /// The bearer token, one line, 0600.
    #[must_use]
    pub fn token_path(&self) -> PathBuf {
        self.path.join("token")
    }

    /// The certificate of the CA that signs what the API of a server here shows.
    #[must_use]
    pub fn ca_certificate_path(&self) -> PathBuf {
        self.path.join("api-ca.crt")
    }

    /// The server's log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.path.join("server.log")
    }

    /// What a server in the background wrote to its standard error: nothing, unless it crashed.
    #[must_use]
    pub fn stderr_path(&self) -> PathBuf {
        self.path.join("server.stderr")
    }

    /// Reads which server runs here, or ran last. Half a record is none.
    ///
    /// # Errors
    /// If the file is there and can't be read.
    pub fn server_record(&self) -> io::Result<Option<ServerRecord>> {
        Ok(read_if_there(&self.server_record_path())?.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Reads the token; `None` if there is none yet.
    ///
    /// # Errors
    /// If the file is there and can't be read.
    pub fn token(&self) -> io::Result<Option<SecretString>> {
        Ok(read_if_there(&self.token_path())?.and_then(|text| parse_token(text.trim_end()).ok()))
    }
}

/// A token, which travels in an HTTP header.
///
/// # Errors
/// If it could not.
pub fn parse_token(text: &str) -> Result<SecretString, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("is not a token: one line of visible ASCII characters is wanted".into());
    }
    Ok(text.into())
}

fn read_if_there(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A running server, as it describes itself in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub url: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
}

/// What a server that is started in the background says, one JSON object a line on its standard
/// output, to the process that started it. `Ready` and `Error` are the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum StartLine {
    /// What it is busy with.
    Starting {
        /// For a person, such as `starting the control database`.
        message: String,
    },
    /// Another server holds the state directory, or is just starting on it.
    Locked {
        /// For a person.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// It serves.
    Ready {
        /// Where it listens.
        url: String,
    },
    /// It gives up.
    Error {
        /// What was wrong and what to do.
        message: String,
    },
}

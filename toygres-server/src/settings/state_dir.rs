//! The files through which servers on this machine and their clients find each other.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// The server's files in the state directory.
#[derive(Debug, Clone, Copy)]
pub struct StateDir<'a> {
    path: &'a Path,
}

impl<'a> StateDir<'a> {
    pub(crate) fn new(path: &'a Path) -> Self {
        Self { path }
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// The folder with the Unix socket by which a server that runs here is reached, 0700.
    #[must_use]
    pub fn socket_folder(&self) -> PathBuf {
        self.path.join("api")
    }

    /// Locked for as long as a server works on the directory; holds its process id.
    #[must_use]
    pub fn lock_path(&self) -> PathBuf {
        self.path.join("server.lock")
    }

    /// The bearer token, one line, 0600.
    #[must_use]
    pub fn token_path(&self) -> PathBuf {
        self.path.join("token")
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

    /// Whether a server works on the directory, one that is starting or stopping too.
    ///
    /// # Errors
    /// If the lock file is there and can't be used.
    pub fn is_locked(&self) -> io::Result<bool> {
        let file = match File::open(self.lock_path()) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
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
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
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

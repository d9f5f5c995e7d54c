//! Where toygres keeps things when nobody says: the system's folders for root, else the user's own
//! (<https://specifications.freedesktop.org/basedir-spec/>).

use std::ffi::OsString;
use std::path::PathBuf;

/// A kind of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultFolder {
    /// What has to last.
    State,
    /// What can be fetched again.
    Cache,
    /// What people write.
    Config,
}

impl DefaultFolder {
    /// The folder; `None` if there is no home folder to derive it from.
    pub fn path(self, environment: &dyn Fn(&str) -> Option<OsString>, is_root: bool) -> Option<PathBuf> {
        let (of_root, variable, below_home) = match self {
            Self::State => ("/var/lib/toygres", "XDG_STATE_HOME", ".local/state"),
            Self::Cache => ("/var/cache/toygres", "XDG_CACHE_HOME", ".cache"),
            Self::Config => ("/etc/toygres", "XDG_CONFIG_HOME", ".config"),
        };
        if is_root {
            return Some(of_root.into());
        }
        // Relative ones are to be ignored, says the specification.
        let absolute = |variable| environment(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute(variable).or_else(|| Some(absolute("HOME")?.join(below_home)))?;
        Some(base.join("toygres"))
    }

    /// The folder for this process; below `/` if it has no home folder.
    pub(crate) fn of_this_process(self) -> PathBuf {
        let environment = |name: &str| match name {
            "HOME" => Some(std::env::home_dir().unwrap_or_else(|| "/".into()).into()),
            _ => std::env::var_os(name),
        };
        self.path(&environment, rustix::process::geteuid().is_root()).unwrap_or_default()
    }
}

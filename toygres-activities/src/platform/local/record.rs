//! What is written down of an instance, in `instance.json` beside its data directory.
//!
//! The file is what makes a folder an instance: it is written first and removed first.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toygres_models::{Failure, FailureKind, InstanceKey, InstanceSpec, PostgresVersion, Power};
use uuid::Uuid;

use super::files::{Durability, failed, write_whole};

const FILE: &str = "instance.json";

/// An instance as it is written down. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) key: InstanceKey,
    /// The full version it was made with.
    pub(super) postgres_version: PostgresVersion,
    /// The folder of the programs it was made with.
    pub(super) bin_dir: PathBuf,
    /// Its TCP port; promised to clients once it is provisioned.
    pub(super) port: u16,
    /// Whether its password was set, which is the last step of its making.
    pub(super) provisioned: bool,
    /// Its id, where it was made for a record of the metadata store.
    pub(super) instance_id: Option<Uuid>,
    /// What it is to be. This platform can't enforce `storage_size_gb`.
    pub(super) spec: InstanceSpec,
    /// The last restart that was asked for.
    pub(super) restart: Option<RestartMark>,
}

/// Tells whether a restart was done: the server of that process is the one that it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RestartMark {
    pub(super) request_id: String,
    pub(super) ends_process_id: Option<i32>,
}

impl Record {
    /// Whether its server is to be kept running.
    pub(super) fn should_run(&self) -> bool {
        self.provisioned && self.spec.power == Power::Running
    }

    /// `None` if there is none.
    pub(super) fn read(home: &Path) -> Result<Option<Self>, Failure> {
        let path = home.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            Failure::permanent(
                FailureKind::Platform,
                format!(
                    "{} can't be understood: {error}; the data beside it is intact. Put the file back from a copy",
                    path.display()
                ),
            )
        })
    }

    /// Writes it, to outlive a power cut.
    pub(super) fn write(&self, home: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| {
            Failure::permanent(FailureKind::Internal, format!("could not encode the record of {}: {error}", self.key))
        })?;
        write_whole(&home.join(FILE), &text, 0o600, None, Durability::Synced)
    }

    /// Removes it: from then on the folder is no instance. `true` if it was there.
    pub(super) fn remove(home: &Path) -> Result<bool, Failure> {
        super::files::remove_file(&home.join(FILE))
    }
}

/// The folders of all instances, half-made ones too, in order of their keys.
pub(super) fn instance_folders(instances: &Path) -> Result<Vec<(InstanceKey, PathBuf)>, Failure> {
    let mut found = Vec::new();
    for namespace in super::files::names_in(instances)? {
        let folder = instances.join(&namespace);
        for name in super::files::names_in(&folder)? {
            // A name that can't be an instance's isn't ours.
            if let Ok(key) = InstanceKey::parse(&namespace, &name) {
                found.push((key, folder.join(name)));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use toygres_models::PlatformName;

    use super::*;

    fn record() -> Record {
        Record {
            key: InstanceKey::parse("default", "demo").unwrap(),
            postgres_version: "15.18".parse().unwrap(),
            bin_dir: "/usr/lib/postgresql/15/bin".into(),
            port: 20_001,
            provisioned: true,
            instance_id: None,
            spec: InstanceSpec::new(PlatformName::Local, "15".parse().unwrap()),
            restart: None,
        }
    }

    #[test]
    fn comes_back_as_it_was_written() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(home.path()).unwrap(), None);
        record().write(home.path()).unwrap();
        assert_eq!(Record::read(home.path()).unwrap(), Some(record()));
        assert!(Record::remove(home.path()).unwrap());
        assert!(!Record::remove(home.path()).unwrap());
    }

    #[test]
    fn an_unreadable_one_is_an_error_and_not_a_missing_one() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(FILE), "{").unwrap();
        assert!(Record::read(home.path()).unwrap_err().message.contains("instance.json"));
    }

    #[test]
    fn lists_only_what_can_be_an_instance() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["b/x", "a/y", "a/x", "a/Not_one", ".tmp/x"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let keys: Vec<_> = instance_folders(root.path()).unwrap().into_iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(keys, ["a/x", "a/y", "b/x"]);
    }
}

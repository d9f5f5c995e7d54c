//! Where passwords rest: the one place that holds them in clear text.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use toygres_models::whole_file::{Durability, write_whole};
use toygres_models::{Failure, FailureKind, InstanceKey, Password};
use uuid::Uuid;

/// A place for passwords. Every verb may be repeated.
#[async_trait]
pub trait SecretStore: Send + Sync + 'static {
    /// Keeps the instance's password durably, in place of any earlier one.
    async fn put(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure>;

    /// The instance's password.
    ///
    /// # Errors
    /// [`FailureKind::NotFound`] if none is kept.
    async fn get(&self, key: &InstanceKey) -> Result<SecretString, Failure>;

    /// Forgets the instance's password. None being kept is no error.
    async fn remove(&self, key: &InstanceKey) -> Result<(), Failure>;

    /// Keeps the password of an instance that isn't on record yet, by the id that it will have. The password of an instance
    /// that has the name by now, and those of other creates, are untouched.
    async fn put_new(&self, key: &InstanceKey, instance_id: Uuid, password: &SecretString) -> Result<(), Failure>;

    /// Makes the password that is kept by that id the instance's, in place of any earlier one. It is still to be
    /// [discarded](Self::discard). `false` if none is kept: it is the instance's already.
    async fn settle(&self, key: &InstanceKey, instance_id: Uuid) -> Result<bool, Failure>;

    /// Forgets the password that is kept by that id. None being kept is no error.
    async fn discard(&self, key: &InstanceKey, instance_id: Uuid) -> Result<(), Failure>;

    /// The passwords that are kept, and have been for that long.
    ///
    /// # Errors
    /// If they can't be listed.
    async fn list(&self, kept_for: Duration) -> Result<Vec<Kept>, Failure>;
}

/// That a password is kept, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The name of the instance.
    pub key: InstanceKey,
    /// The id that it is kept by, where it isn't settled yet.
    pub instance_id: Option<Uuid>,
}

/// The password itself: a literal as it is, a reference looked up.
///
/// # Errors
/// If the reference leads nowhere.
pub async fn resolve(secrets: &dyn SecretStore, password: Password) -> Result<SecretString, Failure> {
    match password {
        Password::Literal(secret) => Ok(secret),
        Password::Reference(reference) => secrets.get(&reference.0).await,
    }
}

/// One file of mode 0600 for each instance, in folders of mode 0700: `<folder>/<namespace>/<name>`, or `<name>.<id>` as long
/// as it isn't settled.
#[derive(Debug, Clone)]
pub struct FileSecretStore {
    folder: PathBuf,
}

impl FileSecretStore {
    /// A store in that folder, which is made when the first password is kept.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn path(&self, key: &InstanceKey) -> PathBuf {
        // Names can't hold a separator or dots: see their types.
        self.folder.join(key.namespace.as_str()).join(key.name.as_str())
    }

    fn new_path(&self, key: &InstanceKey, instance_id: Uuid) -> PathBuf {
        self.folder.join(key.namespace.as_str()).join(format!("{}.{instance_id}", key.name))
    }

    async fn write(&self, path: PathBuf, password: &SecretString) -> Result<(), Failure> {
        let password = password.clone();
        blocking(move || write(&path, &password).map_err(|error| failed("write", &path, &error))).await
    }

    async fn delete(&self, path: PathBuf) -> Result<(), Failure> {
        blocking(move || match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &path, &error)),
        })
        .await
    }
}

fn failed(action: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::transient(FailureKind::Platform, format!("could not {action} the secret file {}: {error}", path.display()))
}

/// The names in a folder; none if it isn't there.
fn names_in(folder: &Path) -> Result<Vec<String>, Failure> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", folder, &error)),
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::transient(FailureKind::Internal, format!("a file operation was cut off: {error}"))))
}

fn write(path: &Path, password: &SecretString) -> std::io::Result<()> {
    let parent = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    write_whole(path, password.expose_secret().as_bytes(), 0o600, None, Durability::Synced)
}

#[async_trait]
impl SecretStore for FileSecretStore {
    async fn put(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure> {
        self.write(self.path(key), password).await
    }

    async fn get(&self, key: &InstanceKey) -> Result<SecretString, Failure> {
        let path = self.path(key);
        let key = key.clone();
        blocking(move || match std::fs::read_to_string(&path) {
            Ok(password) => Ok(password.into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Failure::permanent(FailureKind::NotFound, format!("no password is kept for {key}")))
            }
            Err(error) => Err(failed("read", &path, &error)),
        })
        .await
    }

    async fn remove(&self, key: &InstanceKey) -> Result<(), Failure> {
        self.delete(self.path(key)).await
    }

    async fn put_new(&self, key: &InstanceKey, instance_id: Uuid, password: &SecretString) -> Result<(), Failure> {
        self.write(self.new_path(key, instance_id), password).await
    }

    async fn settle(&self, key: &InstanceKey, instance_id: Uuid) -> Result<bool, Failure> {
        let (new, path) = (self.new_path(key, instance_id), self.path(key));
        blocking(move || match rename_durably(&new, &path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("rename", &new, &error)),
        })
        .await
    }

    async fn discard(&self, key: &InstanceKey, instance_id: Uuid) -> Result<(), Failure> {
        self.delete(self.new_path(key, instance_id)).await
    }

    async fn list(&self, kept_for: Duration) -> Result<Vec<Kept>, Failure> {
        let folder = self.folder.clone();
        blocking(move || {
            let mut all = Vec::new();
            for namespace in names_in(&folder)? {
                for name in names_in(&folder.join(&namespace))? {
                    let written = std::fs::metadata(folder.join(&namespace).join(&name)).and_then(|file| file.modified());
                    let age = written.ok().and_then(|written| written.elapsed().ok()).unwrap_or_default();
                    // Anything else, such as a half-written file, has a name that no instance may have.
                    all.extend(kept(&namespace, &name).filter(|_| age >= kept_for));
                }
            }
            Ok(all)
        })
        .await
    }
}

/// What a file is kept for.
fn kept(namespace: &str, file_name: &str) -> Option<Kept> {
    let (name, instance_id) = match file_name.split_once('.') {
        Some((name, id)) => (name, Some(id.parse().ok()?)),
        None => (file_name, None),
    };
    Some(Kept { key: InstanceKey::parse(namespace, name).ok()?, instance_id })
}

/// Renames a file within its folder, so that it outlives a power cut.
fn rename_durably(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(from, to)?;
    std::fs::File::open(to.parent().ok_or(std::io::ErrorKind::InvalidInput)?)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn keeps_in_files_that_only_the_owner_reads_and_forgets() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = FileSecretStore::new(folder.path().join("secrets"));
        let key = InstanceKey::parse("default", "demo").unwrap();
        assert_eq!(secrets.get(&key).await.unwrap_err().kind, FailureKind::NotFound);
        for password in ["first", "p@:/?#%'\"\\ $"] {
            secrets.put(&key, &password.into()).await.unwrap();
            assert_eq!(secrets.get(&key).await.unwrap().expose_secret(), password);
        }
        let settled = Kept { key: key.clone(), instance_id: None };
        assert_eq!(secrets.list(Duration::ZERO).await.unwrap(), [settled]);
        assert!(secrets.list(Duration::from_secs(60)).await.unwrap().is_empty());
        let path = secrets.path(&key);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        secrets.remove(&key).await.unwrap();
        secrets.remove(&key).await.unwrap();
        assert!(!path.exists());
        assert!(secrets.list(Duration::ZERO).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn creates_of_one_name_do_not_touch_each_others_passwords() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = FileSecretStore::new(folder.path());
        let key = InstanceKey::parse("default", "demo").unwrap();
        let (mine, theirs) = (Uuid::now_v7(), Uuid::now_v7());
        secrets.put(&key, &"old".into()).await.unwrap();
        secrets.put_new(&key, mine, &"mine".into()).await.unwrap();
        secrets.put_new(&key, theirs, &"theirs".into()).await.unwrap();
        assert_eq!(secrets.get(&key).await.unwrap().expose_secret(), "old");
        for is_first in [true, false] {
            assert_eq!(secrets.settle(&key, mine).await.unwrap(), is_first);
            assert_eq!(secrets.get(&key).await.unwrap().expose_secret(), "mine");
        }
        let mut kept = secrets.list(Duration::ZERO).await.unwrap();
        kept.sort_by_key(|kept| kept.instance_id);
        assert_eq!(kept.iter().map(|kept| kept.instance_id).collect::<Vec<_>>(), [None, Some(theirs)]);
        secrets.discard(&key, theirs).await.unwrap();
        secrets.discard(&key, theirs).await.unwrap();
        assert!(!secrets.settle(&key, theirs).await.unwrap());
        assert_eq!(secrets.get(&key).await.unwrap().expose_secret(), "mine");
    }
}

//! Where the local platform can't work, or no longer can: folders, users, disks.

#![expect(clippy::unwrap_used, reason = "a failed check is to panic")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use toygres_activities::platform::Platform;
use toygres_activities::platform::local::{DirectoryPorts, LocalConfig, LocalHost, LocalPlatform, diagnose};
use toygres_models::FailureKind;

use crate::support::local::{config, kill, local, postmasters, processes, reachable_folder};
use crate::support::{eventually, key, spec};

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_cannot_be_used_is_refused_with_the_reason() {
    let folder = reachable_folder();
    let opened = |state_dir: &Path| {
        let config = LocalConfig { state_dir: state_dir.to_owned(), ..config(folder.path()) };
        async move { LocalHost::open(config).await.err().map(|failure| failure.message).unwrap_or_default() }
    };
    let long = opened(&folder.path().join("x".repeat(100))).await;
    assert!(long.contains("too long"), "{long}");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(opened(&file).await.contains("not a folder"));
    if rustix::process::geteuid().is_root() {
        let foreign = folder.path().join("foreign");
        std::fs::create_dir(&foreign).unwrap();
        std::os::unix::fs::chown(&foreign, Some(12_345), None).unwrap();
        assert!(opened(&foreign).await.contains("belongs to the user with id 12345"));
        let barred = folder.path().join("barred");
        std::fs::create_dir(&barred).unwrap();
        std::fs::set_permissions(&barred, std::fs::Permissions::from_mode(0o700)).unwrap();
        let message = opened(&barred.join("state")).await;
        assert!(message.contains("can't reach") && message.contains("barred"), "{message}");
    }
    let found = diagnose(&LocalConfig { state_dir: file, ..config(folder.path()) }).await;
    assert!(found.iter().any(|diagnosis| diagnosis.name == "state directory" && !diagnosis.ok), "{found:#?}");
    assert!(found.iter().any(|diagnosis| diagnosis.name == "user" && diagnosis.ok), "{found:#?}");
}

/// A file system of its own, where the test may mount one.
struct Mount(std::path::PathBuf);

impl Mount {
    fn new(path: &Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        Self::mount(path, options).then(|| Self(path.to_owned()))
    }

    fn mount(path: &Path, options: &str) -> bool {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success())
    }

    fn remount(&self, options: &str) {
        assert!(Self::mount(&self.0, &format!("remount,{options}")));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_and_a_read_only_disk_are_named_as_such() {
    let folder = reachable_folder();
    let config = config(folder.path());
    let Some(mount) = Mount::new(&config.state_dir, "size=20m,mode=755") else {
        eprintln!("skipped: this user can't mount a file system");
        return;
    };
    let host = LocalHost::open(config.clone()).await.unwrap();
    let platform = LocalPlatform::new(host.clone(), std::sync::Arc::new(DirectoryPorts::new(&host)));
    let wanted = spec(&local().await, "demo");
    let full = platform.ensure(&wanted).await.unwrap_err();
    assert_eq!((full.kind, full.retryable), (FailureKind::Exhausted, false), "{full:?}");
    assert!(full.message.contains("full") && full.message.contains("free some room"), "{full}");
    assert_eq!(platform.observe(&wanted.key).await.unwrap(), None, "nothing was begun");
    mount.remount("size=300m");
    assert!(platform.ensure(&wanted).await.unwrap());
    // No file system becomes read-only while somebody writes on it.
    platform.shutdown();
    kill(postmasters(&config.state_dir)[0].pid);
    eventually("nothing writes", || async { processes(&config.state_dir, |_| true).is_empty() }).await;
    mount.remount("ro");
    let host = LocalHost::open(config.clone()).await.unwrap();
    let platform = LocalPlatform::new(host.clone(), std::sync::Arc::new(DirectoryPorts::new(&host)));
    let mut other = wanted.clone();
    other.key = key("other");
    for wanted in [&wanted, &other] {
        let failure = platform.ensure(wanted).await.unwrap_err();
        assert_eq!((failure.kind, failure.retryable), (FailureKind::Platform, false), "{failure:?}");
        assert!(failure.message.contains("ead-only file system"), "{failure}");
    }
    let failure = platform.remove(&wanted.key).await.unwrap_err();
    assert!(failure.message.contains("ead-only file system"), "{failure}");
    mount.remount("rw");
    assert!(!platform.ensure(&wanted).await.unwrap(), "nothing was lost");
    assert!(platform.remove(&wanted.key).await.unwrap());
    assert_eq!(postmasters(&config.state_dir), []);
}

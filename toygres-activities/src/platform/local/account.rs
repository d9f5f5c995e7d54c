//! Whom the servers run as. PostgreSQL refuses to run as root.

use std::path::Path;

use nix::unistd::User;
use tokio::process::Command;
use toygres_models::{Failure, FailureKind};

use super::files::{Owner, first_unreachable};
use super::owners;

/// The system user that toygres makes for itself when it runs as root.
const OWN_USER: &str = "toygres";

/// Whom the servers run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The operating system's name for it.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Why it was chosen, for `doctor`.
    pub chosen: &'static str,
    /// Whether it isn't ourselves.
    pub switches: bool,
    /// Whether each instance's server has a user of its own instead: then this account's are `initdb` and the control
    /// database.
    pub separates: bool,
    /// The first of their ids.
    pub first_instance_id: u32,
}

/// How the account is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Makes the user `toygres` if it isn't there.
    Create,
    /// Changes nothing on the machine.
    Report,
}

// By getpwnam_r and getpwuid_r: listing all users goes through state that threads share.

fn find(name: &str) -> Option<(u32, u32)> {
    let user = User::from_name(name).ok().flatten()?;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

fn name_of(uid: u32) -> Option<String> {
    User::from_uid(uid.into()).ok().flatten().map(|user| user.name)
}

impl Account {
    /// Chooses: `wanted`, else a system user of toygres's own, else `postgres`. Not as root: ourselves.
    pub(super) async fn choose(wanted: Option<&str>, state_dir: &Path, missing: Missing) -> Result<Self, Failure> {
        let first_instance_id = owners::first_of(state_dir);
        let own_uid = rustix::process::geteuid().as_raw();
        let own_gid = rustix::process::getegid().as_raw();
        let own_name = name_of(own_uid).ok_or_else(|| {
            Failure::permanent(
                FailureKind::Platform,
                format!("user id {own_uid} has no name on this machine, and PostgreSQL wants one; add it to /etc/passwd"),
            )
        })?;
        if own_uid != 0 {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != own_name) {
                return Err(Failure::permanent(
                    FailureKind::InvalidInput,
                    format!(
                        "only root can run servers as another user, so {wanted:?} can't be used; leave it out, or run toygres as {wanted}"
                    ),
                ));
            }
            return Ok(Self {
                name: own_name,
                uid: own_uid,
                gid: own_gid,
                chosen: "the user that toygres runs as",
                switches: false,
                separates: false,
                first_instance_id,
            });
        }
        let separates = owners::can_be_used();
        let made = |name: &str, (uid, gid), chosen| {
            Ok(Self { name: name.to_owned(), uid, gid, chosen, switches: true, separates, first_instance_id })
        };
        if let Some(wanted) = wanted {
            return match find(wanted) {
                Some((0, _)) => Err(Failure::permanent(
                    FailureKind::InvalidInput,
                    format!("PostgreSQL refuses to run as {wanted:?}, which is root; name another user, or none"),
                )),
                Some(ids) => made(wanted, ids, "as configured"),
                None => Err(Failure::permanent(
                    FailureKind::InvalidInput,
                    format!("there is no user {wanted:?} on this machine; create it, name another one, or none"),
                )),
            };
        }
        if let Some(ids) = find(OWN_USER) {
            return made(OWN_USER, ids, "toygres's own system user");
        }
        if missing == Missing::Create {
            let created = create_own_user().await;
            // Another toygres may be creating it at this moment: then useradd refused, or the user
            // can't be seen yet.
            for _ in 0..20 {
                if let Some(ids) = find(OWN_USER) {
                    tracing::info!(user.name = OWN_USER, created, "the servers' system user is there");
                    return made(OWN_USER, ids, "toygres's own system user, just created");
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
        if let Some(ids) = find("postgres") {
            return made("postgres", ids, "the machine's PostgreSQL user, as there is none of toygres's own");
        }
        Err(Failure::permanent(
            FailureKind::Platform,
            "PostgreSQL refuses to run as root, and there is no user to run it as; \
             run `useradd --system --no-create-home toygres`, or run toygres as an ordinary user",
        ))
    }

    /// The mode and owner of a file that a server of that user may read and not write, as far as the operating system can
    /// tell the two apart.
    pub(super) fn readable_by(&self, server: Owner) -> (u32, Option<Owner>) {
        if self.switches { (0o640, Some((rustix::process::geteuid().as_raw(), server.1))) } else { (0o600, None) }
    }

    /// The mode and owner of a folder that such a server passes through, and nobody else.
    pub(super) fn passable_by(&self, server: Owner) -> (u32, Option<Owner>) {
        if self.switches { (0o710, Some((rustix::process::geteuid().as_raw(), server.1))) } else { (0o700, None) }
    }

    /// As owner of files; `None` when they belong to us anyway.
    pub(super) fn owner(&self) -> Option<Owner> {
        self.switches.then_some((self.uid, self.gid))
    }

    /// Whom the server of an instance with that port is to run as.
    pub(super) fn of_port(&self, port: u16) -> Owner {
        if self.separates { owners::of_port(self.first_instance_id, port) } else { (self.uid, self.gid) }
    }

    /// Whom the server runs as whose folder this is: the owner of it. What it isn't made for runs as this account.
    pub(super) fn of_folder(&self, folder: &Path) -> Owner {
        use std::os::unix::fs::MetadataExt;
        match std::fs::symlink_metadata(folder) {
            Ok(found) if self.switches && owners::is_instances(found.uid()) => (found.uid(), found.uid()),
            _ => (self.uid, self.gid),
        }
    }

    /// A command that runs as this account.
    pub(super) fn command(&self, program: &Path) -> Command {
        self.command_as(program, (self.uid, self.gid))
    }

    /// A command that runs as that user, with none of our environment but what PostgreSQL needs, nothing to read, in a
    /// process group of its own so that a Ctrl-C isn't for it.
    pub(super) fn command_as(&self, program: &Path, (uid, gid): Owner) -> Command {
        let mut command = Command::new(program);
        command.env_clear().stdin(std::process::Stdio::null()).process_group(0);
        for (name, value) in std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "TZ") {
            command.env(name, value);
        }
        command.env("LANG", "C.UTF-8");
        if self.switches {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Refuses a path that the account, or an instance's user, can't reach, naming the folder that bars the way.
    pub(super) fn check_reaches(&self, path: &Path, what: &str) -> Result<(), Failure> {
        let instances =
            || self.separates.then(|| first_unreachable(path, owners::of_port(self.first_instance_id, u16::MAX))).flatten();
        match first_unreachable(path, (self.uid, self.gid)).or_else(instances) {
            Some(barred) if self.switches => Err(Failure::permanent(
                FailureKind::Platform,
                format!(
                    "the servers run as {:?}, who can't reach {what} {}: {} lets only its owner in; \
                     choose a place outside it, such as /var/lib/toygres",
                    self.name,
                    path.display(),
                    barred.display()
                ),
            )),
            _ => Ok(()),
        }
    }
}

async fn create_own_user() -> bool {
    let mut command = Command::new("useradd");
    command.args(["--system", "--no-create-home", "--shell", "/usr/sbin/nologin", OWN_USER]);
    match command.stdin(std::process::Stdio::null()).output().await {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            tracing::warn!(error = %String::from_utf8_lossy(&output.stderr).trim(), "useradd refused to create the user toygres");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "could not run useradd to create the user toygres");
            false
        }
    }
}

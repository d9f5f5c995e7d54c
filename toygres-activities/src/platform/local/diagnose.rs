//! What the local platform finds on this machine, for `toygres doctor`. Changes nothing.

use std::path::Path;

use toygres_models::Failure;

use super::LocalConfig;
use super::account::{Account, Missing};
use super::confinement;
use super::files::first_unreachable;
use super::host::{check_owner, check_port_range, check_socket_path};
use super::programs::archives::NotPublished;
use super::programs::find_program;
use super::programs::versions::Versions;
use super::server::is_free;
use crate::platform::Diagnosis;

/// Least room for a fresh instance and its first WAL, with something to spare.
const LOW_DISK_BYTES: u64 = 1 << 30;

fn fine(name: &'static str, message: impl Into<String>) -> Diagnosis {
    Diagnosis { name, ok: true, message: message.into(), remedy: None }
}

fn wrong(name: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Diagnosis {
    Diagnosis { name, ok: false, message: message.into(), remedy: Some(remedy.into()) }
}

fn checked(name: &'static str, result: Result<(), Failure>, good: String) -> Diagnosis {
    match result {
        Ok(()) => fine(name, good),
        Err(failure) => Diagnosis { name, ok: false, message: failure.message, remedy: None },
    }
}

/// Looks at everything that the local platform needs.
pub async fn diagnose(config: &LocalConfig) -> Vec<Diagnosis> {
    let versions = Versions::new(&config.cache_dir, &config.state_dir, config.default_version);
    let (at_hand, published, psql) =
        tokio::join!(versions.at_hand(), versions.archives.newest(), find_program("psql", 0, &config.cache_dir));
    let mut found = Vec::new();
    for programs in &at_hand {
        found.push(fine("postgresql", format!("PostgreSQL {} in {}", programs.postgres_version, programs.bin_dir.display())));
    }
    let reachable = published.as_ref().is_ok_and(|published| !published.is_empty());
    if at_hand.is_empty() {
        found.push(if reachable {
            fine("postgresql", "no PostgreSQL 14 to 18 on this machine; the first create fetches one")
        } else {
            wrong(
                "postgresql",
                "no PostgreSQL 14 to 18 on this machine, and no archive to fetch it from",
                "install it (Debian: apt-get install postgresql), or give this machine a way to the internet",
            )
        });
    }
    found.push(match published {
        Ok(published) => {
            let list: Vec<_> = published.iter().map(|(version, archive)| format!("{version} ({})", archive.name())).collect();
            fine("archives", format!("can be fetched: {}", list.join(", ")))
        }
        Err(NotPublished::Unknown) => wrong("archives", "the archives have nothing for this machine", "install PostgreSQL"),
        Err(NotPublished::Unreachable(words)) => wrong(
            "archives",
            format!("can't be reached, so only the versions on this machine can be used ({words})"),
            "check this machine's way to the internet (github.com, repo1.maven.org), or install other versions yourself",
        ),
    });
    found.push(match psql {
        Some(path) => fine("psql", path.display().to_string()),
        None => wrong(
            "psql",
            "not on this machine, so `toygres psql` can't work; everything else does",
            "install the PostgreSQL client (Debian: apt-get install postgresql-client)",
        ),
    });
    let account = Account::choose(config.run_as_user.as_deref(), &config.state_dir, Missing::Report).await;
    found.push(match &account {
        Ok(account) => {
            let who = if account.separates { "initdb and the control database" } else { "servers" };
            fine("user", format!("{who} run as {:?} (id {}): {}", account.name, account.uid, account.chosen))
        }
        Err(failure) => Diagnosis { name: "user", ok: false, message: failure.message.clone(), remedy: None },
    });
    found.extend(separation(account.as_ref().ok()));
    found.extend(folders(config, account.as_ref().ok()));
    let free = config.port_range.clone().filter(|port| is_free(*port)).take(100).count();
    let shown = format!("{}-{}", config.port_range.start(), config.port_range.end());
    found.push(match check_port_range(&config.port_range) {
        Ok(()) if free == 0 => wrong("ports", format!("no port of {shown} is free"), "give toygres another port range"),
        result => checked("ports", result, format!("{shown}, some are free")),
    });
    found
}

/// What keeps instances apart, and their superusers from everything else.
fn separation(account: Option<&Account>) -> Vec<Diagnosis> {
    let (ok, message) = confinement::description();
    let remedy = (!ok).then(|| "give this machine a Linux kernel with Landlock (5.13 or newer, best 6.12)".to_owned());
    let mut found = vec![Diagnosis { name: "landlock", ok, message, remedy }];
    found.extend(account.filter(|account| account.switches).map(|account| {
        if account.separates {
            let first = account.of_port(0).0;
            return fine("user ids", format!("each instance's server runs as a user of its own: {first} and its port"));
        }
        wrong(
            "user ids",
            format!("this container has no user ids for instances, so all servers run as {:?}", account.name),
            "run toygres in a user namespace with all ids, or on the machine itself",
        )
    }));
    found
}

fn folders(config: &LocalConfig, account: Option<&Account>) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    let state_dir = std::path::absolute(&config.state_dir).unwrap_or_else(|_| config.state_dir.clone());
    // Of what isn't there yet, its nearest parent counts.
    let nearest = |path: &Path| path.ancestors().find(|path| path.is_dir()).map(Path::to_owned);
    let fits = check_owner(&state_dir).and_then(|()| check_socket_path(&state_dir));
    for (name, path, fits) in [("state directory", &state_dir, fits), ("cache directory", &config.cache_dir, Ok(()))] {
        found.push(match nearest(path) {
            Some(there) if fits.is_ok() && rustix::fs::access(&there, rustix::fs::Access::WRITE_OK).is_err() => {
                wrong(name, format!("{} can't be written to", there.display()), "choose another one, or make it writable")
            }
            _ => checked(name, fits, path.display().to_string()),
        });
    }
    if let Some(account) = account.filter(|account| account.switches)
        && let Some(there) = nearest(&state_dir)
        // The state directory itself is opened to the user when toygres starts.
        && let Some(parent) = if there == state_dir { there.parent().map(Path::to_owned) } else { Some(there) }
        && let Some(barred) = first_unreachable(&parent, (account.uid, account.gid))
    {
        found.push(wrong(
            "state directory",
            format!("{:?}, whom servers run as, can't pass through {}", account.name, barred.display()),
            "choose a state directory outside it, such as /var/lib/toygres",
        ));
    }
    if let Some(there) = nearest(&state_dir)
        && let Ok(room) = rustix::fs::statvfs(&there)
    {
        let bytes = room.f_bavail.saturating_mul(room.f_frsize);
        let message = format!("{:.1} GB free on the file system of {}", bytes as f64 / 1e9, state_dir.display());
        found.push(if bytes < LOW_DISK_BYTES {
            wrong("disk", message, "free some room: a fresh instance takes about 40 MB, and its log of changes up to 256 MB")
        } else {
            fine("disk", message)
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_what_is_wrong_where_nothing_can_be_opened() {
        let config = LocalConfig { state_dir: format!("/proc/{}", "x".repeat(120)).into(), ..LocalConfig::default() };
        let found = folders(&config, None);
        assert!(found.iter().any(|diagnosis| !diagnosis.ok && diagnosis.message.contains("too long")), "{found:#?}");
    }
}

//! Which PostgreSQL versions there are for an instance: those at hand, and those to be fetched.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toygres_models::whole_file::{Durability, write_whole};
use toygres_models::{Failure, FailureKind, PostgresVersion};

use super::Programs;
use super::archives::{Archives, NotPublished};
use crate::platform::OfferedVersion;
use crate::platform::local::files::{blocking, failed};

pub(in crate::platform::local) struct Versions {
    cache_dir: PathBuf,
    /// Where the major stands that is the default, once a create took it.
    default_file: PathBuf,
    /// What was set instead.
    default: Option<PostgresVersion>,
    pub(in crate::platform::local) archives: Arc<Archives>,
}

fn list(versions: &[PostgresVersion]) -> String {
    versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Versions {
    pub(in crate::platform::local) fn new(cache_dir: &Path, state_dir: &Path, default: Option<PostgresVersion>) -> Self {
        let default_file = state_dir.join("default-version");
        Self { cache_dir: cache_dir.to_owned(), default_file, default, archives: Arc::new(Archives::new(cache_dir)) }
    }

    /// The programs on this machine, newest first.
    pub(in crate::platform::local) async fn at_hand(&self) -> Vec<Programs> {
        Programs::discover(&self.cache_dir).await
    }

    /// See [`Platform::versions`](crate::platform::Platform::versions).
    pub(in crate::platform::local) async fn offered(&self) -> Vec<OfferedVersion> {
        let (at_hand, published, default) = tokio::join!(self.at_hand(), self.archives.newest(), self.default());
        let mut offered: Vec<OfferedVersion> = Vec::new();
        for programs in at_hand {
            if offered.iter().all(|known| known.postgres_version != programs.postgres_version) {
                offered.push(OfferedVersion {
                    postgres_version: programs.postgres_version,
                    at_hand: true,
                    source: programs.source,
                    default: false,
                });
            }
        }
        for (version, archive) in published.unwrap_or_default() {
            if offered.iter().all(|known| known.postgres_version != version) {
                offered.push(OfferedVersion {
                    postgres_version: version,
                    at_hand: false,
                    source: archive.name().into(),
                    default: false,
                });
            }
        }
        // What is at hand goes before what would have to be fetched.
        let is_default = |offered: &&mut OfferedVersion| default.is_none_or(|default| default.accepts(offered.postgres_version));
        if let Some(first) = offered.iter_mut().find(is_default) {
            first.default = true;
        }
        offered.sort_by_key(|version| Reverse(version.postgres_version));
        offered
    }

    /// The version of a create that names none, where one was set or taken before.
    async fn default(&self) -> Option<PostgresVersion> {
        if self.default.is_some() {
            return self.default;
        }
        let file = self.default_file.clone();
        blocking(move || Ok(std::fs::read_to_string(file).ok())).await.ok().flatten()?.trim().parse().ok()
    }

    /// Those of these programs that a create takes which names no version.
    pub(in crate::platform::local) async fn default_of<'a>(&self, at_hand: &'a [Programs]) -> Option<&'a Programs> {
        let default = self.default().await;
        at_hand.iter().find(|programs| default.is_none_or(|default| default.accepts(programs.postgres_version)))
    }

    /// See [`Platform::keep_default_version`](crate::platform::Platform::keep_default_version): whatever is fetched or
    /// installed later.
    pub(in crate::platform::local) async fn keep_default(&self, version: PostgresVersion) {
        if self.default().await.is_some() {
            return;
        }
        let (file, major) = (self.default_file.clone(), format!("{}\n", version.major()));
        let kept = blocking(move || {
            write_whole(&file, major.as_bytes(), 0o644, None, Durability::Repairable).map_err(failed("write", &file))
        });
        if let Err(error) = kept.await {
            tracing::warn!(%error, "could not keep the default version");
        }
    }

    /// See [`Platform::resolve_version`](crate::platform::Platform::resolve_version).
    pub(in crate::platform::local) async fn resolve(&self, wanted: Option<PostgresVersion>) -> Result<PostgresVersion, Failure> {
        let default = if wanted.is_none() { self.default().await } else { None };
        match wanted.or(default) {
            Some(wanted) => self.find(wanted).await,
            None => self.newest().await,
        }
    }

    /// The newest at hand; if there is none, the newest that can be fetched.
    pub(in crate::platform::local) async fn newest(&self) -> Result<PostgresVersion, Failure> {
        if let Some(programs) = self.at_hand().await.first() {
            return Ok(programs.postgres_version);
        }
        match self.archives.newest().await.as_deref() {
            Ok([(version, _), ..]) => Ok(*version),
            Ok([]) | Err(_) => Err(Failure::transient(
                FailureKind::ProgramsUnavailable,
                "there is no PostgreSQL 14 to 18 on this machine, and the archives can't be reached; \
                 install it (Debian: apt-get install postgresql), or give this machine a way to the internet",
            )),
        }
    }

    async fn find(&self, wanted: PostgresVersion) -> Result<PostgresVersion, Failure> {
        let at_hand: Vec<_> = self.at_hand().await.iter().map(|programs| programs.postgres_version).collect();
        if let Some(version) = at_hand.iter().find(|version| wanted.accepts(**version)) {
            return Ok(*version);
        }
        match self.archives.locate(wanted).await {
            Ok((version, _)) => Ok(version),
            Err(NotPublished::Unknown) => {
                let published = self.archives.newest().await.unwrap_or_default();
                let mut known = at_hand;
                known.extend(published.into_iter().map(|(version, _)| version));
                known.sort_by_key(|version| Reverse(*version));
                known.dedup();
                Err(Failure::permanent(
                    FailureKind::InvalidInput,
                    format!("postgres_version: there is no PostgreSQL {wanted}; known are {}; nothing was changed", list(&known)),
                )
                .with_field("postgres_version"))
            }
            Err(NotPublished::Unreachable(words)) => Err(Failure::transient(
                FailureKind::ProgramsUnavailable,
                format!(
                    "PostgreSQL {wanted} is not on this machine, and the archives can't be reached ({words}); at hand are: {}. \
                     Choose one of those, install PostgreSQL {wanted}, or give this machine a way to the internet",
                    if at_hand.is_empty() { "none".into() } else { list(&at_hand) }
                ),
            )),
        }
    }

    /// The programs of a full version, fetched if they aren't at hand.
    pub(in crate::platform::local) async fn obtain(&self, version: PostgresVersion) -> Result<Programs, Failure> {
        if let Some(programs) = self.at_hand().await.into_iter().find(|programs| version.accepts(programs.postgres_version)) {
            return Ok(programs);
        }
        let version = if version.minor().is_some() { version } else { self.find(version).await? };
        let bin_dir = self.archives.fetch(version).await?;
        Ok(Programs { bin_dir, postgres_version: version, source: "cache".into() })
    }

    /// The programs to run an existing data directory with: those it ran with, else the newest of
    /// the same major, whose minors share one format.
    pub(in crate::platform::local) async fn obtain_for(
        &self,
        version: PostgresVersion,
        bin_dir: Option<&Path>,
    ) -> Result<Programs, Failure> {
        let at_hand = self.at_hand().await;
        let same_major = |programs: &&Programs| programs.postgres_version.major() == version.major();
        let chosen = at_hand
            .iter()
            .filter(same_major)
            .find(|programs| bin_dir.is_some_and(|bin_dir| bin_dir == programs.bin_dir))
            .or_else(|| at_hand.iter().find(same_major));
        if let Some(programs) = chosen {
            return Ok(programs.clone());
        }
        match self.obtain(version).await {
            Err(failure) => Err(Failure {
                message: format!("the PostgreSQL {} programs that its data needs are gone: {failure}", version.major()),
                ..failure
            }),
            Ok(programs) => Ok(programs),
        }
    }
}

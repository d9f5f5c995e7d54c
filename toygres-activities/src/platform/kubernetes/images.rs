//! Which PostgreSQL versions there are: those that an image is configured for.

use toygres_models::version::SUPPORTED_MAJORS;
use toygres_models::{Failure, FailureKind, Invalid, PostgresVersion};

use crate::platform::OfferedVersion;

const REPOSITORY: &str = "docker.io/library/postgres";

/// The images, newest version first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images(Vec<(PostgresVersion, String)>);

impl Default for Images {
    /// The official image of each supported major.
    fn default() -> Self {
        let majors = SUPPORTED_MAJORS.rev().filter_map(|major| major.to_string().parse().ok());
        Self(majors.map(|version| (version, format!("{REPOSITORY}:{version}"))).collect())
    }
}

/// Whether it can be an image's reference. What it names is the registry's business.
fn is_reference(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b);
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 500 && text.bytes().all(allowed) && text.starts_with(edge) && text.ends_with(edge)
}

impl Images {
    /// From a list such as `18,17=17.6-bookworm,15=sha256:…,16=registry.example/postgres:16`:
    /// versions, each with a tag or a digest in `repository`, or with a whole reference. A version
    /// alone is its own tag. Without a list: each supported major.
    ///
    /// # Errors
    /// If a version isn't one, is listed twice, or the image isn't a reference.
    pub fn parse(repository: Option<&str>, list: Option<&str>) -> Result<Self, Invalid> {
        let refuse = |problem: String| Invalid::new("images", problem);
        let repository = repository.unwrap_or(REPOSITORY);
        if !is_reference(repository) {
            return Err(refuse(format!("{repository:?} is not an image's repository")));
        }
        let all = Self::default().0.iter().map(|(version, _)| version.to_string()).collect::<Vec<_>>().join(",");
        let mut images = Vec::new();
        for entry in list.unwrap_or(&all).split(',').map(str::trim) {
            let (version, tag) = entry.split_once('=').unwrap_or((entry, entry));
            let version: PostgresVersion = version.parse().map_err(|invalid: Invalid| refuse(invalid.problem))?;
            let image = match tag {
                digest if digest.starts_with("sha256:") => format!("{repository}@{digest}"),
                whole if whole.contains('/') => whole.to_owned(),
                tag => format!("{repository}:{tag}"),
            };
            if !is_reference(&image) {
                return Err(refuse(format!("{image:?} is not an image's reference")));
            }
            if images.iter().any(|(known, _)| *known == version) {
                return Err(refuse(format!("{version} is listed twice")));
            }
            images.push((version, image));
        }
        images.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(Self(images))
    }

    /// See [`Platform::versions`](crate::platform::Platform::versions).
    pub(super) fn offered(&self) -> Vec<OfferedVersion> {
        let offer = |(index, (version, image)): (usize, &(PostgresVersion, String))| OfferedVersion {
            postgres_version: *version,
            // Whether a node has it already is the nodes' business.
            at_hand: true,
            source: image.clone(),
            default: index == 0,
        };
        self.0.iter().enumerate().map(offer).collect()
    }

    /// The version and its image that `wanted` takes; the newest for `None`.
    ///
    /// # Errors
    /// Permanent, and listing the known ones.
    pub(super) fn choose(&self, wanted: Option<PostgresVersion>) -> Result<(PostgresVersion, &str), Failure> {
        let chosen = self.0.iter().find(|(version, _)| wanted.is_none_or(|wanted| wanted.accepts(*version)));
        chosen.map(|(version, image)| (*version, image.as_str())).ok_or_else(|| {
            let known = self.0.iter().map(|(version, _)| version.to_string()).collect::<Vec<_>>().join(", ");
            let wanted = wanted.map(|wanted| wanted.to_string()).unwrap_or_default();
            Failure::permanent(
                FailureKind::InvalidInput,
                format!("postgres_version: there is no image for PostgreSQL {wanted}; known are {known}; nothing was changed"),
            )
            .with_field("postgres_version")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> PostgresVersion {
        text.parse().unwrap()
    }

    #[test]
    fn each_supported_major_has_an_official_image_and_the_newest_is_the_default() {
        let images = Images::parse(None, None).unwrap();
        assert_eq!(images, Images::default());
        assert_eq!(images.choose(None).unwrap(), (version("18"), "docker.io/library/postgres:18"));
        assert_eq!(images.choose(Some(version("14"))).unwrap().1, "docker.io/library/postgres:14");
        assert_eq!(images.offered().iter().filter(|offered| offered.default).count(), 1);
    }

    #[test]
    fn tags_digests_and_whole_references_may_be_given() {
        let list = "15=sha256:0123abcd, 17.6=17.6-bookworm,16=other.example:5000/pg:x,17";
        let images = Images::parse(Some("registry.example/postgres"), Some(list)).unwrap();
        let image = |wanted: &str| images.choose(Some(version(wanted))).map(|chosen| chosen.1.to_owned());
        assert_eq!(image("15").unwrap(), "registry.example/postgres@sha256:0123abcd");
        assert_eq!(image("17").unwrap(), "registry.example/postgres:17.6-bookworm", "the newest of a major");
        assert_eq!(image("16").unwrap(), "other.example:5000/pg:x");
        let failure = image("17.4").unwrap_err();
        assert!(failure.message.contains("17.4") && failure.message.contains("17.6, 17, 16, 15"), "{failure}");
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for bad in ["", "13", "x", "17=", "17=a b", "17=a\nb: c", "17,17", "17=/x", "17=\"", "17={{x}}"] {
            assert!(Images::parse(None, Some(bad)).is_err(), "{bad:?} was accepted");
        }
        assert!(Images::parse(Some("a\"b"), None).is_err());
    }
}

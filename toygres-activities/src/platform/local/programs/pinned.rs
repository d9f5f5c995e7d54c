//! The builds that toygres knows: what an archive serves under their version is taken only if it is that build. The table is
//! made by `deploy/pin-programs`.

use semver::Version;

/// Version, target and SHA-256 of zonky's builds.
const PINNED: &str = include_str!("pinned.tsv");

/// The SHA-256 in hexadecimal of zonky's build of that version for this machine, where toygres knows it.
pub(super) fn sha256_of(version: &Version) -> Option<&'static str> {
    find(version, &target())
}

/// As zonky names it.
fn target() -> String {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        system => system,
    };
    let processor = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64v8",
        processor => processor,
    };
    format!("{system}-{processor}")
}

fn find(version: &Version, target: &str) -> Option<&'static str> {
    let (version, mut lines) = (version.to_string(), PINNED.lines().map(|line| line.split('\t')));
    lines.find_map(|mut fields| {
        let is_it = fields.next() == Some(&version) && fields.next() == Some(target);
        is_it.then(|| fields.next()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use toygres_models::version::SUPPORTED_MAJORS;

    use super::*;

    #[test]
    fn every_supported_major_is_known_on_every_target_by_hashes_of_its_own() {
        for target in ["linux-amd64", "linux-arm64v8", "darwin-amd64", "darwin-arm64v8"] {
            for major in SUPPORTED_MAJORS {
                let known = PINNED.lines().filter(|line| line.starts_with(&format!("{major}.")) && line.contains(target));
                assert!(known.count() > 0, "{major} on {target}");
            }
        }
        let hashes: BTreeSet<_> = PINNED.lines().filter_map(|line| line.rsplit('\t').next()).collect();
        assert_eq!(hashes.len(), PINNED.lines().count());
        assert!(hashes.iter().all(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())));
        assert_eq!(find(&Version::new(1, 0, 0), "linux-amd64"), None);
        assert_eq!(find(&Version::new(18, 0, 0), "plan9-amd64"), None);
    }
}

//! The certificate and the key of an instance. They are beside its data directory, not in it: a base backup copies the
//! whole of that.

use std::path::Path;
use std::time::SystemTime;

use toygres_models::Failure;

use super::files::{Durability, Owner, write_whole};
use crate::platform::certificates::{CertificateAuthority, DAY, RENEW_AFTER};

/// The names of an instance's certificate and its key in its folder.
pub(super) const CERTIFICATE_FILE: &str = "server.crt";
pub(super) const KEY_FILE: &str = "server.key";

impl CertificateAuthority {
    /// Gives the instance in `home` a certificate if it has none, an old one, or another CA's. `true` if
    /// it was given one.
    pub(super) fn certify(&self, home: &Path, owner: Option<Owner>) -> Result<bool, Failure> {
        let (certificate_path, key_path) = (home.join(CERTIFICATE_FILE), home.join(KEY_FILE));
        if key_path.exists() && self.is_current(&certificate_path) {
            return Ok(false);
        }
        let issued = self.issue(["localhost", "127.0.0.1", "::1"])?;
        // With the CA's behind it, by which is_current knows whose it is. A cut between the two
        // leaves a pair that doesn't match, so the old certificate goes first.
        super::files::remove_file(&certificate_path)?;
        write_whole(&key_path, issued.key_pem.as_bytes(), 0o600, owner, Durability::Repairable)?;
        write_whole(&certificate_path, issued.chain_pem.as_bytes(), 0o600, owner, Durability::Repairable)?;
        Ok(true)
    }

    fn is_current(&self, certificate_path: &Path) -> bool {
        let Ok(chain) = std::fs::read_to_string(certificate_path) else { return false };
        let written = std::fs::metadata(certificate_path).and_then(|found| found.modified());
        // Written in the future: the clock was set back, perhaps to before it is valid.
        let young = written.is_ok_and(|written| match SystemTime::now().duration_since(written) {
            Ok(age) => age < RENEW_AFTER,
            Err(ahead) => ahead.duration() < DAY / 2,
        });
        young && chain.starts_with("-----BEGIN CERTIFICATE-----") && chain.ends_with(self.certificate_pem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_old_broken_or_anothers() {
        let folder = tempfile::tempdir().unwrap();
        let home = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(folder.path()).unwrap();
        assert!(ca.certify(home.path(), None).unwrap());
        assert!(!ca.certify(home.path(), None).unwrap());
        let certificate = home.path().join(CERTIFICATE_FILE);
        let old = SystemTime::now() - RENEW_AFTER - DAY;
        std::fs::File::options().write(true).open(&certificate).unwrap().set_modified(old).unwrap();
        assert!(ca.certify(home.path(), None).unwrap());
        std::fs::write(&certificate, "").unwrap();
        assert!(ca.certify(home.path(), None).unwrap());
        let other = tempfile::tempdir().unwrap();
        assert!(CertificateAuthority::open(other.path()).unwrap().certify(home.path(), None).unwrap());
    }
}

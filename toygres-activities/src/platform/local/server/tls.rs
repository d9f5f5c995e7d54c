//! The certificate and the key of an instance. They are beside its data directory, not in it: a base backup copies the
//! whole of that.

use std::path::Path;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use toygres_models::Failure;

use crate::platform::certificates::{CertificateAuthority, ends_at};
use crate::platform::local::files::{Durability, Owner, write_whole};

/// The names of an instance's certificate and its key in its folder.
pub(in crate::platform::local) const CERTIFICATE_FILE: &str = "server.crt";
pub(in crate::platform::local) const KEY_FILE: &str = "server.key";

impl CertificateAuthority {
    /// Gives the instance in `home` a certificate if it has none, an old one, or another CA's. `true` if
    /// it was given one.
    pub(in crate::platform::local) fn certify(&self, home: &Path, mode: u32, owner: Option<Owner>) -> Result<bool, Failure> {
        let (certificate_path, key_path) = (home.join(CERTIFICATE_FILE), home.join(KEY_FILE));
        let is_current =
            || std::fs::read_to_string(&certificate_path).is_ok_and(|chain| self.is_current(&chain, SystemTime::now()));
        if key_path.exists() && is_current() {
            return Ok(false);
        }
        let issued = self.issue(["localhost", "127.0.0.1", "::1"])?;
        // A cut between the two leaves a pair that doesn't match, so the old certificate goes first.
        crate::platform::local::files::remove_file(&certificate_path)?;
        write_whole(&key_path, issued.key_pem.as_bytes(), mode, owner, Durability::Repairable)?;
        write_whole(&certificate_path, issued.chain_pem.as_bytes(), mode, owner, Durability::Repairable)?;
        Ok(true)
    }
}

/// When the certificate of the instance in `home` ends.
pub(in crate::platform::local) fn certificate_ends_at(home: &Path) -> Option<DateTime<Utc>> {
    ends_at(&std::fs::read_to_string(home.join(CERTIFICATE_FILE)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::certificates::Signs;

    #[test]
    fn a_certificate_is_made_anew_when_it_is_missing_broken_or_anothers() {
        let folder = tempfile::tempdir().unwrap();
        let home = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(folder.path(), Signs::Instances).unwrap();
        assert!(ca.certify(home.path(), 0o600, None).unwrap());
        assert!(!ca.certify(home.path(), 0o600, None).unwrap());
        let certificate = home.path().join(CERTIFICATE_FILE);
        std::fs::remove_file(home.path().join(KEY_FILE)).unwrap();
        assert!(ca.certify(home.path(), 0o600, None).unwrap());
        std::fs::write(&certificate, "").unwrap();
        assert!(ca.certify(home.path(), 0o600, None).unwrap());
        let other = tempfile::tempdir().unwrap();
        assert!(CertificateAuthority::open(other.path(), Signs::Instances).unwrap().certify(home.path(), 0o600, None).unwrap());
    }
}

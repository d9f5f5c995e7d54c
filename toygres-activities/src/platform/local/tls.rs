//! TLS: a CA of toygres's own, and a certificate of every instance's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use toygres_models::{Failure, FailureKind};

use super::files::{Durability, Owner, failed, write_whole};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_DAYS: u32 = 3650;
const LEAF_DAYS: u32 = 365;
/// A certificate is made anew when half of its life is over.
const RENEW_AFTER: Duration = Duration::from_secs(LEAF_DAYS as u64 / 2 * 24 * 60 * 60);

/// The names of an instance's certificate and its key in its data directory.
pub(super) const CERTIFICATE_FILE: &str = "server.crt";
pub(super) const KEY_FILE: &str = "server.key";

/// The certificate authority of one state directory.
pub(super) struct CertificateAuthority {
    certificate_path: PathBuf,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn broken(error: rcgen::Error) -> Failure {
    Failure::permanent(FailureKind::Internal, format!("could not make a TLS certificate: {error}"))
}

fn params(common_name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    // A day back, for clients whose clock is behind.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

impl CertificateAuthority {
    /// Reads `ca.crt` and `ca.key` in `folder`, or makes them.
    pub(super) fn open(folder: &Path) -> Result<Self, Failure> {
        let (certificate_path, key_path) = (folder.join("ca.crt"), folder.join("ca.key"));
        let unusable = |error: &dyn std::fmt::Display| {
            Failure::permanent(
                FailureKind::Platform,
                format!(
                    "the certificate authority in {} can't be used: {error}; nothing was changed. Restore ca.crt and ca.key, \
                     or remove both to have new ones made, which clients then have to trust anew",
                    folder.display()
                ),
            )
        };
        // The key is written last, so a pair with a key is whole; without one, what is there is half-made.
        if !key_path.exists() {
            let key = KeyPair::generate().map_err(broken)?;
            let mut params = params("toygres CA", CA_DAYS);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            // A name of its own for each CA, so that clients with several never confuse them.
            params.distinguished_name.push(DnType::OrganizationalUnitName, uuid::Uuid::new_v4().to_string());
            let certificate = params.self_signed(&key).map_err(broken)?;
            write_whole(&certificate_path, certificate.pem().as_bytes(), 0o644, None, Durability::Synced)?;
            write_whole(&key_path, key.serialize_pem().as_bytes(), 0o600, None, Durability::Synced)?;
        }
        let certificate_pem = std::fs::read_to_string(&certificate_path).map_err(failed("read", &certificate_path))?;
        let key_pem = std::fs::read_to_string(&key_path).map_err(failed("read", &key_path))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|error| unusable(&error))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|error| unusable(&error))?;
        Ok(Self { certificate_path, certificate_pem, issuer })
    }

    pub(super) fn certificate_path(&self) -> &Path {
        &self.certificate_path
    }

    /// Gives the data directory a certificate if it has none, an old one, or another CA's. `true` if
    /// it was given one.
    pub(super) fn certify(&self, data: &Path, owner: Option<Owner>) -> Result<bool, Failure> {
        let (certificate_path, key_path) = (data.join(CERTIFICATE_FILE), data.join(KEY_FILE));
        if key_path.exists() && self.is_current(&certificate_path) {
            return Ok(false);
        }
        let key = KeyPair::generate().map_err(broken)?;
        let mut params = params("toygres instance", LEAF_DAYS);
        params.subject_alt_names = vec![
            SanType::DnsName("localhost".try_into().map_err(broken)?),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(broken)?;
        // With the CA's behind it, by which is_current knows whose it is. A cut between the two
        // leaves a pair that doesn't match, so the old certificate goes first.
        super::files::remove_file(&certificate_path)?;
        write_whole(&key_path, key.serialize_pem().as_bytes(), 0o600, owner, Durability::Repairable)?;
        let chain = certificate.pem() + &self.certificate_pem;
        write_whole(&certificate_path, chain.as_bytes(), 0o600, owner, Durability::Repairable)?;
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
        young && chain.starts_with("-----BEGIN CERTIFICATE-----") && chain.ends_with(&self.certificate_pem)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_ca_is_made_once_and_its_key_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = CertificateAuthority::open(folder.path()).unwrap();
        let second = CertificateAuthority::open(folder.path()).unwrap();
        assert_eq!(first.certificate_pem, second.certificate_pem);
        let mode = std::fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_is_renewed_when_old_broken_or_anothers() {
        let folder = tempfile::tempdir().unwrap();
        let data = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(folder.path()).unwrap();
        assert!(ca.certify(data.path(), None).unwrap());
        assert!(!ca.certify(data.path(), None).unwrap());
        let certificate = data.path().join(CERTIFICATE_FILE);
        let old = SystemTime::now() - RENEW_AFTER - DAY;
        std::fs::File::options().write(true).open(&certificate).unwrap().set_modified(old).unwrap();
        assert!(ca.certify(data.path(), None).unwrap());
        std::fs::write(&certificate, "").unwrap();
        assert!(ca.certify(data.path(), None).unwrap());
        let other = tempfile::tempdir().unwrap();
        assert!(CertificateAuthority::open(other.path()).unwrap().certify(data.path(), None).unwrap());
    }

    #[test]
    fn a_broken_ca_is_reported_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        CertificateAuthority::open(folder.path()).unwrap();
        std::fs::write(folder.path().join("ca.crt"), "x").unwrap();
        let failure = CertificateAuthority::open(folder.path()).err().unwrap();
        assert!(failure.message.contains("ca.crt"), "{failure}");
        assert_eq!(std::fs::read(folder.path().join("ca.crt")).unwrap(), b"x");
    }
}

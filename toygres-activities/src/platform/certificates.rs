//! TLS: a CA of toygres's own, which signs the certificates of instances on every platform, and the
//! server's own.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use toygres_models::{Failure, FailureKind};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_DAYS: u32 = 3650;
const LEAF_DAYS: u32 = 365;
/// A certificate is made anew when half of its life is over.
pub(crate) const RENEW_AFTER: Duration = Duration::from_secs(LEAF_DAYS as u64 / 2 * 24 * 60 * 60);

/// The certificate authority of one toygres.
pub struct CertificateAuthority {
    certificate_path: PathBuf,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A server's certificate and its key.
pub struct Issued {
    /// The certificate, with the CA's behind it, in PEM.
    pub chain_pem: String,
    /// Its private key, in PEM.
    pub key_pem: String,
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

/// Writes a file that is there whole or not at all, and outlives a power cut.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    let write = || {
        let parent = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
        let permissions = std::fs::Permissions::from_mode(mode);
        let mut file = tempfile::Builder::new().permissions(permissions.clone()).tempfile_in(parent)?;
        // Whatever the umask left of it.
        file.as_file().set_permissions(permissions)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        std::fs::File::open(parent)?.sync_all()
    };
    write().map_err(|error: std::io::Error| {
        Failure::transient(FailureKind::Platform, format!("could not write {}: {error}", path.display()))
    })
}

impl CertificateAuthority {
    /// Reads `ca.crt` and `ca.key` in `folder`, or makes them.
    ///
    /// # Errors
    /// If what is there can't be used, which is then left as it is, or the folder can't be written to.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let (certificate_path, key_path) = (folder.join("ca.crt"), folder.join("ca.key"));
        // The key is written last, so a pair with a key is whole; without one, what is there is half-made.
        if !key_path.exists() {
            let (certificate_pem, key_pem) = Self::generate()?;
            write(&certificate_path, certificate_pem.as_bytes(), 0o644)?;
            write(&key_path, key_pem.as_bytes(), 0o600)?;
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|error| Failure::transient(FailureKind::Platform, format!("could not read {}: {error}", path.display())))
        };
        let (certificate_pem, key_pem) = (read(&certificate_path)?, read(&key_path)?);
        Self::from_pem(certificate_pem, &key_pem, certificate_path).map_err(|problem| {
            Failure::permanent(
                FailureKind::Platform,
                format!(
                    "the certificate authority in {} can't be used: {problem}; nothing was changed. Restore ca.crt and ca.key, \
                     or remove both to have new ones made, which clients then have to trust anew",
                    folder.display()
                ),
            )
        })
    }

    /// A new one: its certificate and its key, as PEM.
    pub(crate) fn generate() -> Result<(String, String), Failure> {
        let key = KeyPair::generate().map_err(broken)?;
        let mut params = params("toygres CA", CA_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A name of its own for each CA, so that clients with several never confuse them.
        params.distinguished_name.push(DnType::OrganizationalUnitName, uuid::Uuid::new_v4().to_string());
        let certificate = params.self_signed(&key).map_err(broken)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// From its certificate and its key; clients find the certificate at `certificate_path`.
    ///
    /// # Errors
    /// What is wrong with them, in words that repeat neither.
    pub(crate) fn from_pem(certificate_pem: String, key_pem: &str, certificate_path: PathBuf) -> Result<Self, String> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| format!("ca.key is no private key: {error}"))?;
        let no_certificate = |error: &dyn std::fmt::Display| format!("ca.crt is no certificate: {error}");
        let body: String = certificate_pem.lines().filter(|line| !line.starts_with('-')).map(str::trim).collect();
        // A Secret's values are base64 as well, so their type can read it.
        let ByteString(der) = serde_json::from_value(body.into()).map_err(|error| no_certificate(&error))?;
        // A certificate holds its public key as it is.
        let public_key = key.public_key_raw();
        let matches = der.windows(public_key.len()).any(|part| part == public_key);
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|error| no_certificate(&error))?;
        if !matches {
            return Err("ca.key is not the key of ca.crt".to_owned());
        }
        Ok(Self { certificate_path, certificate_pem, issuer })
    }

    /// Writes the certificate to its path, where clients find it. The key stays where it is.
    pub(crate) fn publish(&self) -> Result<(), Failure> {
        if std::fs::read_to_string(&self.certificate_path).is_ok_and(|there| there == self.certificate_pem) {
            return Ok(());
        }
        write(&self.certificate_path, self.certificate_pem.as_bytes(), 0o644)
    }

    pub(crate) fn certificate_path(&self) -> &Path {
        &self.certificate_path
    }

    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate for a server that is reached by `names`, which are addresses or DNS names. It is
    /// valid for a year.
    ///
    /// # Errors
    /// If a name can't be in a certificate.
    pub fn issue<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Issued, Failure> {
        let key = KeyPair::generate().map_err(broken)?;
        let mut params = params("toygres", LEAF_DAYS);
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into().map_err(broken)?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(broken)?;
        Ok(Issued { chain_pem: certificate.pem() + &self.certificate_pem, key_pem: key.serialize_pem() })
    }
}

#[cfg(test)]
mod tests {
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
    fn a_broken_ca_is_reported_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        CertificateAuthority::open(folder.path()).unwrap();
        std::fs::write(folder.path().join("ca.crt"), "x").unwrap();
        let failure = CertificateAuthority::open(folder.path()).err().unwrap();
        assert!(failure.message.contains("ca.crt"), "{failure}");
        assert_eq!(std::fs::read(folder.path().join("ca.crt")).unwrap(), b"x");
    }

    #[test]
    fn a_key_of_another_ca_is_reported() {
        let (certificate, _) = CertificateAuthority::generate().unwrap();
        let (_, other_key) = CertificateAuthority::generate().unwrap();
        let problem = CertificateAuthority::from_pem(certificate, &other_key, PathBuf::new()).err().unwrap();
        assert!(problem.contains("not the key of ca.crt"), "{problem}");
    }

    #[test]
    fn issues_for_names_and_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(folder.path()).unwrap();
        let issued = ca.issue(["demo.default.svc", "10.0.0.1", "::1"]).unwrap();
        assert!(issued.chain_pem.ends_with(ca.certificate_pem()) && issued.key_pem.contains("PRIVATE KEY"));
        assert!(ca.issue(["not a name\u{7f}ü"]).is_err());
    }
}

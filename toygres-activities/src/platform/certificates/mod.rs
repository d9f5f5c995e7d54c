//! TLS: the CAs of toygres's own. One signs the certificates of instances on every platform, one those with which toygres
//! logs in to them, one the API's: a key of one kind is good for nothing of another.

mod generations;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use toygres_models::whole_file::{Durability, write_whole};
use toygres_models::{Failure, FailureKind};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::parse_x509_pem;

use generations::Generations;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const LEAF_DAYS: u32 = 90;
const CLIENT_DAYS: u32 = 2;
/// A certificate is made anew when half of its life is over.
pub(crate) const RENEW_AFTER: Duration = Duration::from_secs(LEAF_DAYS as u64 / 2 * 24 * 60 * 60);

/// What a CA signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signs {
    /// The certificates of instances' servers.
    Instances,
    /// Those with which toygres itself logs in to instances.
    Clients,
    /// The API's.
    Api,
}

impl Signs {
    /// The name of its certificate's file.
    #[must_use]
    pub const fn certificate_file(self) -> &'static str {
        match self {
            Self::Instances => "ca.crt",
            Self::Clients => "client-ca.crt",
            Self::Api => "api-ca.crt",
        }
    }

    /// The name of its key's file.
    #[must_use]
    pub const fn key_file(self) -> &'static str {
        match self {
            Self::Instances => "ca.key",
            Self::Clients => "client-ca.key",
            Self::Api => "api-ca.key",
        }
    }

    const fn common_name(self) -> &'static str {
        match self {
            Self::Instances => "toygres CA",
            Self::Clients => "toygres client CA",
            Self::Api => "toygres API CA",
        }
    }
}

/// A certificate authority of one toygres, in all its generations.
pub struct CertificateAuthority {
    certificate_path: PathBuf,
    generations: Generations,
}

/// A certificate and its key.
pub struct Issued {
    /// The certificate, with what leads from it to a CA that clients trust behind it, in PEM.
    pub chain_pem: String,
    /// Its private key, in PEM.
    pub key_pem: String,
}

fn broken(error: rcgen::Error) -> Failure {
    Failure::permanent(FailureKind::Internal, format!("could not make a TLS certificate: {error}"))
}

fn params(common_name: &str, days: u32, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    // A day back, for clients whose clock is behind.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// Reads the first certificate of a text in PEM.
fn with_certificate<T>(pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T, String> {
    let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    let certificate = block.parse_x509().map_err(|error| error.to_string())?;
    Ok(read(&certificate))
}

/// Since 1970.
/// When the first certificate of a text in PEM ends.
pub(crate) fn ends_at(pem: &str) -> Option<DateTime<Utc>> {
    let ends = with_certificate(pem, |certificate| certificate.validity().not_after.timestamp()).ok()?;
    DateTime::from_timestamp(ends, 0)
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()).cast_signed()
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    write_whole(path, content, mode, None, Durability::Synced)
        .map_err(|error| Failure::transient(FailureKind::Platform, format!("could not write {}: {error}", path.display())))
}

impl CertificateAuthority {
    /// Reads its certificates and its keys in `folder`, or makes them. One that ends in two years gets a successor.
    ///
    /// # Errors
    /// If what is there can't be used, which is then left as it is, or the folder can't be written to.
    pub fn open(folder: &Path, signs: Signs) -> Result<Self, Failure> {
        let (certificate_path, key_path) = (folder.join(signs.certificate_file()), folder.join(signs.key_file()));
        // The key is written last, so a pair with a key is whole; without one, what is there is half-made.
        let write_both = |certificates: &str, keys: &str| {
            write(&certificate_path, certificates.as_bytes(), 0o644)?;
            write(&key_path, keys.as_bytes(), 0o600)
        };
        if !key_path.exists() {
            let (certificate_pem, key_pem) = generations::found(signs, SystemTime::now()).map_err(broken)?;
            write_both(&certificate_pem, &key_pem)?;
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|error| Failure::transient(FailureKind::Platform, format!("could not read {}: {error}", path.display())))
        };
        let (mut certificates, mut keys) = (read(&certificate_path)?, read(&key_path)?);
        let unusable = |problem: String| {
            Failure::permanent(
                FailureKind::Platform,
                format!(
                    "the certificate authority in {} can't be used: {problem}; nothing was changed. Restore {} and {}, \
                     or remove both to have new ones made, which clients then have to trust anew",
                    folder.display(),
                    signs.certificate_file(),
                    signs.key_file()
                ),
            )
        };
        if let Some(succeeded) = Self::succeed(signs, &certificates, &keys).map_err(unusable)? {
            (certificates, keys) = succeeded;
            write_both(&certificates, &keys)?;
        }
        let authority = Self::from_pem(signs, &certificates, &keys, certificate_path.clone()).map_err(unusable)?;
        // Without what has ended meanwhile.
        authority.publish()?;
        Ok(authority)
    }

    /// A new one: its certificate and its key, as PEM.
    pub(crate) fn generate(signs: Signs) -> Result<(String, String), Failure> {
        generations::found(signs, SystemTime::now()).map_err(broken)
    }

    /// Its certificates and its keys with a successor, where it ends in two years.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem).
    pub(crate) fn succeed(signs: Signs, certificates: &str, keys: &str) -> Result<Option<(String, String)>, String> {
        let succeeded = generations::succeed(signs, certificates, keys, SystemTime::now())?;
        if succeeded.is_some() {
            let file = signs.certificate_file();
            tracing::warn!(
                file,
                "this CA ends within two years: it has a successor, and {file} holds both. Give it to clients that have a copy"
            );
        }
        Ok(succeeded)
    }

    /// From its certificates and its keys; clients find the certificates at `certificate_path`.
    ///
    /// # Errors
    /// What is wrong with them, in words that repeat neither.
    pub(crate) fn from_pem(signs: Signs, certificates: &str, keys: &str, certificate_path: PathBuf) -> Result<Self, String> {
        let generations = Generations::read(signs, certificates, keys, SystemTime::now())?;
        Ok(Self { certificate_path, generations })
    }

    /// Writes the certificates to their path, where clients find them. The keys stay where they are.
    pub(crate) fn publish(&self) -> Result<(), Failure> {
        if std::fs::read_to_string(&self.certificate_path).is_ok_and(|there| there == self.trusted_pem()) {
            return Ok(());
        }
        write(&self.certificate_path, self.trusted_pem().as_bytes(), 0o644)
    }

    /// What clients are to trust, in PEM: one certificate, or two while the older one comes to its end.
    pub(crate) fn trusted_pem(&self) -> &str {
        &self.generations.trusted_pem
    }

    pub(crate) fn certificate_path(&self) -> &Path {
        &self.certificate_path
    }

    /// Of the public key whose owner signs now, by SHA-256 in hexadecimal.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.generations.fingerprint
    }

    /// Whether a fingerprint is that of one of its public keys.
    pub(crate) fn has_generation(&self, fingerprint: &str) -> bool {
        self.generations.fingerprints.iter().any(|known| known == fingerprint)
    }

    /// Whether a chain's first certificate is of the generation that signs now, and not to be made anew yet. One that isn't
    /// valid yet is: the clock was set back.
    pub(crate) fn is_current(&self, chain_pem: &str, now: SystemTime) -> bool {
        let is_current = with_certificate(chain_pem, |certificate| {
            let begin = certificate.validity().not_before.timestamp();
            let is_young = (begin..begin + RENEW_AFTER.as_secs().cast_signed()).contains(&seconds(now));
            is_young && !certificate.is_ca() && certificate.issuer().as_raw() == self.generations.subject
        });
        is_current == Ok(true)
    }

    /// A certificate for a server that is reached by `names`, which are addresses or DNS names. It is
    /// valid for 90 days.
    ///
    /// # Errors
    /// If a name can't be in a certificate.
    pub fn issue<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Issued, Failure> {
        let key = KeyPair::generate().map_err(broken)?;
        let mut params = params("toygres", LEAF_DAYS, SystemTime::now());
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into().map_err(broken)?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, &key)
    }

    /// A certificate with which toygres logs in to an instance as `role`. It is valid for two days.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn issue_client(&self, role: &str) -> Result<Issued, Failure> {
        let key = KeyPair::generate().map_err(broken)?;
        let mut params = params(role, CLIENT_DAYS, SystemTime::now());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, &key)
    }

    fn sign(&self, mut params: CertificateParams, key: &KeyPair) -> Result<Issued, Failure> {
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.generations.issuer).map_err(broken)?;
        Ok(Issued { chain_pem: certificate.pem() + &self.generations.chain_pem, key_pem: key.serialize_pem() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_ca_is_made_once_and_its_key_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = CertificateAuthority::open(folder.path(), Signs::Instances).unwrap();
        let second = CertificateAuthority::open(folder.path(), Signs::Instances).unwrap();
        assert_eq!(first.trusted_pem(), second.trusted_pem());
        let mode = std::fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_ca_is_reported_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        CertificateAuthority::open(folder.path(), Signs::Instances).unwrap();
        std::fs::write(folder.path().join("ca.crt"), "x").unwrap();
        let failure = CertificateAuthority::open(folder.path(), Signs::Instances).err().unwrap();
        assert!(failure.message.contains("ca.crt"), "{failure}");
        assert_eq!(std::fs::read(folder.path().join("ca.crt")).unwrap(), b"x");
    }

    #[test]
    fn a_key_of_another_ca_is_reported() {
        let (certificate, _) = CertificateAuthority::generate(Signs::Instances).unwrap();
        let (_, other_key) = CertificateAuthority::generate(Signs::Instances).unwrap();
        let problem = CertificateAuthority::from_pem(Signs::Instances, &certificate, &other_key, PathBuf::new()).err().unwrap();
        assert!(problem.contains("not the key of ca.crt"), "{problem}");
    }

    #[test]
    fn issues_for_names_and_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(folder.path(), Signs::Instances).unwrap();
        let issued = ca.issue(["demo.default.svc", "10.0.0.1", "::1"]).unwrap();
        assert!(issued.chain_pem.ends_with(ca.trusted_pem()) && issued.key_pem.contains("PRIVATE KEY"));
        let now = SystemTime::now();
        assert!(ca.is_current(&issued.chain_pem, now));
        for (text, when, why) in [
            (issued.chain_pem.as_str(), now + RENEW_AFTER + DAY, "it is old"),
            (issued.chain_pem.as_str(), now - DAY * 2, "it is not valid yet"),
            (&issued.chain_pem[30..], now, "it is broken"),
            (ca.trusted_pem(), now, "it is the CA's own"),
            ("", now, "there is none"),
        ] {
            assert!(!ca.is_current(text, when), "{why}");
        }
        let other = CertificateAuthority::open(tempfile::tempdir().unwrap().path(), Signs::Instances).unwrap();
        assert!(!other.is_current(&issued.chain_pem, now) && other.fingerprint() != ca.fingerprint());
        assert!(ca.issue(["not a name\u{7f}ü"]).is_err());
    }
}

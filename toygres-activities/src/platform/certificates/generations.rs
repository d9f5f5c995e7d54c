//! The generations of a CA. Each gets a successor two years before it ends, which signs from then on. Its own predecessor
//! signs the successor's key too: who trusts only the old one takes what the new one signs, until the old one ends. So all
//! have two years to take the new one in.
//!
//! The certificates that are to be trusted are in one text, oldest first, and none that has ended: some programs read only the
//! first. The keys, and the certificate by which the predecessor vouches for the successor, are in another.

use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;

use super::{Signs, params, seconds, with_certificate};

const CA_DAYS: u32 = 3650;
const SUCCESSOR_TIME: Duration = Duration::from_secs(2 * 365 * 24 * 60 * 60);

/// One CA certificate, and its key where that is kept.
struct Generation {
    pem: String,
    subject: Vec<u8>,
    fingerprint: String,
    /// In seconds since 1970.
    not_after: i64,
    key: Option<KeyPair>,
}

/// The generations of a CA that haven't ended, and who signs.
pub(super) struct Generations {
    /// Oldest first.
    pub(super) trusted_pem: String,
    /// Of their public keys, by SHA-256 in hexadecimal.
    pub(super) fingerprints: Vec<String>,
    /// The name of the one that signs, as it stands in what it signs.
    pub(super) subject: Vec<u8>,
    pub(super) fingerprint: String,
    /// What a server sends behind a certificate, so that clients find the way to the CA that they trust.
    pub(super) chain_pem: String,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

/// A text's certificates and keys, each by itself.
fn blocks(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut certificates, mut keys, mut block) = (Vec::new(), Vec::new(), String::new());
    for line in text.lines() {
        if line.starts_with("-----BEGIN ") {
            block.clear();
        }
        block.push_str(line);
        block.push('\n');
        if line.starts_with("-----END CERTIFICATE") {
            certificates.push(std::mem::take(&mut block));
        } else if line.starts_with("-----END ") {
            keys.push(std::mem::take(&mut block));
        }
    }
    (certificates, keys)
}

/// Of its public key, by SHA-256 in hexadecimal.
fn fingerprint(certificate: &X509Certificate<'_>) -> String {
    Sha256::digest(certificate.public_key().raw).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All generations, oldest first, and the certificates by which one vouches for the next.
fn parse(signs: Signs, certificates: &str, keys: &str) -> Result<(Vec<Generation>, Vec<String>), String> {
    let (certificate_file, key_file) = (signs.certificate_file(), signs.key_file());
    let no_certificate = |error: &dyn std::fmt::Display| format!("{certificate_file} is no certificate: {error}");
    let (vouchers, key_pems) = blocks(keys);
    let parse_key = |pem: &String| KeyPair::from_pem(pem).map_err(|error| format!("{key_file} is no private key: {error}"));
    let mut keys = key_pems.iter().map(parse_key).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err(format!("{key_file} is no private key"));
    }
    let mut generations = Vec::new();
    for pem in blocks(certificates).0 {
        let generation = with_certificate(&pem, |certificate| {
            let public_key = certificate.public_key().subject_public_key.data.clone();
            let key = keys.iter().position(|key| *key.public_key_raw() == *public_key).map(|found| keys.swap_remove(found));
            Generation {
                pem: pem.clone(),
                subject: certificate.subject().as_raw().to_vec(),
                fingerprint: fingerprint(certificate),
                not_after: certificate.validity().not_after.timestamp(),
                key,
            }
        });
        generations.push(generation.map_err(|error| no_certificate(&error))?);
    }
    if generations.is_empty() {
        return Err(no_certificate(&"there is none in PEM"));
    }
    if generations.iter().all(|generation| generation.key.is_none()) {
        return Err(format!("{key_file} is not the key of {certificate_file}"));
    }
    generations.sort_by_key(|generation| generation.not_after);
    Ok((generations, vouchers))
}

impl Generations {
    /// Reads them. If all have ended, the newest is taken all the same: see [`succeed`].
    ///
    /// # Errors
    /// What is wrong with the texts, in words that repeat neither.
    pub(super) fn read(signs: Signs, certificates: &str, keys: &str, now: SystemTime) -> Result<Self, String> {
        let now = seconds(now);
        let (mut generations, vouchers) = parse(signs, certificates, keys)?;
        if generations.iter().any(|generation| generation.key.is_some() && generation.not_after > now) {
            generations.retain(|generation| generation.not_after > now);
        }
        let trusted_pem = generations.iter().map(|generation| generation.pem.as_str()).collect();
        let fingerprints = generations.iter().map(|generation| generation.fingerprint.clone()).collect();
        let subjects: Vec<_> = generations.iter().map(|generation| generation.subject.clone()).collect();
        let signer =
            generations.into_iter().rev().find_map(|generation| Some((generation.key?, generation.pem, generation.subject)));
        let (key, pem, subject) = signer.ok_or_else(|| format!("{} has no key that can be used", signs.key_file()))?;
        let vouches = |certificate: &X509Certificate<'_>| {
            certificate.subject().as_raw() == subject && subjects.iter().any(|known| known == certificate.issuer().as_raw())
        };
        let voucher = vouchers.into_iter().find(|voucher| with_certificate(voucher, vouches) == Ok(true));
        let fingerprint = with_certificate(&pem, fingerprint)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key)
            .map_err(|error| format!("{} is no certificate: {error}", signs.certificate_file()))?;
        // Never its own beside the voucher: some clients stop at a certificate that signs itself and isn't trusted.
        Ok(Self { trusted_pem, fingerprints, subject, fingerprint, chain_pem: voucher.unwrap_or(pem), issuer })
    }
}

/// A CA's first generation: its certificate and its key.
pub(super) fn found(signs: Signs, now: SystemTime) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let certificate = ca_params(signs, now).self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn ca_params(signs: Signs, now: SystemTime) -> rcgen::CertificateParams {
    let mut params = params(signs.common_name(), CA_DAYS, now);
    // One may stand between it and what it signs: its successor.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    // A name of its own for each, so that clients with several never confuse them.
    params.distinguished_name.push(DnType::OrganizationalUnitName, uuid::Uuid::new_v4().to_string());
    params
}

/// The two texts with a successor, and without what has ended, if it is time. If all have ended, nobody vouches for it:
/// clients have to trust it anew.
///
/// # Errors
/// As [`Generations::read`].
pub(super) fn succeed(signs: Signs, certificates: &str, keys: &str, now: SystemTime) -> Result<Option<(String, String)>, String> {
    let (generations, _) = parse(signs, certificates, keys)?;
    let signs_long = |generation: &Generation| generation.key.is_some() && generation.not_after > seconds(now + SUCCESSOR_TIME);
    if generations.iter().any(signs_long) {
        return Ok(None);
    }
    let cannot = |error: rcgen::Error| format!("no successor could be made: {error}");
    let mut successor = ca_params(signs, now);
    let key = KeyPair::generate().map_err(cannot)?;
    let pem = successor.self_signed(&key).map_err(cannot)?.pem();
    let left: Vec<_> = generations.into_iter().filter(|generation| generation.not_after > seconds(now)).collect();
    let certificates: String = left.iter().map(|generation| generation.pem.as_str()).collect();
    let mut private: String = left.iter().flat_map(|generation| &generation.key).map(KeyPair::serialize_pem).collect();
    if let Some((old_key, old_pem, not_after)) = left.into_iter().rev().find_map(|old| Some((old.key?, old.pem, old.not_after))) {
        let old = Issuer::from_ca_cert_pem(&old_pem, old_key).map_err(cannot)?;
        successor.not_after = (SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.unsigned_abs())).into();
        private.push_str(&successor.signed_by(&key, &old).map_err(cannot)?.pem());
    }
    Ok(Some((certificates + &pem, private + &key.serialize_pem())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    fn text(signs: Signs, now: SystemTime) -> (String, String) {
        found(signs, now).unwrap()
    }

    fn issuer_of(pem: &str) -> Vec<u8> {
        with_certificate(pem, |certificate| certificate.issuer().as_raw().to_vec()).unwrap()
    }

    #[test]
    fn a_successor_comes_two_years_before_the_end_and_its_predecessor_vouches_for_it_until_then() {
        let now = SystemTime::now();
        let (certificates, keys) = text(Signs::Instances, now);
        assert!(succeed(Signs::Instances, &certificates, &keys, now + YEAR * 7).unwrap().is_none());
        let later = now + YEAR * 9;
        let first = Generations::read(Signs::Instances, &certificates, &keys, now).unwrap();
        assert_eq!((first.trusted_pem.as_str(), first.chain_pem.as_str()), (certificates.as_str(), certificates.as_str()));

        let (both, keys) = succeed(Signs::Instances, &certificates, &keys, later).unwrap().unwrap();
        assert!(both.starts_with(&certificates) && blocks(&both).0.len() == 2 && blocks(&keys).1.len() == 2);
        assert!(succeed(Signs::Instances, &both, &keys, later).unwrap().is_none(), "there is one already");
        let second = Generations::read(Signs::Instances, &both, &keys, later).unwrap();
        assert_eq!(second.trusted_pem, both);
        assert!(second.fingerprint != first.fingerprint && second.fingerprints.contains(&first.fingerprint));
        assert_eq!(issuer_of(&second.chain_pem), first.subject, "who trusts the first finds no way to it");

        let after_the_first = Generations::read(Signs::Instances, &both, &keys, now + YEAR * 11).unwrap();
        assert_eq!(after_the_first.trusted_pem, blocks(&both).0[1]);
        assert_eq!(after_the_first.chain_pem, after_the_first.trusted_pem);
        let (next, _) = succeed(Signs::Instances, &both, &keys, now + YEAR * 18).unwrap().unwrap();
        assert!(next.starts_with(&blocks(&both).0[1]) && blocks(&next).0.len() == 2, "what has ended stays");
    }

    #[test]
    fn a_successor_whose_key_was_not_written_is_trusted_and_followed_by_another() {
        let now = SystemTime::now();
        let (certificates, keys) = text(Signs::Clients, now);
        let (both, _) = succeed(Signs::Clients, &certificates, &keys, now + YEAR * 9).unwrap().unwrap();
        let cut = Generations::read(Signs::Clients, &both, &keys, now + YEAR * 9).unwrap();
        assert_eq!(cut.chain_pem, certificates);
        let (three, keys) = succeed(Signs::Clients, &both, &keys, now + YEAR * 9).unwrap().unwrap();
        assert_eq!(blocks(&three).0.len(), 3);
        assert_eq!(issuer_of(&Generations::read(Signs::Clients, &three, &keys, now + YEAR * 9).unwrap().chain_pem), cut.subject);
    }

    #[test]
    fn one_that_has_ended_is_followed_by_one_for_which_nobody_vouches() {
        let now = SystemTime::now();
        let (certificates, keys) = text(Signs::Api, now);
        assert!(Generations::read(Signs::Api, &certificates, &keys, now + YEAR * 11).is_ok());
        let (new, keys) = succeed(Signs::Api, &certificates, &keys, now + YEAR * 11).unwrap().unwrap();
        let read = Generations::read(Signs::Api, &new, &keys, now + YEAR * 11).unwrap();
        assert_eq!((blocks(&new).0.len(), read.chain_pem), (1, new));
    }
}

//! What a server keeps of a password: no password, and yet enough to tell one.

use openssl::base64::decode_block;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::pkcs5::pbkdf2_hmac;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use secrecy::{ExposeSecret, SecretString};

/// With more it isn't found out: the owner chooses the number, and toygres would be kept busy.
const MOST_ITERATIONS: usize = 100_000;
const LENGTH: usize = 32;

/// `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, as `pg_authid` has it
/// (<https://www.postgresql.org/docs/current/catalog-pg-authid.html>).
pub(super) struct Verifier {
    iterations: usize,
    salt: Vec<u8>,
    server_key: Vec<u8>,
}

impl Verifier {
    /// `None` if it is something else: an MD5 digest, say, by which nobody logs in to an instance.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (head, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (_, server_key) = keys.split_once(':')?;
        let iterations = iterations.parse().ok().filter(|count| *count > 0)?;
        Some(Self { iterations, salt: decode_block(salt).ok()?, server_key: decode_block(server_key).ok()? })
    }

    /// Whether it may be of that password (RFC 5802, section 3). Passwords that SASLprep would change aren't taken anywhere.
    /// It takes milliseconds of a processor.
    pub(super) fn may_be_of(&self, password: &SecretString) -> bool {
        self.iterations > MOST_ITERATIONS || self.is_of(password)
    }

    fn is_of(&self, password: &SecretString) -> bool {
        self.server_key_of(password).is_ok_and(|key| key.len() == self.server_key.len() && memcmp::eq(&key, &self.server_key))
    }

    fn server_key_of(&self, password: &SecretString) -> Result<Vec<u8>, openssl::error::ErrorStack> {
        let mut salted = [0; LENGTH];
        pbkdf2_hmac(password.expose_secret().as_bytes(), &self.salt, self.iterations, MessageDigest::sha256(), &mut salted)?;
        Signer::new(MessageDigest::sha256(), &*PKey::hmac(&salted)?)?.sign_oneshot_to_vec(b"Server Key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_told_by_what_the_server_keeps_of_it() {
        let kept = postgres_protocol::password::scram_sha_256(b"right");
        let verifier = Verifier::parse(&kept).unwrap();
        assert!(verifier.is_of(&"right".to_owned().into()));
        assert!(!verifier.is_of(&"wrong".to_owned().into()));
        assert!(Verifier { iterations: MOST_ITERATIONS + 1, ..verifier }.may_be_of(&"wrong".to_owned().into()));
        for odd in ["", "md5abc", "SCRAM-SHA-256$4096:c2FsdA==", "SCRAM-SHA-256$-1:c2FsdA==$a:b", "SCRAM-SHA-256$0:$:"] {
            assert!(Verifier::parse(odd).is_none(), "{odd}");
        }
    }
}

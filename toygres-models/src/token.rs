//! Bearer tokens, by which the API knows who sends a request.

use rand::distr::{Alphanumeric, SampleString};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use uuid::Uuid;

const PREFIX: &str = "toygres_";
/// Letters and digits of a secret: 43 of them are 256 random bits.
const SECRET_LENGTH: usize = 43;

/// A token as its holder sends it: `toygres_<id>_<secret>`. The id finds its record, the secret proves
/// that it is meant for the sender. `Debug` doesn't show the secret.
#[derive(Debug, Clone)]
pub struct BearerToken {
    /// The id of its record. Not a secret.
    pub id: Uuid,
    secret: SecretString,
}

impl BearerToken {
    /// A fresh one, from the operating system's random source.
    #[must_use]
    pub fn generate() -> Self {
        Self { id: Uuid::now_v7(), secret: Alphanumeric.sample_string(&mut rand::rng(), SECRET_LENGTH).into() }
    }

    /// Reads what was sent; `None` if it isn't of a token's form.
    #[must_use]
    pub fn parse(sent: &[u8]) -> Option<Self> {
        let (id, secret) = std::str::from_utf8(sent).ok()?.strip_prefix(PREFIX)?.split_once('_')?;
        let is_secret = secret.len() == SECRET_LENGTH && secret.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let id = Uuid::try_parse(id).ok().filter(|parsed| parsed.simple().to_string() == id)?;
        is_secret.then(|| Self { id, secret: secret.into() })
    }

    /// What is kept of the secret. A fast hash is right: there is nothing to guess.
    #[must_use]
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret.expose_secret()).into()
    }

    /// The whole token, to be shown once.
    #[must_use]
    pub fn expose(&self) -> SecretString {
        format!("{PREFIX}{}_{}", self.id.simple(), self.secret.expose_secret()).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_reads_back_and_no_two_are_the_same() {
        let (one, other) = (BearerToken::generate(), BearerToken::generate());
        let text = one.expose();
        let read = BearerToken::parse(text.expose_secret().as_bytes()).unwrap();
        assert_eq!((read.id, read.secret_sha256()), (one.id, one.secret_sha256()));
        assert_ne!(one.secret_sha256(), other.secret_sha256());
        assert!(!format!("{one:?}").contains(text.expose_secret().rsplit('_').next().unwrap()));
    }

    #[test]
    fn one_token_has_one_form() {
        let text = BearerToken::generate().expose().expose_secret().to_owned();
        let (id, secret) = text.strip_prefix(PREFIX).unwrap().split_once('_').unwrap();
        let dashed = Uuid::try_parse(id).unwrap().hyphenated().to_string();
        for other in [
            format!("{PREFIX}{dashed}_{secret}"),
            format!("{PREFIX}{}_{secret}", id.to_uppercase()),
            format!("{text}x"),
            format!(" {text}"),
            format!("{PREFIX}{id}_{}", &secret[1..]),
            format!("{PREFIX}{id}{secret}"),
            format!("{PREFIX}_{secret}"),
            PREFIX.into(),
        ] {
            // A random id may have no letter to write in capitals.
            assert!(other == text || BearerToken::parse(other.as_bytes()).is_none(), "{other} was read");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_breaks_it(sent: Vec<u8>) {
            prop_assert!(BearerToken::parse(&sent).is_none());
        }
    }
}

//! Passwords that can't leak by accident.

use std::fmt;
use std::str::FromStr;

use rand::distr::{Alphanumeric, SampleString};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::{InstanceKey, Invalid};

/// Longest password in bytes; psql and .pgpass handle this length in every supported version.
pub const MAX_PASSWORD_LENGTH: usize = 1024;

const SCHEME: &str = "secret://";

/// Where a password is kept: `secret://namespace/instance`. Not a secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretRef(pub InstanceKey);

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.0)
    }
}

/// The password of an instance's owner.
///
/// In JSON it is the seed's plain string. Workflows store every input in clear text, so the server
/// passes on only references; the literal is for programs that use the activities as a library.
/// `Debug` never shows a literal.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Password {
    /// The password itself.
    Literal(SecretString),
    /// Where the password is kept.
    Reference(SecretRef),
}

impl Password {
    /// A fresh password of 32 letters and digits from the operating system's random source:
    /// 190 bits, and nothing in it that a URI or a shell would have to quote.
    #[must_use]
    pub fn generate() -> SecretString {
        Alphanumeric.sample_string(&mut rand::rng(), 32).into()
    }

    /// The reference for an instance's password.
    #[must_use]
    pub fn reference(key: &InstanceKey) -> Self {
        Self::Reference(SecretRef(key.clone()))
    }

    /// Checks what a person gave as the password itself.
    ///
    /// # Errors
    /// If it is empty, longer than [`MAX_PASSWORD_LENGTH`], begins like a reference, or has other characters than the printable
    /// ones of ASCII: clients prepare those differently before they send them (RFC 4013), or not at all. The error doesn't
    /// repeat the password.
    pub fn check_literal(value: &str) -> Result<(), Invalid> {
        let refuse = |problem: &str| Err(Invalid::new("password", problem));
        if value.is_empty() {
            return refuse("is empty; give 1 to 1024 characters, or leave it out to have one generated");
        }
        if value.len() > MAX_PASSWORD_LENGTH {
            return refuse("is too long; at most 1024 characters are allowed");
        }
        if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return refuse(
                "has a character that isn't printable ASCII, such as a line break, an umlaut or a no-break space; clients don't agree on \
                 how those are sent",
            );
        }
        if value.starts_with(SCHEME) {
            return refuse("begins with secret://, which marks a reference; choose another one");
        }
        Ok(())
    }
}

impl FromStr for Password {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        if let Some(path) = value.strip_prefix(SCHEME) {
            let key = path.split_once('/').and_then(|(namespace, name)| InstanceKey::parse(namespace, name).ok());
            return key
                .map(|key| Self::Reference(SecretRef(key)))
                .ok_or_else(|| Invalid::new("password", "is not a reference of the form secret://namespace/instance"));
        }
        Self::check_literal(value)?;
        Ok(Self::Literal(value.into()))
    }
}

impl TryFrom<String> for Password {
    type Error = Invalid;

    fn try_from(value: String) -> Result<Self, Invalid> {
        value.parse()
    }
}

impl From<Password> for String {
    fn from(value: Password) -> Self {
        match value {
            Password::Literal(secret) => secret.expose_secret().to_owned(),
            Password::Reference(reference) => reference.to_string(),
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(_) => f.write_str("Password([redacted])"),
            Self::Reference(reference) => write!(f, "Password({reference})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_and_literals_go_both_ways_in_json() {
        for text in ["p@:/?#%'\"\\ $", "secret://default/demo"] {
            let json = serde_json::to_string(text).unwrap();
            let password: Password = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&password).unwrap(), json);
        }
        assert!(matches!("secret://default/demo".parse().unwrap(), Password::Reference(_)));
    }

    #[test]
    fn refuses_what_could_not_log_in() {
        for bad in ["", "a\nb", "a\0b", "secret://", "secret://x", "secret://../x", "\u{ad}", &"x".repeat(1025)] {
            assert!(bad.parse::<Password>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn generated_ones_are_long_plain_and_different() {
        let (first, second) = (Password::generate(), Password::generate());
        assert_eq!(first.expose_secret().len(), 32);
        assert!(first.expose_secret().bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(first.expose_secret(), second.expose_secret());
    }

    proptest! {
        #[test]
        fn debug_and_errors_never_show_it(text in "[!-~]{6,40}") {
            match text.parse::<Password>() {
                Ok(password) => {
                    let shown = format!("{password:?}");
                    prop_assert!(!shown.contains(&text) || text.starts_with(SCHEME));
                }
                Err(error) => prop_assert!(!error.to_string().contains(&text)),
            }
        }
    }
}

//! Connection URIs (<https://www.postgresql.org/docs/current/libpq-connect.html>, 34.1.1.2).

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};

use crate::Password;

/// All but the characters that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn encode(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, ENCODED)
}

/// libpq's parameter by which a client takes only a server that knows the password.
pub const CHANNEL_BINDING: &str = "channel_binding";
/// The superuser's name.
pub const USER: &str = "postgres";
/// The database that every instance has.
pub const DATABASE: &str = "postgres";

/// How to reach an instance, without the password.
///
/// `Display` is the URI without a password, safe to store and to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionUri {
    /// Host name or address, no brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path of the CA certificate that signed the server's, on the client's machine; with it the
    /// URI asks for `verify-full`, without it for `require`.
    pub ca_certificate_path: Option<String>,
}

impl ConnectionUri {
    fn write(&self, password: Option<&str>) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let password = password.map(|password| format!(":{}", encode(password))).unwrap_or_default();
        let tls = match &self.ca_certificate_path {
            Some(path) => format!("sslmode=verify-full&sslrootcert={}", encode(path)),
            None => "sslmode=require".into(),
        };
        // A server that doesn't know the password can't ask for it, whatever certificate it has.
        format!("postgresql://{USER}{password}@{host}:{}/{DATABASE}?{tls}&{CHANNEL_BINDING}=require", self.port)
    }

    /// The URI with the password in it, percent-encoded: a secret itself.
    #[must_use]
    pub fn with_secret(&self, password: &SecretString) -> SecretString {
        self.write(Some(password.expose_secret())).into()
    }
}

impl fmt::Display for ConnectionUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.write(None))
    }
}

/// Puts `password` into a URI that has none, where the user's name ends.
///
/// Used by workflows to add a reference to a stored URI; a URI that has a password already, or no
/// user, is returned as it is.
#[must_use]
pub fn with_password_reference(uri: &str, password: &Password) -> String {
    match uri.split_once(&format!("://{USER}@")) {
        Some((scheme, rest)) => format!("{scheme}://{USER}:{}@{rest}", encode(&String::from(password.clone()))),
        None => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;

    fn uri() -> ConnectionUri {
        ConnectionUri { host: "127.0.0.1".into(), port: 20_001, ca_certificate_path: Some("/a b/ca.crt".into()) }
    }

    #[test]
    fn without_a_password_it_is_safe_to_show() {
        assert_eq!(
            uri().to_string(),
            "postgresql://postgres@127.0.0.1:20001/postgres?sslmode=verify-full&sslrootcert=%2Fa%20b%2Fca.crt&channel_binding=require"
        );
        let v6 = ConnectionUri { host: "::1".into(), port: 1, ca_certificate_path: None };
        assert_eq!(v6.to_string(), "postgresql://postgres@[::1]:1/postgres?sslmode=require&channel_binding=require");
    }

    #[test]
    fn a_reference_is_added_to_a_stored_uri() {
        let password: Password = "secret://default/demo".parse().unwrap();
        let text = with_password_reference(&uri().to_string(), &password);
        assert!(text.starts_with("postgresql://postgres:secret%3A%2F%2Fdefault%2Fdemo@127.0.0.1:20001/"), "{text}");
        assert_eq!(with_password_reference(&text, &password), text);
    }

    proptest! {
        /// Whatever the password is, the URI has one reading, and the password comes back whole.
        #[test]
        fn any_password_comes_back(password in "\\PC{1,60}") {
            let secret: SecretString = password.clone().into();
            let text = uri().with_secret(&secret).expose_secret().to_owned();
            let inner = text.strip_prefix("postgresql://postgres:").unwrap();
            let (encoded, rest) = inner.split_once('@').unwrap();
            prop_assert!(rest.starts_with("127.0.0.1:20001/"));
            prop_assert_eq!(percent_decode_str(encoded).decode_utf8().unwrap(), password);
        }
    }
}

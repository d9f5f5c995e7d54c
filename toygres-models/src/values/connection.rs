//! Connection URIs (<https://www.postgresql.org/docs/current/libpq-connect.html>, 34.1.1.2).

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};

use crate::{InstanceSpec, Password};

/// All but the characters that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn encode(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, ENCODED)
}

/// libpq's parameter by which a client takes only a server that knows the password.
pub const CHANNEL_BINDING: &str = "channel_binding";
/// The superuser's name. It can log in only for a while after an admin asked for it.
pub const SUPERUSER: &str = "postgres";
/// The database that every instance has, besides its owner's.
pub const MAINTENANCE_DATABASE: &str = "postgres";

/// Where an instance's server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    /// Host name or address, no brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path of the CA certificate that signed the server's, on the client's machine; with it a
    /// URI asks for `verify-full`, without it for `require`.
    pub ca_certificate_path: Option<String>,
}

impl ServerAddress {
    /// The URI by which that role logs in to that database.
    #[must_use]
    pub fn uri(&self, user: &str, database: &str) -> ConnectionUri {
        ConnectionUri { address: self.clone(), user: user.to_owned(), database: database.to_owned() }
    }

    /// The URI of an instance's owner.
    #[must_use]
    pub fn owner_uri(&self, spec: &InstanceSpec) -> ConnectionUri {
        self.uri(spec.owner.as_str(), spec.database.as_str())
    }
}

/// How to log in to an instance, without the password.
///
/// `Display` is the URI without a password, safe to store and to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionUri {
    /// Where the server listens.
    pub address: ServerAddress,
    /// The role that logs in.
    pub user: String,
    /// The database.
    pub database: String,
}

impl ConnectionUri {
    fn write(&self, password: Option<&str>) -> String {
        let ServerAddress { host, port, ca_certificate_path } = &self.address;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let password = password.map(|password| format!(":{}", encode(password))).unwrap_or_default();
        let tls = match ca_certificate_path {
            Some(path) => format!("sslmode=verify-full&sslrootcert={}", encode(path)),
            None => "sslmode=require".into(),
        };
        // A server that doesn't know the password can't ask for it, whatever certificate it has.
        let (user, database) = (encode(&self.user), encode(&self.database));
        format!("postgresql://{user}{password}@{host}:{port}/{database}?{tls}&{CHANNEL_BINDING}=require")
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
    let parts = uri.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?)));
    match parts {
        Some((scheme, (user, rest))) if !user.is_empty() && !user.contains([':', '/', '?']) => {
            format!("{scheme}://{user}:{}@{rest}", encode(&String::from(password.clone())))
        }
        _ => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;

    fn address() -> ServerAddress {
        ServerAddress { host: "127.0.0.1".into(), port: 20_001, ca_certificate_path: Some("/a b/ca.crt".into()) }
    }

    fn uri() -> ConnectionUri {
        address().uri("app", "blog")
    }

    #[test]
    fn without_a_password_it_is_safe_to_show() {
        assert_eq!(
            uri().to_string(),
            "postgresql://app@127.0.0.1:20001/blog?sslmode=verify-full&sslrootcert=%2Fa%20b%2Fca.crt&channel_binding=require"
        );
        let v6 = ServerAddress { host: "::1".into(), port: 1, ca_certificate_path: None }.uri("app", "blog");
        assert_eq!(v6.to_string(), "postgresql://app@[::1]:1/blog?sslmode=require&channel_binding=require");
    }

    #[test]
    fn a_reference_is_added_to_a_stored_uri() {
        let password: Password = "secret://default/demo".parse().unwrap();
        let text = with_password_reference(&uri().to_string(), &password);
        assert!(text.starts_with("postgresql://app:secret%3A%2F%2Fdefault%2Fdemo@127.0.0.1:20001/"), "{text}");
        assert_eq!(with_password_reference(&text, &password), text);
        for other in ["postgresql://host/db?x=a@b", "postgresql://host/db", "no uri"] {
            assert_eq!(with_password_reference(other, &password), other);
        }
    }

    proptest! {
        /// Whatever the password is, the URI has one reading, and the password comes back whole.
        #[test]
        fn any_password_comes_back(password in "\\PC{1,60}") {
            let secret: SecretString = password.clone().into();
            let text = uri().with_secret(&secret).expose_secret().to_owned();
            let inner = text.strip_prefix("postgresql://app:").unwrap();
            let (encoded, rest) = inner.split_once('@').unwrap();
            prop_assert!(rest.starts_with("127.0.0.1:20001/"));
            prop_assert_eq!(percent_decode_str(encoded).decode_utf8().unwrap(), password);
        }
    }
}

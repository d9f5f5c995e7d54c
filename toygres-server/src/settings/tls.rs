//! How the server's API is served over TLS.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use super::source::{Sources, Value};
use super::{Folders, SettingsError, parse_bool};

/// Where the API's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSettings {
    /// toygres's own CA signs it.
    Own {
        /// Names and addresses for it besides those that the server knows by itself.
        names: Vec<String>,
    },
    /// From files, which may be replaced while the server runs.
    Given {
        /// The certificate and behind it its issuers', in PEM. Absolute.
        certificate: PathBuf,
        /// Its private key, in PEM. Absolute.
        key: PathBuf,
    },
}

impl TlsSettings {
    /// The settings that give another process the same.
    pub(super) fn to_texts(&self) -> Vec<(&'static str, OsString)> {
        match self {
            Self::Own { names } if names.is_empty() => vec![("tls", "true".into())],
            Self::Own { names } => vec![("tls", "true".into()), ("tls_names", names.join(",").into())],
            Self::Given { certificate, key } => vec![("tls_certificate", certificate.into()), ("tls_key", key.into())],
        }
    }
}

/// Files win over the own CA, so that `tls = true` in a config file stands in nobody's way.
pub(super) fn tls(sources: &Sources, folders: &Folders<'_>) -> Result<Option<TlsSettings>, SettingsError> {
    let names = sources.find("tls_names");
    let is_on = sources.parse("tls", parse_bool)?;
    match (sources.find("tls_certificate"), sources.find("tls_key")) {
        (Some(certificate), Some(key)) => match names {
            Some(names) => Err(names.refused("is for a certificate of the own CA, and --tls-certificate has names of its own")),
            None => Ok(Some(TlsSettings::Given { certificate: folders.path(&certificate)?, key: folders.path(&key)? })),
        },
        (Some(certificate), None) => Err(certificate.refused("needs its key; give --tls-key too")),
        (None, Some(key)) => Err(key.refused("needs its certificate; give --tls-certificate too")),
        (None, None) => match (is_on, names) {
            (Some(true), None) => Ok(Some(TlsSettings::Own { names: Vec::new() })),
            (Some(true), Some(names)) => Ok(Some(TlsSettings::Own { names: parse_names(&names)? })),
            (_, Some(names)) => Err(names.refused("needs --tls")),
            (_, None) => Ok(None),
        },
    }
}

fn parse_names(value: &Value) -> Result<Vec<String>, SettingsError> {
    value.parse(|text| {
        let names: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
        match names.iter().find(|name| !is_server_name(name)) {
            Some(wrong) => Err(format!("{wrong:?} is no host's name or address; give some such as db.example.com,10.0.0.5")),
            None => Ok(names),
        }
    })
}

/// Whether a certificate can be for it: an address, a DNS name, or one with a wildcard before it.
pub(crate) fn is_server_name(name: &str) -> bool {
    let plain = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        inner && !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
    };
    let dns = name.strip_prefix("*.").unwrap_or(name);
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && dns.split('.').all(plain))
}

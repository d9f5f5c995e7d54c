//! How the server's API is served over TLS.

use std::ffi::OsString;

use toygres_server::settings::{TlsSettings, is_server_name};

use super::source::{Sources, Value};
use super::{Folders, SettingsError, parse_bool};

/// The settings that give another process the same.
pub(super) fn to_texts(settings: &TlsSettings) -> Vec<(&'static str, OsString)> {
    match settings {
        TlsSettings::Own { names } if names.is_empty() => vec![("tls", "true".into())],
        TlsSettings::Own { names } => vec![("tls", "true".into()), ("tls_names", names.join(",").into())],
        TlsSettings::Given { certificate, key } => vec![("tls_certificate", certificate.into()), ("tls_key", key.into())],
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

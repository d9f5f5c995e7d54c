//! How applications log in.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use secrecy::{ExposeSecret, SecretString};
use toygres_models::ServerAddress;

use crate::platform::kubernetes::identity::PORT;

/// The entry with what signs the server's certificate.
const CA_ENTRY: &str = "ca.crt";

/// How an application in the cluster logs in as an instance's owner, but for the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::platform::kubernetes) struct Login {
    pub(in crate::platform::kubernetes) host: String,
    pub(in crate::platform::kubernetes) owner: String,
    pub(in crate::platform::kubernetes) database: String,
    /// What signs the server's certificate, in PEM.
    pub(in crate::platform::kubernetes) ca_certificate: String,
}

impl Login {
    pub(in crate::platform::kubernetes) fn in_secret(secret: &Secret) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let text = |name: &str| String::from_utf8(data.get(name)?.0.clone()).ok();
        Some(Self { host: text("host")?, owner: text("username")?, database: text("database")?, ca_certificate: text(CA_ENTRY)? })
    }

    /// The names of the entries that aren't in a Secret as they should be, with the password that it holds.
    pub(in crate::platform::kubernetes) fn differs(&self, secret: &Secret, password: &SecretString) -> Vec<&'static str> {
        let is_there = |name: &str, value: &str| {
            secret.data.as_ref().and_then(|data| data.get(name)).is_some_and(|found| found.0 == value.as_bytes())
        };
        self.entries(password).into_iter().filter(|(name, value)| !is_there(name, value)).map(|(name, _)| name).collect()
    }

    /// The Secret's entries besides the password. The URI names no file, since nobody knows where the Secret is mounted: it
    /// takes only a server that knows the password (`channel_binding`). Who wants `verify-full` as well has `ca.crt`.
    pub(in crate::platform::kubernetes) fn entries(&self, password: &SecretString) -> BTreeMap<&'static str, String> {
        let address = ServerAddress { host: self.host.clone(), port: PORT, ca_certificate_path: None };
        let uri = address.uri(&self.owner, &self.database).with_secret(password);
        BTreeMap::from([
            ("type", "postgresql".to_owned()),
            ("provider", "toygres".to_owned()),
            ("host", self.host.clone()),
            ("port", PORT.to_string()),
            ("username", self.owner.clone()),
            ("database", self.database.clone()),
            ("uri", uri.expose_secret().to_owned()),
            (CA_ENTRY, self.ca_certificate.clone()),
        ])
    }
}

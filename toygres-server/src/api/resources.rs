//! What goes over the wire besides the store's records: requests, connections, pages, problems.

use serde::{Deserialize, Serialize};
use toygres_models::PlatformName;

/// Header with the context that the server's kubeconfig has to be used with: a safeguard for whoever
/// means a particular cluster. A server that was started with another one refuses the request.
pub const KUBE_CONTEXT: &str = "x-toygres-kube-context";

/// Body of `POST /v1/instances`. Unknown fields are refused.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateInstance {
    /// The name.
    pub name: String,
    /// A major or a full version; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres_version: Option<String>,
    /// Storage in GB; 10 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_size_gb: Option<i64>,
    /// The superuser's password; a generated one if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// `local` or `kubernetes`; the server's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Whether it gets a public address; it has none if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_load_balancer: Option<bool>,
    /// Label of a public DNS name; only with `use_load_balancer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_label: Option<String>,
    /// Processor time that is its own, such as `500m`; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Memory that is its own, such as `2Gi`; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// The class of its volume; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
}

/// Answer of `GET /v1/instances/{name}/connection`. Holds the password.
#[derive(Clone, Serialize, Deserialize)]
pub struct Connection {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User name.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// Database name.
    pub database: String,
    /// `verify-full`, or `require` where the CA's certificate isn't on this machine.
    pub sslmode: String,
    /// Path of the CA's certificate on the server's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificate_path: Option<String>,
    /// The CA's certificate, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificate: Option<String>,
    /// Where it runs.
    pub platform: PlatformName,
    /// Which cluster, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Whether the host is known inside the platform's own network only: from elsewhere, the way is
    /// a port-forward.
    pub internal: bool,
    /// All of the above in one URI, percent-encoded.
    pub uri: String,
}

/// A page of a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Give it as `cursor` to get the next page; none on the last.
    pub next_cursor: Option<String>,
}

/// Answer of `/healthz` and `/readyz`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health {
    /// `ok`, or what is wrong.
    pub status: String,
    /// The server's version.
    pub version: String,
}

/// An error, as RFC 9457 has it: `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable word: `invalid`, `not_found`, `conflict`, `unauthorized`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind, for a person.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong, what is unchanged and what to do.
    pub detail: String,
    /// The field that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

//! The words that every part of toygres shares: validated names, versions and sizes, passwords
//! that can't leak, states and their legal transitions, and the metadata store's queries.
//!
//! Nothing in here knows of HTTP, Kubernetes or processes. A value of one of these types has been
//! checked: parse at the edge, then pass the type on.

pub mod connection;
pub mod failure;
pub mod labels;
pub mod log;
pub mod name;
pub mod password;
pub mod platform_name;
pub mod resources;
pub mod size;
mod sql;
pub mod state;
pub mod store;
pub mod token;
pub mod verdict;
pub mod version;
pub mod whole_file;

pub use connection::ConnectionUri;
pub use failure::{Failure, FailureKind};
pub use labels::{LabelSelector, Labels};
pub use log::{LogLine, LogRequest};
pub use name::{InstanceKey, InstanceName, Namespace, TokenName};
pub use password::{Password, SecretRef};
pub use platform_name::PlatformName;
pub use resources::{ClusterDomain, Cpu, DnsLabel, InstanceOptions, Memory, StorageClass};
pub use size::StorageSize;
pub use state::{InstanceState, OperationKind, OperationState, Role, StepState};
pub use store::Store;
pub use token::BearerToken;
pub use verdict::{Cause, Verdict};
pub use version::{OfferedVersion, PostgresVersion};

/// A value that was refused at the edge: which field, what is wrong with it, and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field's name as it stands in JSON, SQL and flags.
    pub field: &'static str,
    /// What is wrong and what is accepted, in one sentence. Never holds a secret.
    pub problem: String,
}

impl Invalid {
    /// An [`Invalid`] for `field`.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

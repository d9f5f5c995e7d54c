//! The words that every part of toygres shares: validated names, versions and sizes, passwords
//! that can't leak, states and their legal transitions, and the metadata store's queries.
//!
//! Nothing in here knows of HTTP, Kubernetes or processes. A value of one of these types has been
//! checked: parse at the edge, then pass the type on.

pub mod client_session;
pub mod drift;
pub mod failure;
pub mod health;
pub mod instance;
pub mod kind;
pub mod log;
mod sql;
pub mod state;
pub mod store;
pub mod text;
pub mod token;
mod values;
pub mod verdict;
pub mod whole_file;

pub use client_session::{ClientSession, SessionEnd};
pub use drift::Drift;
pub use failure::{Failure, FailureKind};
pub use health::{Health, HealthReason, HealthReasonKind, HealthStatus};
pub use instance::{InstanceSpec, InstanceStatus, MemberStatus, Power, StepFailure};
pub use kind::OperationKind;
pub use log::{LogLine, LogRequest};
pub use state::{InstanceState, OperationState, Role, StepState};
pub use store::Store;
pub use token::BearerToken;
pub use values::connection::{ConnectionUri, ServerAddress};
pub use values::extension::Extensions;
pub use values::labels::{LabelSelector, Labels};
pub use values::name::{DatabaseName, InstanceKey, InstanceName, Namespace, RoleName, TokenName};
pub use values::password::{Password, SecretRef};
pub use values::platform_name::PlatformName;
pub use values::resources::{ClusterDomain, Cpu, DnsLabel, Memory, StorageClass};
pub use values::size::StorageSize;
pub use values::version::{OfferedVersion, PostgresVersion};
pub use values::{connection, extension, labels, name, password, platform_name, resources, size, version};
pub use verdict::{Cause, Verdict};

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

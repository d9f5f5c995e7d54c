//! What is likely wrong with an instance, and what to do.

use serde::{Deserialize, Serialize};

/// What is likely wrong; stable words that programs may match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A disk or volume has no room left.
    DiskFull,
    /// Another program listens on the instance's port.
    PortTaken,
    /// All ports of the range that instances get are taken.
    PortsUsedUp,
    /// The image can't be pulled or used.
    BadImage,
    /// A quota of the cluster's namespace.
    QuotaExceeded,
    /// The volume can't be had.
    VolumeUnavailable,
    /// No node has room for the pod.
    NoRoom,
    /// The server used more memory than there is.
    OutOfMemory,
    /// The file system can't be written to.
    ReadOnlyDisk,
    /// The server doesn't take the password that toygres keeps.
    WrongPassword,
    /// The password that toygres keeps is gone.
    PasswordMissing,
    /// All of its connections are taken.
    TooManyConnections,
    /// A superuser of the instance took toygres's log-in away.
    LockedOut,
    /// Files or objects of the instance were removed by somebody else.
    DataMissing,
    /// Something around its data was removed, and the data is intact.
    PartsMissing,
    /// PostgreSQL's build lacks an extension that its spec names.
    ExtensionUnavailable,
    /// The PostgreSQL programs can't be had.
    ProgramsUnavailable,
    /// The server ends whenever it is started, or can't be started.
    CrashLoop,
    /// Somebody cancelled its creation, or a delete overtook it.
    GivenUp,
    /// Its server's process runs, and doesn't answer.
    Unresponsive,
    /// Its operation failed, and its server came up afterwards.
    CameUpLate,
    /// It works, and something has to be seen to.
    Degraded,
    /// It runs, and can't be reached from toygres's server.
    Unreachable,
    /// The platform itself can't be asked.
    PlatformUnavailable,
    /// None of the known ones.
    Unknown,
}

/// What is likely wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verdict {
    /// One sentence for a person.
    pub summary: String,
    /// The likely cause; none if nothing is wrong.
    pub likely_cause: Option<Cause>,
    /// What to do, a step each, with commands.
    pub fix: Vec<String>,
    /// The words that point to the cause: the platform's, or PostgreSQL's.
    pub evidence: Vec<String>,
}

//! Why a request had no good answer.

use std::time::Duration;

use url::Url;

use crate::resources::Problem;

/// Why a request had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refused it, and says why.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// Nobody listens there.
    #[error("the server at {url} can't be reached: {reason}")]
    Unreachable {
        /// The server.
        url: Url,
        /// The operating system's words.
        reason: String,
    },
    /// Somebody listens there, and no TLS connection came of it.
    #[error("no TLS connection to the server at {url}: {reason}")]
    Untrusted {
        /// The server.
        url: Url,
        /// What was wrong.
        reason: String,
    },
    /// The connection broke; whether the server got the request isn't known.
    #[error("the connection to the server at {url} broke: {reason}")]
    Broken {
        /// The server.
        url: Url,
        /// The operating system's words.
        reason: String,
    },
    /// No answer in time.
    #[error("the server at {url} did not answer within {} s", timeout.as_secs())]
    TimedOut {
        /// The server.
        url: Url,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// What answers there isn't a toygres server, or one that is too new or too old.
    #[error("what answers at {url} is not a toygres server of this version: {reason}")]
    Foreign {
        /// The server.
        url: Url,
        /// What was wrong with the answer.
        reason: String,
    },
    /// The request can't be made of these values.
    #[error("this request can't be sent: {0}")]
    Unsendable(String),
}

impl ClientError {
    /// Whether the server may be back soon: then the same request can be sent again, as each of
    /// the API's may be.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Refused(problem) => {
                problem.status >= 500 || matches!(problem.status, 408 | 429) || problem.name() == "in_progress"
            }
            Self::Unreachable { .. } | Self::Broken { .. } | Self::TimedOut { .. } => true,
            Self::Foreign { .. } | Self::Untrusted { .. } | Self::Unsendable(_) => false,
        }
    }
}

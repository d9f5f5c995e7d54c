//! A line of an instance's log, and which lines are asked for.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Which part of a log is wanted: all that is kept, unless it says less.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Only so many lines from the end of what there is.
    pub tail_lines: Option<usize>,
    /// Only what was logged at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Only what came after this line: its [`position`](LogLine::position). The two above don't count
    /// then.
    pub after: Option<String>,
    /// Whether to go on with what the server says from now on.
    pub follow: bool,
}

impl LogRequest {
    /// The last lines.
    #[must_use]
    pub fn tail(lines: usize) -> Self {
        Self { tail_lines: Some(lines), ..Self::default() }
    }
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The server's own text, without the line's end.
    pub text: String,
    /// Where in the log it ends, for [`LogRequest::after`]. It holds from one server of toygres to the
    /// next, has a meaning to its platform only, and no spaces. None of what isn't in a log: the platform's
    /// words about a server that has none yet.
    #[serde(skip)]
    pub position: Option<String>,
}

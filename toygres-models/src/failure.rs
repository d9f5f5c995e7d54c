//! Why a step of an operation failed: the one error that travels through workflows.

use serde::{Deserialize, Serialize};

/// What kind of thing went wrong; stable names that programs may match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The input can't be used; the message names the field.
    InvalidInput,
    /// What toygres would make is there already and isn't what was asked for, or isn't ours.
    Conflict,
    /// What was asked for isn't there.
    NotFound,
    /// Another operation on the same instance has to end first.
    Busy,
    /// The instance isn't wanted any more: a delete overtook its creation.
    Superseded,
    /// Somebody cancelled the operation.
    Cancelled,
    /// The PostgreSQL programs can't be found or fetched.
    ProgramsUnavailable,
    /// The server process or pod didn't come up, or ended.
    StartFailed,
    /// The instance can't be reached, or refused the log-in.
    ConnectionFailed,
    /// No room: ports, disk, quota.
    Exhausted,
    /// The platform (file system, operating system, API server) failed.
    Platform,
    /// The metadata store failed.
    Store,
    /// It took longer than allowed.
    TimedOut,
    /// A defect in toygres.
    Internal,
}

/// Why a step failed, and whether trying again can help.
///
/// Activities return it as JSON in the `String` that duroxide wants; people see the message.
/// No field ever holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema)]
#[error("{message}")]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// What was wrong, what is unchanged and what to do, for a person.
    pub message: String,
    /// Whether the same step may succeed later with no change by anyone.
    pub retryable: bool,
    /// The field of the input that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The platform's own words, oldest first: the tail of Postgres's log, a pod's events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
}

/// What of a message is kept. It may be the words of an instance's server, and those are its superuser's; they go into
/// histories, events and logs.
const MAX_MESSAGE_BYTES: usize = 4096;
const MAX_EVIDENCE_LINES: usize = 200;
const MAX_LINE_BYTES: usize = 2048;

/// The text, or its beginning.
fn cut(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes));
        text.push_str(" …");
    }
    text
}

impl Failure {
    /// A failure that trying again can't mend.
    pub fn permanent(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: cut(message.into(), MAX_MESSAGE_BYTES), retryable: false, field: None, evidence: Vec::new() }
    }

    /// A failure that may pass by itself.
    pub fn transient(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: cut(message.into(), MAX_MESSAGE_BYTES), retryable: true, field: None, evidence: Vec::new() }
    }

    /// The same failure, about one field of the input.
    #[must_use]
    pub fn with_field(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    /// The same failure, its message followed by what the server said last.
    #[must_use]
    pub fn with_headline(mut self, headline: &str) -> Self {
        self.message = cut(format!("{}: {headline}", self.message), MAX_MESSAGE_BYTES);
        self
    }

    /// The same failure with the platform's own words.
    #[must_use]
    pub fn with_evidence(mut self, evidence: Vec<String>) -> Self {
        self.evidence = evidence.into_iter().take(MAX_EVIDENCE_LINES).map(|line| cut(line, MAX_LINE_BYTES)).collect();
        self
    }

    /// The form in which it travels through duroxide.
    #[must_use]
    pub fn encode(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| self.message.clone())
    }

    /// Reads an activity's error. Text that isn't a failure's JSON comes from the workflow engine
    /// itself (a time-out, a poisoned item) and is permanent.
    #[must_use]
    pub fn decode(error: &str) -> Self {
        serde_json::from_str(error).unwrap_or_else(|_| Self::permanent(FailureKind::Internal, error))
    }
}

impl From<crate::Invalid> for Failure {
    fn from(invalid: crate::Invalid) -> Self {
        Self::permanent(FailureKind::InvalidInput, invalid.to_string()).with_field(invalid.field)
    }
}

impl From<sqlx::Error> for Failure {
    /// Most of what the store's database says may pass: it is restarted, fails over, comes back. A value that it doesn't take
    /// (classes 22 and 23) it won't take later either.
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code());
        let is_refused = code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"));
        let message = format!("the metadata store did not answer as it should: {error}");
        match is_refused {
            true => Self::permanent(FailureKind::Store, message),
            false => Self::transient(FailureKind::Store, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn travels_as_json_and_foreign_text_is_permanent() {
        let failure = Failure::transient(FailureKind::StartFailed, "x").with_evidence(vec!["FATAL: y".into()]);
        assert_eq!(Failure::decode(&failure.encode()), failure);
        let foreign = Failure::decode("activity timed out");
        assert!(!foreign.retryable && foreign.kind == FailureKind::Internal);
    }

    #[test]
    fn the_words_of_a_hostile_server_are_cut() {
        let failure = Failure::permanent(FailureKind::Platform, "ü".repeat(3_000_000))
            .with_headline(&"x".repeat(3_000_000))
            .with_evidence(vec!["x".repeat(3_000_000); MAX_EVIDENCE_LINES * 2]);
        assert!(failure.message.len() < MAX_MESSAGE_BYTES + 8 && failure.message.ends_with("ü …"));
        assert!(failure.encode().len() < MAX_MESSAGE_BYTES + MAX_EVIDENCE_LINES * (MAX_LINE_BYTES + 16));
    }

    #[test]
    fn reads_what_an_older_release_wrote() {
        let failure: Failure = serde_json::from_str(r#"{"kind":"platform","message":"m","retryable":true}"#).unwrap();
        assert_eq!(failure, Failure::transient(FailureKind::Platform, "m"));
    }
}

//! How a command fails: a message, what may help, and an exit status.

use std::error::Error;
use std::process::ExitCode;

use toygres_client::ClientError;
use toygres_client::resources::Problem;

use crate::settings::{ContextsError, SettingsError};

/// What a command comes to.
pub type Outcome = Result<ExitCode, CliError>;

/// Something that a person is told on standard error as `error: …` and `hint: …`.
#[derive(Debug)]
pub struct CliError {
    /// 1 for what failed, 2 for wrong usage.
    pub exit_status: u8,
    /// What was wrong.
    pub message: String,
    /// The platform's or server's own words, shown indented.
    pub evidence: Vec<String>,
    /// What to do, a line each.
    pub hints: Vec<String>,
    /// The server's refusal, where it is one.
    pub problem: Option<Box<Problem>>,
}

impl CliError {
    /// It was asked for rightly and didn't work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { exit_status: 1, message: message.into(), evidence: Vec::new(), hints: Vec::new(), problem: None }
    }

    /// It was asked for wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit_status: 2, ..Self::failed(message) }
    }

    /// It may not be deleted.
    pub fn protected(message: impl Into<String>) -> Self {
        Self::failed(message).hint(
            "`toygres get NAME -o yaml` prints it as a file; set delete_protection: false there, then `toygres apply -f FILE`",
        )
    }

    /// The same with something to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same with someone else's own words.
    #[must_use]
    pub fn evidence(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(lines);
        self
    }
}

impl From<SettingsError> for CliError {
    fn from(error: SettingsError) -> Self {
        Self::usage(chain(&error))
    }
}

impl From<ContextsError> for CliError {
    fn from(error: ContextsError) -> Self {
        let failed = Self::failed(chain(&error));
        match error {
            ContextsError::NotRead { path, .. } => failed.hint(format!(
                "it holds tokens, so it has to be a file of yours that nobody else can read: chmod 600 {}",
                path.display()
            )),
            ContextsError::Unknown(_) => {
                failed.hint("`toygres context list` shows those that there are, `toygres login URL` makes one")
            }
            _ => failed,
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(problem) => Self::from(problem),
            error @ ClientError::Foreign { .. } => Self::failed(error.to_string())
                .hint("if it is another version: `toygres server stop`, then run this command again"),
            error @ ClientError::Untrusted { .. } => Self::failed(error.to_string())
                .hint("give its CA's certificate by --ca-certificate or TOYGRES_CA_CERTIFICATE: toygres's own CA is the file `api-ca.crt` of the server's state directory")
                .hint("the address has to be one of the names in the server's certificate (--tls-names); a server without TLS has one with http://"),
            error => Self::failed(error.to_string()),
        }
    }
}

impl From<Box<Problem>> for CliError {
    fn from(problem: Box<Problem>) -> Self {
        let detail = problem.detail.clone();
        let error = match problem.name() {
            "invalid" => Self::usage(detail),
            "unauthorized" => Self::failed(detail).hint(
                "this one comes from TOYGRES_TOKEN, --token-file, the context (`toygres context list`) or the config file, or \
                 else from the state directory",
            ),
            "delete_protected" => Self::protected(detail),
            _ => Self::failed(detail),
        };
        Self { problem: Some(problem), ..error }
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_calls_invalid_is_wrong_usage_and_the_rest_a_failure() {
        for (kind, exit_status) in [("invalid", 2), ("not_found", 1), ("conflict", 1), ("unauthorized", 1), ("internal", 1)] {
            let problem = Problem { kind: kind.into(), title: String::new(), status: 400, detail: "why".into(), field: None };
            let error = CliError::from(ClientError::Refused(Box::new(problem)));
            assert_eq!((error.exit_status, error.message.as_str()), (exit_status, "why"));
        }
    }
}

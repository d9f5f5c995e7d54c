//! How a command fails: a message, what may help, and an exit status.

use std::error::Error;
use std::process::ExitCode;

use crate::client::ClientError;
use crate::settings::SettingsError;

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
}

impl CliError {
    /// It was asked for rightly and didn't work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { exit_status: 1, message: message.into(), evidence: Vec::new(), hints: Vec::new() }
    }

    /// It was asked for wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit_status: 2, ..Self::failed(message) }
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

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(problem) if problem.kind == "invalid" => Self::usage(problem.detail),
            ClientError::Refused(problem) if problem.kind == "unauthorized" => Self::failed(problem.detail)
                .hint("this one comes from TOYGRES_TOKEN, --token-file or the config file, or else from the state directory"),
            error @ ClientError::Foreign { .. } => Self::failed(error.to_string())
                .hint("if it is another version: `toygres server stop`, then run this command again"),
            error => Self::failed(error.to_string()),
        }
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
    use crate::api::resources::Problem;

    #[test]
    fn what_the_server_calls_invalid_is_wrong_usage_and_the_rest_a_failure() {
        for (kind, exit_status) in [("invalid", 2), ("not_found", 1), ("conflict", 1), ("unauthorized", 1), ("internal", 1)] {
            let problem = Problem { kind: kind.into(), title: String::new(), status: 400, detail: "why".into(), field: None };
            let error = CliError::from(ClientError::Refused(Box::new(problem)));
            assert_eq!((error.exit_status, error.message.as_str()), (exit_status, "why"));
        }
    }
}

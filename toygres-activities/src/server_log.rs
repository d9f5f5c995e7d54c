//! Which lines of a PostgreSQL server's log are the server's own: nobody's statement, and no part of one.
//!
//! Every line begins with [`PREFIX`]: the SQLSTATE, and what kind of process writes. That decides, together with
//! the severity; words don't, as a function may raise any. (A function that raises an error with the SQLSTATE of
//! a full disk is taken for the server.) Further lines of a message begin with a tab, so nobody forges a prefix.

use chrono::{DateTime, NaiveDateTime, Utc};

/// `log_line_prefix` of every server, on its command line: it holds from the first line on, whatever is configured. With it
/// goes `log_timezone=UTC`, and `lc_messages=C`, without which the severity is translated.
pub const PREFIX: &str = "%m [%p] %e %b: ";

/// Longest part of a line that is shown.
const MAX_LENGTH: usize = 500;
/// Processes that run nobody's functions.
const OWN: &[&str] = &[
    "postmaster",
    "startup",
    "checkpointer",
    "background writer",
    "walwriter",
    "walreceiver",
    "walsummarizer",
    "archiver",
    "logger",
    "io worker",
];
/// Those of them that tell of the server's life.
const TELLS_LIFE: &[&str] = &["postmaster", "startup"];
const SUCCESS: &str = "00000";
/// Errors of sessions that are the machine's: no room, memory or files (class 53), input and output, broken data.
const OF_MACHINE: &[&str] = &["53", "58030", "XX001", "XX002"];
/// What ends a session, or isn't an error, that is the server's: also log-ins that are refused (28, 3D), shutdown and
/// crash (57P), configuration (F0), system errors, and bugs.
const OF_SERVER: &[&str] = &["28", "3D", "53", "57P", "58", "F0", "XX"];
/// Programs that write to a log without a prefix.
const PROGRAMS: &[&str] = &["initdb: ", "postgres: ", "sh: "];

/// A line of a log that begins with [`PREFIX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// When; not where the time was taken off before.
    pub at: Option<DateTime<Utc>>,
    /// The SQLSTATE.
    pub code: &'a str,
    /// What kind of process wrote it, by PostgreSQL's name.
    pub process: &'a str,
    /// `LOG`, `FATAL` and so on; also `DETAIL`, `STATEMENT` and others that go with a message.
    pub severity: &'a str,
    /// What it says.
    pub words: &'a str,
    /// The line without time, process and SQLSTATE.
    pub message: &'a str,
}

/// A line of a server's log that may be shown to anybody who may see the instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownLine {
    /// When, where the line tells it.
    pub at: Option<DateTime<Utc>>,
    /// The line without its time.
    pub text: String,
}

impl<'a> Line<'a> {
    /// With or without its time; `None` if it has no such prefix.
    #[must_use]
    pub fn parse(line: &'a str) -> Option<Self> {
        let (at, text) = timed(line);
        let (number, rest) = text.strip_prefix('[')?.split_once("] ")?;
        let (code, rest) = rest.split_once(' ')?;
        let (process, message) = rest.split_once(": ")?;
        let (severity, words) = message.split_once(":  ")?;
        let is_code = code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
        let is_prefix = is_code && number.bytes().all(|byte| byte.is_ascii_digit());
        is_prefix.then_some(Self { at, code, process, severity, words, message })
    }

    /// Whether it ended the process that wrote it, or the whole server.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, "FATAL" | "PANIC")
    }

    fn is_servers_own(&self) -> bool {
        let is_one_of = |codes: &[&str]| codes.iter().any(|code| self.code.starts_with(code));
        let is_own = OWN.contains(&self.process);
        match self.severity {
            "PANIC" => true,
            "FATAL" => is_own || is_one_of(OF_SERVER),
            "ERROR" => is_own || is_one_of(OF_MACHINE),
            "WARNING" => is_own,
            // Of a setting that was changed, the value is quoted.
            "LOG" if self.code == SUCCESS => TELLS_LIFE.contains(&self.process) && !self.words.contains('"'),
            "LOG" => is_own && is_one_of(OF_SERVER),
            _ => false,
        }
    }
}

/// Tells the lines in which a server, or a program that makes one, speaks of itself from those of its sessions, which may
/// hold anything that a user sent it.
#[derive(Debug, Default)]
pub struct OwnLines {
    last_is_own: bool,
}

impl OwnLines {
    /// Whether the next line of a log is one. A hint belongs to the line before it.
    pub fn is_own(&mut self, text: &str) -> bool {
        self.last_is_own = match Line::parse(text) {
            Some(line) if line.severity == "HINT" => self.last_is_own,
            Some(line) => line.is_servers_own(),
            None => PROGRAMS.iter().any(|program| text.starts_with(program)),
        };
        self.last_is_own
    }
}

/// The server's own lines, in order.
pub(crate) fn own_lines<Text: AsRef<str>>(lines: impl IntoIterator<Item = Text>) -> impl Iterator<Item = Text> {
    let mut own = OwnLines::default();
    lines.into_iter().filter(move |text| own.is_own(text.as_ref()))
}

/// The server's own lines, in order, to be shown.
#[must_use]
pub fn parse_own_lines<Text: AsRef<str>>(lines: impl IntoIterator<Item = Text>) -> Vec<ShownLine> {
    own_lines(lines).map(|line| ShownLine::parse(line.as_ref())).collect()
}

impl ShownLine {
    /// Takes the time off a line, and cuts what is too long to be shown.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        let (at, text) = timed(line);
        let text = match text.char_indices().nth(MAX_LENGTH) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        };
        Self { at, text }
    }
}

/// Of such lines, the one to quote in a sentence: the last of the gravest.
pub(crate) fn headline<Text: AsRef<str>>(lines: &[Text]) -> Option<&str> {
    let grave = |text: &&str| match Line::parse(text) {
        Some(line) if line.is_fatal() => 2,
        Some(line) => u8::from(line.severity != "HINT" && line.code != SUCCESS),
        None => 1,
    };
    let gravest = lines.iter().map(AsRef::as_ref).max_by_key(grave).filter(|text| grave(text) > 0)?;
    Some(Line::parse(gravest).map_or(gravest, |line| line.message))
}

/// A line without its time and its process's number.
#[must_use]
pub fn without_process(text: &str) -> &str {
    let text = timed(text).1;
    text.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(text, |(_, message)| message)
}

/// The time with which a line begins.
pub(crate) fn time_of(line: &str) -> Option<DateTime<Utc>> {
    timed(line).0
}

fn timed(line: &str) -> (Option<DateTime<Utc>>, &str) {
    let split = || {
        // The parser passes over white space, with which the further lines of a message begin.
        let (time, rest) = line.split_once(" UTC ").filter(|_| line.starts_with(|c: char| c.is_ascii_digit()))?;
        let time = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.f").ok()?;
        Some((Some(time.and_utc()), rest))
    };
    split().unwrap_or((None, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_decided_by_severity_sqlstate_and_process_and_no_words() {
        let log = "\
2026-01-01 00:00:00.123 UTC [1] 00000 postmaster: LOG:  starting PostgreSQL 15.18
2026-01-01 00:00:00.130 UTC [1] 00000 postmaster: LOG:  listening on Unix socket \"/secret\"
2026-01-01 00:00:00.140 UTC [1] 00000 postmaster: LOG:  parameter \"primary_conninfo\" changed to \"password=secret\"
2026-01-01 00:00:00.150 UTC [1] XX000 postmaster: LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use
2026-01-01 00:00:00.150 UTC [1] XX000 postmaster: HINT:  Is another postmaster already running on port 5432?
2026-01-01 00:00:00.200 UTC [9] 00000 checkpointer: LOG:  checkpoint starting: time
2026-01-01 00:00:01.000 UTC [7] 22P02 client backend: ERROR:  invalid input syntax for type integer: \"secret\"
2026-01-01 00:00:01.000 UTC [7] 22P02 client backend: HINT:  Perhaps you meant secret.
2026-01-01 00:00:01.000 UTC [7] P0001 client backend: ERROR:  secret: No space left on device
2026-01-01 00:00:01.000 UTC [7] 00000 client backend: LOG:  could not secret: No space left on device
2026-01-01 00:00:01.000 UTC [8] 01000 autovacuum worker: WARNING:  secret
2026-01-01 00:00:01.000 UTC [7] 42501 client backend: ERROR:  permission denied for table secret
2026-01-01 00:00:01.000 UTC [7] 57014 client backend: ERROR:  canceling secret
2026-01-01 00:00:01.000 UTC [7] 00000 client backend: STATEMENT:  alter role postgres password 'secret'
\t2026-01-01 00:00:01.000 UTC [1] 53100 postmaster: FATAL:  secret
[1] secret
secret: No space left on device
2026-01-01 00:00:02.000 UTC [7] 53100 client backend: ERROR:  could not extend file \"base/1\": No space left on device
2026-01-01 00:00:02.000 UTC [7] 53100 client backend: HINT:  Check free disk space.
2026-01-01 00:00:02.000 UTC [7] 53100 client backend: STATEMENT:  insert into secret
2026-01-01 00:00:02.000 UTC [1] F0000 postmaster: FATAL:  configuration file \"postgresql.conf\" contains errors
2026-01-01 00:00:02.000 UTC [1] 00000 postmaster: LOG:  server process (PID 7) was terminated by signal 9: Killed
2026-01-01 00:00:02.000 UTC [1] 00000 postmaster: DETAIL:  Failed process was running: select secret
2026-01-01 00:00:02.000 UTC [7] 28P01 client backend: FATAL:  password authentication failed for user \"guess\"
2026-01-01 00:00:03.000 UTC [4] XX000 startup: PANIC:  could not locate a valid checkpoint record
initdb: error: directory \"/data\" exists but is not empty";
        let lines = parse_own_lines(log.lines());
        let texts: Vec<_> = lines.iter().map(|lines| lines.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "[1] 00000 postmaster: LOG:  starting PostgreSQL 15.18",
                "[1] XX000 postmaster: LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use",
                "[1] XX000 postmaster: HINT:  Is another postmaster already running on port 5432?",
                "[7] 53100 client backend: ERROR:  could not extend file \"base/1\": No space left on device",
                "[7] 53100 client backend: HINT:  Check free disk space.",
                "[1] F0000 postmaster: FATAL:  configuration file \"postgresql.conf\" contains errors",
                "[1] 00000 postmaster: LOG:  server process (PID 7) was terminated by signal 9: Killed",
                "[7] 28P01 client backend: FATAL:  password authentication failed for user \"guess\"",
                "[4] XX000 startup: PANIC:  could not locate a valid checkpoint record",
                "initdb: error: directory \"/data\" exists but is not empty",
            ]
        );
        assert_eq!(lines[0].at.unwrap().to_rfc3339(), "2026-01-01T00:00:00.123+00:00");
        assert_eq!(lines[9].at, None);
        assert_eq!(headline(&texts), Some("PANIC:  could not locate a valid checkpoint record"));
        assert_eq!(headline(&texts[..3]), Some("LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use"));
        assert_eq!(headline(&texts[..1]), None);
        assert_eq!(Line::parse(texts[3]).map(|line| line.code), Some("53100"), "it may be read again");
    }
}

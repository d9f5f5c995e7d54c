//! What PostgreSQL's log says of trouble, without what people asked it.

use chrono::{DateTime, NaiveDateTime, Utc};

/// A line of a server's log that may be shown to anybody who may see the instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// When, where the line tells it.
    pub at: Option<DateTime<Utc>>,
    /// The line without its time.
    pub text: String,
}

/// Longest part of a line that is shown.
const MAX_LENGTH: usize = 500;
/// Statements, their parts and their values.
const PRIVATE: &[&str] = &["STATEMENT:", "QUERY:", "CONTEXT:", "DETAIL:"];
/// How the lines begin in which a server speaks of itself. What comes later in a line may be anybody's. (Whoever lets a
/// function of theirs write such a line into the log is taken for the server.)
const LIFE: &[&str] = &[
    "could not ",
    "out of memory",
    "starting PostgreSQL",
    "database system ",
    "received ",
    "server process ",
    "startup process ",
    "background worker ",
    "terminating any other active server processes",
    "all server processes terminated",
];
/// How errors of sessions end that are the machine's. All others are the session's own, also those that begin with
/// "could not": a function may raise what it likes.
const MACHINE: &[&str] = &[
    ": No space left on device",
    ": Disk quota exceeded",
    ": Input/output error",
    ": Read-only file system",
    ": Cannot allocate memory",
    ": Too many open files",
    ": Too many open files in system",
    ": Permission denied",
];
/// How programs begin that have no levels.
const PROGRAMS: &[&str] = &["initdb: error", "postgres: error", "postgres: could not ", "pg_ctl: error", "sh: "];

/// The lines that tell of a server's life and its troubles, in order.
///
/// Left out are statements and values: lines of statements, the further lines of whatever has several
/// (they begin with a tab), and errors of sessions that aren't the machine's.
#[must_use]
pub fn telling<Line: AsRef<str>>(lines: impl IntoIterator<Item = Line>) -> Vec<Said> {
    let said = |line: Line| {
        let (at, text) = timed(line.as_ref());
        Said { at, text: shortened(text) }
    };
    told(lines).map(said).collect()
}

/// The same lines as they were written.
pub(crate) fn told<Line: AsRef<str>>(lines: impl IntoIterator<Item = Line>) -> impl Iterator<Item = Line> {
    let mut last_told = false;
    lines.into_iter().filter(move |line| {
        let line = line.as_ref();
        last_told = is_public(line) && tells(timed(line).1, last_told);
        last_told
    })
}

/// Whether a line is no statement, no part of one, and holds no values of one.
#[must_use]
pub fn is_public(line: &str) -> bool {
    let is_sessions_error =
        || matches!(without_process(timed(line).1).split_once(':'), Some(("ERROR", words)) if !is_machines(words));
    !line.starts_with('\t') && !PRIVATE.iter().any(|private| line.contains(private)) && !is_sessions_error()
}

/// Whether an error's words are the machine's.
fn is_machines(words: &str) -> bool {
    let words = words.trim_start();
    words == "out of memory" || (words.starts_with("could not ") && MACHINE.iter().any(|ending| words.ends_with(ending)))
}

/// Whether a public line without its time is one to tell; a hint is, after one that is.
fn tells(text: &str, last_told: bool) -> bool {
    let begins = |text: &str, beginnings: &[&str]| beginnings.iter().any(|beginning| text.starts_with(beginning));
    match without_process(text).split_once(':') {
        Some(("FATAL" | "PANIC" | "ERROR", _)) => true,
        Some(("HINT", _)) => last_told,
        Some(("LOG" | "WARNING", words)) => begins(words.trim_start(), LIFE),
        _ => begins(text, PROGRAMS),
    }
}

/// A line without its time and its process's number.
#[must_use]
pub fn without_process(text: &str) -> &str {
    text.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(text, |(_, message)| message)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_LENGTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A line's time in UTC, as toygres has its servers write it, and the rest. (A server that can't read its settings yet calls
/// it GMT.)
fn timed(line: &str) -> (Option<DateTime<Utc>>, &str) {
    let split = |zone: &&str| {
        let (time, rest) = line.split_once(*zone)?;
        let time = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.f").ok()?;
        Some((Some(time.and_utc()), rest.trim_start()))
    };
    [" UTC ", " GMT "].iter().find_map(split).unwrap_or((None, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_of_trouble_and_no_statement() {
        let log = "\
2026-01-01 00:00:00.123 UTC [1] LOG:  starting PostgreSQL 15.18
2026-01-01 00:00:00.200 UTC [9] LOG:  checkpoint starting: time
2026-01-01 00:00:01.000 UTC [7] ERROR:  invalid input syntax for type integer: \"secret\"
2026-01-01 00:00:01.000 UTC [7] ERROR:  invalid input syntax for type integer: \"could not secret\"
2026-01-01 00:00:01.000 UTC [7] HINT:  Perhaps you meant secret.
2026-01-01 00:00:01.000 UTC [7] ERROR:  could not charge card secret
2026-01-01 00:00:01.000 UTC [7] ERROR:  out of memory of secret
2026-01-01 00:00:01.000 UTC [7] LOG:  statement: select 'secret could not database system '
2026-01-01 00:00:01.000 UTC [7] STATEMENT:  alter role postgres password 'secret'
\tcould not 'secret'
2026-01-01 00:00:02.000 UTC [7] ERROR:  could not extend file \"base/1\": No space left on device
2026-01-01 00:00:02.000 UTC [7] HINT:  Check free disk space.
2026-01-01 00:00:02.000 GMT [1] FATAL:  configuration file \"postgresql.conf\" contains errors
2026-01-01 00:00:02.000 UTC [7] DETAIL:  Key (name)=(secret) could not be found.
2026-01-01 00:00:03.000 UTC [1] PANIC:  could not locate a valid checkpoint record
initdb: error: directory \"/data\" exists but is not empty";
        let said = telling(log.lines());
        let texts: Vec<_> = said.iter().map(|said| said.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "[1] LOG:  starting PostgreSQL 15.18",
                "[7] ERROR:  could not extend file \"base/1\": No space left on device",
                "[7] HINT:  Check free disk space.",
                "[1] FATAL:  configuration file \"postgresql.conf\" contains errors",
                "[1] PANIC:  could not locate a valid checkpoint record",
                "initdb: error: directory \"/data\" exists but is not empty",
            ]
        );
        assert_eq!(said[0].at.unwrap().to_rfc3339(), "2026-01-01T00:00:00.123+00:00");
        assert_eq!(said[5].at, None);
    }
}

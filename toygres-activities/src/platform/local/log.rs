//! A server's log: its last lines, its own words about a failure, and a bound on its size.
//! ([`log_reader`](super::log_reader) reads it as a stream.)

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use toygres_models::Failure;

use super::files::failed;
use crate::server_log::told;

const CHUNK_BYTES: u64 = 64 * 1024;
/// Longest part of a log that is ever read at once.
const MAX_TAIL_BYTES: u64 = 4 * 1024 * 1024;
/// Where a log is cut; with the one kept, an instance's logs take at most twice this.
const MAX_LOG_BYTES: u64 = 16 * 1024 * 1024;

/// The last `lines` lines, oldest first, read from the end.
pub(super) fn tail(path: &Path, lines: usize) -> io::Result<Vec<String>> {
    if lines == 0 {
        return Ok(Vec::new());
    }
    let mut file = File::open(path)?;
    let mut start = file.seek(SeekFrom::End(0))?;
    let end = start;
    let mut content: Vec<u8> = Vec::new();
    // One line break more than lines, as the last line ends with one.
    while start > 0 && end - start < MAX_TAIL_BYTES && content.iter().filter(|byte| **byte == b'\n').count() <= lines {
        let length = CHUNK_BYTES.min(start);
        start -= length;
        file.seek(SeekFrom::Start(start))?;
        let mut chunk = Vec::with_capacity(content.len() + usize::try_from(length).unwrap_or(0));
        (&mut file).take(length).read_to_end(&mut chunk)?;
        chunk.append(&mut content);
        content = chunk;
    }
    let text = String::from_utf8_lossy(&content);
    let all: Vec<_> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect())
}

/// What was written from `offset` on, at most the last 64 KiB of it.
pub(super) fn since(path: &Path, offset: u64) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        // Shorter than before: it was cut in between.
        let offset = if offset > length { 0 } else { offset };
        file.seek(SeekFrom::Start(offset.max(length.saturating_sub(CHUNK_BYTES))))?;
        let mut content = Vec::new();
        file.take(CHUNK_BYTES).read_to_end(&mut content)?;
        Ok(content)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).lines().map(str::to_owned).collect()
}

/// A log line without its time and process id.
pub(super) fn message_of(line: &str) -> &str {
    ["FATAL:", "PANIC:", "ERROR:", "HINT:", "DETAIL:", "WARNING:", "LOG:"]
        .iter()
        .find_map(|level| line.find(level))
        .map_or(line, |at| &line[at..])
}

fn has_level(line: &str, levels: &[&str]) -> bool {
    levels.iter().any(|level| message_of(line).starts_with(level))
}

/// The lines that say why a server did not start or ended, oldest first, at most 20. Those of sessions are left out: they
/// may hold anything of the user's.
pub(super) fn significant(lines: &[String]) -> Vec<String> {
    const LEVELS: &[&str] = &["FATAL:", "PANIC:", "ERROR:", "HINT:", "WARNING:"];
    let wanted: Vec<_> = told(lines)
        .filter(|line| {
            has_level(line, LEVELS)
                || line.contains("could not")
                || line.contains("was terminated by signal")
                || line.contains("shutdown request")
        })
        .collect();
    wanted[wanted.len().saturating_sub(20)..].iter().map(|line| (*line).clone()).collect()
}

/// The one line to quote in a sentence: the last of the gravest.
pub(super) fn headline(lines: &[String]) -> Option<&str> {
    let lines: Vec<_> = told(lines).collect();
    let last = |levels: &[&str]| lines.iter().rev().find(|line| has_level(line, levels)).map(|line| message_of(line));
    last(&["PANIC:", "FATAL:"]).or_else(|| last(&["ERROR:"])).or_else(|| {
        lines.iter().rev().find(|line| line.contains("could not") || line.contains("terminated by")).map(|line| message_of(line))
    })
}

/// Where what was cut from a log is kept.
pub(super) fn kept_path(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Cuts a log that has grown too long. What there was is kept beside it as `….1`.
///
/// The server has it open for appending, so cutting it in place needs no word to the server; lines
/// written in the instant between the copy's end and the cut are lost. The copy gets its name when it
/// is whole, and before the cut: whoever reads the log finds every line in one of the two.
pub(super) fn bound(path: &Path) -> Result<bool, Failure> {
    if std::fs::metadata(path).map_or(0, |found| found.len()) <= MAX_LOG_BYTES {
        return Ok(false);
    }
    cut(path).map(|()| true)
}

pub(super) fn cut(path: &Path) -> Result<(), Failure> {
    let (unnamed, kept) = (path.with_extension("log.new"), kept_path(path));
    let copy = || -> io::Result<File> {
        let mut log = OpenOptions::new().read(true).write(true).open(path)?;
        let mut copy = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unnamed)?;
        io::copy(&mut log, &mut copy)?;
        std::fs::rename(&unnamed, &kept)?;
        // What came meanwhile.
        io::copy(&mut log, &mut copy)?;
        Ok(log)
    };
    let log = copy().map_err(failed("copy the log to", &kept))?;
    log.set_len(0).map_err(failed("cut", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_tail_of_a_log_longer_than_a_chunk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgres.log");
        let text: String = (0..20_000).map(|n| format!("line {n} é\n")).collect();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(tail(&path, 2).unwrap(), ["line 19998 é", "line 19999 é"]);
        let many = tail(&path, 15_000).unwrap();
        assert_eq!((many.len(), many[0].as_str()), (15_000, "line 5000 é"));
        assert_eq!(tail(&path, 100_000).unwrap().len(), 20_000);
        assert!(tail(&path, 0).unwrap().is_empty());
        assert_eq!(since(&path, text.len() as u64 - 14), ["line 19999 é"]);
    }

    #[test]
    fn a_last_line_without_its_end_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgres.log");
        std::fs::write(&path, "a\nb\nc").unwrap();
        assert_eq!(tail(&path, 2).unwrap(), ["b", "c"]);
        std::fs::write(&path, "").unwrap();
        assert!(tail(&path, 2).unwrap().is_empty());
    }

    #[test]
    fn a_failure_is_told_in_the_servers_words_and_no_statement() {
        let log = lines(
            "2026-01-01 00:00:00.000 UTC [1] LOG:  starting PostgreSQL 15.18\n\
             2026-01-01 00:00:00.000 UTC [1] LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use\n\
             2026-01-01 00:00:00.000 UTC [1] HINT:  Is another postmaster already running on port 20001?\n\
             2026-01-01 00:00:00.000 UTC [1] STATEMENT:  could not 'secret'\n\
             2026-01-01 00:00:00.000 UTC [7] ERROR:  duplicate key value violates unique constraint \"secret\"\n\
             2026-01-01 00:00:00.000 UTC [7] DETAIL:  Key (name)=(secret) already exists.\n\
             2026-01-01 00:00:00.000 UTC [7] HINT:  secret\n\
             2026-01-01 00:00:00.000 UTC [7] WARNING:  secret\n\
             2026-01-01 00:00:00.000 UTC [7] ERROR:  could not charge card secret\n\
             2026-01-01 00:00:00.000 UTC [1] FATAL:  could not create any TCP/IP sockets\n\
             2026-01-01 00:00:00.000 UTC [1] LOG:  database system is shut down",
        );
        assert_eq!(headline(&log), Some("FATAL:  could not create any TCP/IP sockets"));
        let significant = significant(&log);
        assert_eq!(significant.len(), 3, "{significant:?}");
        assert!(!significant.iter().any(|line| line.contains("secret")));
    }

    #[test]
    fn a_long_log_is_cut_and_kept_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgres.log");
        std::fs::write(&path, vec![b'x'; 17 << 20]).unwrap();
        assert!(bound(&path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(std::fs::metadata(folder.path().join("postgres.log.1")).unwrap().len(), 17 << 20);
        assert!(!bound(&path).unwrap());
    }
}

//! Reading a server's log as a stream, in chunks, and going on with it while the server writes and
//! [`log::cut`](super::log::cut) cuts.
//!
//! A log is a sequence of parts. The newest is `postgres.log`; when that is cut, its content is the part
//! before, in `postgres.log.1`, and what the server writes next is a new part at the same path. So a part
//! isn't known by its path, but by how it begins: the first lines hold the time and process that wrote
//! them. Each chunk that was read is compared with that afterwards, and a position holds a digest of it:
//! both stay right whoever cuts meanwhile, and however often toygres is started anew.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use futures::{StreamExt, stream};
use sha2::{Digest, Sha256};
use toygres_models::{Failure, FailureKind};

use super::files::{blocking, failed};
use super::log::kept_path;
use crate::platform::logs::{LineBuffer, LogLine, LogRequest, LogStream, RawLine};

/// How often it is looked whether a log has grown. (Another process writes it. Being told by the system
/// instead would take a watch of the folder as well, a limited resource, and still these looks, since
/// not every file system tells.)
const POLL: Duration = Duration::from_millis(200);
const CHUNK_BYTES: usize = 64 * 1024;
/// How much of a part's beginning it is known by.
const HEAD_BYTES: u64 = 1024;

/// Where an instance's log is.
#[derive(Debug, Clone)]
pub(super) struct LogFiles {
    /// The instance's folder: without it, there is no instance.
    pub(super) home: PathBuf,
    /// `postgres.log`.
    pub(super) log: PathBuf,
}

/// One part, being read.
#[derive(Debug, Clone)]
struct Part {
    file: Arc<File>,
    inode: u64,
    /// Its beginning, as far as it was seen.
    head: Vec<u8>,
    /// Up to where it was read.
    read: u64,
}

enum Chunk {
    Bytes(Vec<u8>),
    End,
    /// What is at its path now is another part.
    Cut,
}

/// How reading goes on.
enum Step {
    /// The same part goes on with these bytes.
    More(Vec<u8>),
    /// The part has ended; another one begins with these bytes.
    Next(Vec<u8>),
    Wait,
    End,
}

/// Reads a log. See [`Platform::logs`](crate::platform::Platform::logs).
pub(super) struct LogReader {
    files: LogFiles,
    follow: bool,
    /// Lines are passed over until one of that time.
    since: Option<DateTime<Utc>>,
    part: Option<Part>,
    lines: LineBuffer,
    /// Up to where lines of the part were given.
    given: u64,
    /// Of the part's head, once lines as long as that were given.
    digest: Option<String>,
}

/// What a [`LogLine::position`] says: how far into the part with that beginning.
#[derive(Debug, PartialEq, Eq)]
struct Position {
    offset: u64,
    /// Of the part's first bytes: [`HEAD_BYTES`], or `offset` if that is less.
    digest: String,
}

impl Position {
    fn of(head: &[u8], offset: u64) -> Self {
        let known = usize::try_from(offset.min(HEAD_BYTES)).unwrap_or(usize::MAX).min(head.len());
        let digest = Sha256::digest(&head[..known]);
        Self { offset, digest: digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect() }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.offset, self.digest)
    }
}

impl FromStr for Position {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let read = || {
            let (offset, digest) = text.split_once('-')?;
            Some(Self { offset: offset.parse().ok()?, digest: digest.to_owned() })
        };
        read().ok_or_else(|| {
            let message = "after: that is no position in this instance's log; give one that came with a line";
            Failure::permanent(FailureKind::InvalidInput, message).with_field("after")
        })
    }
}

/// Reads until the buffer is full or the file ends.
fn read_at(file: &File, mut offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, offset) {
            Ok(0) => break,
            Ok(count) => (filled, offset) = (filled + count, offset + count as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn read_head(file: &File) -> io::Result<Vec<u8>> {
    read_at(file, 0, usize::try_from(HEAD_BYTES).unwrap_or_default())
}

/// `None` for what isn't there.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

impl Part {
    fn open(path: &Path, from: u64) -> io::Result<Option<Self>> {
        let Some(file) = there(File::open(path))? else { return Ok(None) };
        let (inode, head) = (file.metadata()?.ino(), read_head(&file)?);
        Ok(Some(Self { file: Arc::new(file), inode, head, read: from }))
    }

    fn read(&mut self) -> io::Result<Chunk> {
        let bytes = read_at(&self.file, self.read, CHUNK_BYTES)?;
        // Looked at afterwards: what was read before a cut is of this part.
        let head = read_head(&self.file)?;
        if !head.starts_with(&self.head) || (bytes.is_empty() && self.file.metadata()?.len() < self.read) {
            return Ok(Chunk::Cut);
        }
        self.head = head;
        self.read += bytes.len() as u64;
        Ok(if bytes.is_empty() { Chunk::End } else { Chunk::Bytes(bytes) })
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        Ok(there(std::fs::metadata(path))?.is_some_and(|found| found.ino() == self.inode))
    }

    /// Where the last `lines` lines begin, and how many there are.
    fn tail(&self, lines: usize) -> io::Result<(u64, usize)> {
        let (mut start, mut found) = (self.file.metadata()?.len(), 0);
        if start == 0 {
            return Ok((0, 0));
        }
        // The line break at the very end ends the last line, and begins none.
        let mut is_last = true;
        while start > 0 {
            let length = start.min(CHUNK_BYTES as u64);
            start -= length;
            let chunk = read_at(&self.file, start, usize::try_from(length).unwrap_or_default())?;
            for (at, _) in chunk.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                let ends_all = std::mem::take(&mut is_last) && at + 1 == chunk.len();
                if ends_all && lines > 0 {
                    continue;
                }
                found += usize::from(!ends_all);
                if found >= lines {
                    return Ok((start + at as u64 + 1, lines));
                }
            }
            is_last = false;
        }
        Ok((0, lines.min(found + 1)))
    }
}

impl LogFiles {
    /// The part before `postgres.log`'s, from its beginning. A copy that wasn't followed by the cut, as
    /// toygres was killed in between, is none.
    fn kept(&self) -> io::Result<Option<Part>> {
        let kept = Part::open(&kept_path(&self.log), 0)?;
        let log = Part::open(&self.log, 0)?;
        Ok(kept.filter(|kept| log.is_none_or(|log| log.head != kept.head)))
    }

    fn oldest(&self) -> io::Result<Option<Part>> {
        match self.kept()? {
            Some(kept) => Ok(Some(kept)),
            None => Part::open(&self.log, 0),
        }
    }

    fn tail(&self, lines: usize) -> io::Result<Option<Part>> {
        let Some(log) = Part::open(&self.log, 0)? else { return Ok(None) };
        let (start, found) = log.tail(lines)?;
        if found < lines
            && let Some(kept) = self.kept()?
        {
            let (start, _) = kept.tail(lines - found)?;
            return Ok(Some(Part { read: start, ..kept }));
        }
        Ok(Some(Part { read: start, ..log }))
    }

    /// The part that the position is in; the oldest one if that is gone.
    fn resume(&self, position: &Position) -> io::Result<Option<Part>> {
        for path in [self.log.clone(), kept_path(&self.log)] {
            let found = Part::open(&path, position.offset)?;
            let is_it = |part: &Part| {
                let long_enough = part.file.metadata().is_ok_and(|found| found.len() >= position.offset);
                long_enough && Position::of(&part.head, position.offset) == *position
            };
            if let Some(part) = found.filter(is_it) {
                return Ok(Some(part));
            }
        }
        self.oldest()
    }

    /// The part after one that was kept, and its first bytes.
    fn after_kept(&self, last: &Part) -> io::Result<(Option<Part>, Vec<u8>)> {
        let Some(mut next) = Part::open(&self.log, 0)? else { return Ok((None, Vec::new())) };
        let chunk = next.read()?;
        // If it wasn't cut again before that, it is the one that follows.
        if last.is_at(&kept_path(&self.log))? {
            let bytes = if let Chunk::Bytes(bytes) = chunk { bytes } else { Vec::new() };
            return Ok((Some(next), bytes));
        }
        Ok((self.oldest()?, Vec::new()))
    }

    /// Reads on.
    fn advance(&self, part: Option<Part>, follow: bool) -> io::Result<(Option<Part>, Step)> {
        let Some(mut part) = part else {
            // The server hasn't been started yet.
            return Ok(match Part::open(&self.log, 0)? {
                Some(part) => (Some(part), Step::More(Vec::new())),
                None if follow && self.home.exists() => (None, Step::Wait),
                None => (None, Step::End),
            });
        };
        match part.read()? {
            Chunk::Bytes(bytes) => Ok((Some(part), Step::More(bytes))),
            Chunk::Cut => {
                let kept = self.kept()?.filter(|kept| kept.head.starts_with(&part.head));
                Ok(match kept {
                    Some(kept) => (Some(Part { read: part.read, ..kept }), Step::More(Vec::new())),
                    // Cut twice: what was between is gone.
                    None => (self.oldest()?, Step::Next(Vec::new())),
                })
            }
            Chunk::End => match there(std::fs::metadata(&self.log))? {
                Some(log) if log.ino() == part.inode => {
                    let step = if follow { Step::Wait } else { Step::End };
                    Ok((Some(part), step))
                }
                Some(_) => {
                    let (next, bytes) = self.after_kept(&part)?;
                    Ok((next, Step::Next(bytes)))
                }
                // Whoever removed only the file hasn't removed it from the server that writes it.
                None if follow && self.home.exists() => Ok((Some(part), Step::Wait)),
                None => Ok((Some(part), Step::End)),
            },
        }
    }
}

impl LogReader {
    /// Finds where to begin. `missing` is the failure of an instance that isn't there.
    pub(super) async fn open(files: LogFiles, request: LogRequest, missing: Failure) -> Result<Self, Failure> {
        let LogRequest { tail_lines, since, after, follow } = request;
        let after: Option<Position> = after.as_deref().map(str::parse).transpose()?;
        // A position has passed it already.
        let since = since.filter(|_| after.is_none());
        let found = files.clone();
        let part = blocking(move || {
            if !found.home.exists() {
                return Err(missing);
            }
            let part = match (after, tail_lines) {
                (Some(position), _) => found.resume(&position),
                (None, Some(lines)) => found.tail(lines),
                (None, None) => found.oldest(),
            };
            part.map_err(failed("read", &found.log))
        });
        let part = part.await?;
        let given = part.as_ref().map_or(0, |part| part.read);
        Ok(Self { files, follow, since, part, lines: LineBuffer::default(), given, digest: None })
    }

    pub(super) fn into_stream(self) -> LogStream {
        stream::try_unfold(self, |mut reader| async { Ok(reader.next().await?.map(|line| (line, reader))) }).boxed()
    }

    async fn next(&mut self) -> Result<Option<LogLine>, Failure> {
        loop {
            while let Some(line) = self.lines.next() {
                if let Some(line) = self.take(line) {
                    return Ok(Some(line));
                }
            }
            let (files, part, follow) = (self.files.clone(), self.part.clone(), self.follow);
            let step = blocking(move || files.advance(part, follow).map_err(failed("read", &files.log)));
            let (part, step) = step.await?;
            match step {
                Step::More(bytes) => {
                    self.part = part;
                    self.lines.push(bytes);
                }
                Step::Next(bytes) => {
                    let rest = self.lines.rest().and_then(|line| self.take(line));
                    (self.part, self.given, self.digest) = (part, 0, None);
                    self.lines.push(bytes);
                    if rest.is_some() {
                        return Ok(rest);
                    }
                }
                Step::Wait => {
                    // What comes from now on is newer than the request.
                    self.since = self.since.filter(|since| *since > Utc::now());
                    tokio::time::sleep(POLL).await;
                }
                Step::End => {
                    // The end of the log of one that is gone, too.
                    let rest = self.lines.rest().and_then(|line| self.take(line));
                    return Ok(rest);
                }
            }
        }
    }

    /// Notes that a line was read; `None` if it isn't wanted.
    fn take(&mut self, line: RawLine) -> Option<LogLine> {
        self.given += line.bytes;
        if let Some(since) = self.since {
            // A line without a time belongs to the one before.
            time_of(&line.text).filter(|time| *time >= since)?;
            self.since = None;
        }
        let position = match self.digest.clone() {
            Some(digest) => Position { offset: self.given, digest },
            None => Position::of(self.part.as_ref().map_or(&[][..], |part| &part.head), self.given),
        };
        let text = position.to_string();
        self.digest = Some(position.digest).filter(|_| position.offset >= HEAD_BYTES);
        Some(LogLine { text: line.text, position: Some(text) })
    }
}

/// The time that a line begins with, as the `log_line_prefix` and `log_timezone` that toygres sets have it.
fn time_of(line: &str) -> Option<DateTime<Utc>> {
    let (time, rest) = NaiveDateTime::parse_and_remainder(line, "%Y-%m-%d %H:%M:%S%.f").ok()?;
    rest.starts_with(" UTC ").then(|| time.and_utc())
}

#[cfg(test)]
mod tests;

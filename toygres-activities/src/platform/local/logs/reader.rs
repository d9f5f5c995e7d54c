//! Reading a server's log as a stream, in chunks, and going on with it from file to file while the server writes.

use std::fmt;
use std::fs::File;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use toygres_models::{Failure, FailureKind};

use super::files::{Position, ServerLog, read_at};
use crate::platform::local::files::{blocking, failed};
use crate::platform::logs::{LineBuffer, LogLine, LogRequest, LogStream, RawLine};
use crate::server_log::time_of;

/// How often it is looked whether a log has grown. (Another process writes it. Being told by the system
/// instead would take a watch of the folder as well, a limited resource, and still these looks, since
/// not every file system tells.)
const POLL: Duration = Duration::from_millis(200);
const CHUNK_BYTES: usize = 64 * 1024;
/// How far back the last lines are looked for, and how much further for each line of them. A server can make its log as long
/// as it likes, and without a line break.
const MAX_TAIL_BYTES: u64 = 32 * 1024 * 1024;
const MAX_BYTES_OF_LINE: u64 = 1024;
const MAX_TAIL_LINES: u64 = 1_000_000;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.file, self.offset)
    }
}

impl FromStr for Position {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let read = || {
            let (file, offset) = text.split_once('-')?;
            Some(Self { file: file.parse().ok()?, offset: offset.parse().ok()? })
        };
        read().ok_or_else(|| {
            let message = "after: that is no position in this instance's log; give one that came with a line";
            Failure::permanent(FailureKind::InvalidInput, message).with_field("after")
        })
    }
}

/// Where reading goes on: up to where which file was read. At first, before every file.
#[derive(Debug, Default)]
struct Cursor {
    at: Position,
    file: Option<File>,
}

enum Step {
    /// The file goes on with these bytes.
    More(Vec<u8>),
    /// It has ended, and the cursor is at the beginning of what follows it.
    NextFile,
    /// There is no more of it yet.
    Wait,
    /// The instance is gone.
    End,
}

impl Cursor {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        let bytes = read_at(file, self.at.offset, CHUNK_BYTES)?;
        self.at.offset += bytes.len() as u64;
        Ok(bytes)
    }

    fn advance(&mut self, log: &ServerLog) -> io::Result<Step> {
        let bytes = self.read()?;
        if !bytes.is_empty() {
            return Ok(Step::More(bytes));
        }
        let Some(next) = log.first_after(self.at.file)? else {
            let length = self.file.as_ref().map_or(Ok(0), |file| file.metadata().map(|found| found.len()))?;
            if length < self.at.offset {
                // Somebody emptied it.
                self.at.offset = 0;
                return Ok(Step::NextFile);
            }
            return Ok(if log.home.exists() { Step::Wait } else { Step::End });
        };
        // What was written before the next one was begun.
        let bytes = self.read()?;
        if !bytes.is_empty() {
            return Ok(Step::More(bytes));
        }
        *self = next;
        Ok(Step::NextFile)
    }
}

/// Where the last `lines` lines of a file begin, and how many there are.
fn tail_of(file: &File, lines: usize) -> io::Result<(u64, usize)> {
    let (mut start, mut found) = (file.metadata()?.len(), 0);
    if start == 0 {
        return Ok((0, 0));
    }
    let first = start.saturating_sub(MAX_TAIL_BYTES + MAX_BYTES_OF_LINE * MAX_TAIL_LINES.min(lines as u64));
    // The line break at the very end ends the last line, and begins none.
    let mut is_last = true;
    while start > first {
        let length = (start - first).min(CHUNK_BYTES as u64);
        start -= length;
        let chunk = read_at(file, start, usize::try_from(length).unwrap_or_default())?;
        for at in memchr::memrchr_iter(b'\n', &chunk) {
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
    Ok((first, lines.min(found + 1)))
}

impl ServerLog {
    /// The beginning of the first file after that one.
    fn first_after(&self, number: u64) -> io::Result<Option<Cursor>> {
        for file in self.numbers()?.into_iter().filter(|file| *file > number) {
            if let Some(opened) = self.open(file)? {
                return Ok(Some(Cursor { at: Position { file, offset: 0 }, file: Some(opened) }));
            }
        }
        Ok(None)
    }

    /// After a line that was given. Where its file is gone: what there is after that, or else at all.
    fn resume(&self, at: Position) -> io::Result<Cursor> {
        if let Some(file) = self.open(at.file)? {
            return Ok(Cursor { at, file: Some(file) });
        }
        match self.first_after(at.file)? {
            Some(next) => Ok(next),
            None => self.first_after(0).map(Option::unwrap_or_default),
        }
    }

    fn tail(&self, lines: usize) -> io::Result<Cursor> {
        let (mut cursor, mut left) = (Cursor::default(), lines);
        for number in self.numbers()?.into_iter().rev() {
            let Some(file) = self.open(number)? else { continue };
            let (offset, found) = tail_of(&file, left)?;
            cursor = Cursor { at: Position { file: number, offset }, file: Some(file) };
            left -= found;
            if left == 0 {
                break;
            }
        }
        Ok(cursor)
    }
}

/// Reads a log. See [`Platform::logs`](crate::platform::Platform::logs).
pub(in crate::platform::local) struct LogReader {
    log: ServerLog,
    follow: bool,
    /// Lines are passed over until one of that time.
    since: Option<DateTime<Utc>>,
    cursor: Cursor,
    lines: LineBuffer,
    /// Up to where lines were given.
    given: Position,
}

impl LogReader {
    /// Finds where to begin. `missing` is the failure of an instance that isn't there.
    pub(in crate::platform::local) async fn open(log: ServerLog, request: LogRequest, missing: Failure) -> Result<Self, Failure> {
        let LogRequest { tail_lines, since, after, follow } = request;
        let after: Option<Position> = after.as_deref().map(str::parse).transpose()?;
        // A position has passed it already.
        let since = since.filter(|_| after.is_none());
        blocking(move || {
            if !log.home.exists() {
                return Err(missing);
            }
            let cursor = match (after, tail_lines) {
                (Some(position), _) => log.resume(position),
                (None, Some(lines)) => log.tail(lines),
                (None, None) => Ok(Cursor::default()),
            };
            let cursor = cursor.map_err(failed("read the log in", &log.folder()))?;
            let given = cursor.at;
            Ok(Self { log, follow, since, cursor, lines: LineBuffer::default(), given })
        })
        .await
    }

    pub(in crate::platform::local) fn into_stream(self) -> LogStream {
        stream::try_unfold(self, |mut reader| async { Ok(reader.next().await?.map(|line| (line, reader))) }).boxed()
    }

    async fn next(&mut self) -> Result<Option<LogLine>, Failure> {
        loop {
            while let Some(line) = self.lines.next() {
                if let Some(line) = self.take(line) {
                    return Ok(Some(line));
                }
            }
            let (log, mut cursor) = (self.log.clone(), std::mem::take(&mut self.cursor));
            let advanced = blocking(move || {
                let step = cursor.advance(&log).map_err(failed("read the log in", &log.folder()))?;
                Ok((step, cursor))
            });
            let (step, cursor) = advanced.await?;
            self.cursor = cursor;
            match step {
                Step::More(bytes) => self.lines.push(bytes),
                Step::NextFile => {
                    let rest = self.lines.rest().and_then(|line| self.take(line));
                    self.given = self.cursor.at;
                    if rest.is_some() {
                        return Ok(rest);
                    }
                }
                Step::Wait if self.follow => {
                    // What comes from now on is newer than the request.
                    self.since = self.since.filter(|since| *since > Utc::now());
                    tokio::time::sleep(POLL).await;
                }
                // The end of the log of one that is gone, too.
                Step::Wait | Step::End => return Ok(self.lines.rest().and_then(|line| self.take(line))),
            }
        }
    }

    /// Notes that a line was read; `None` if it isn't wanted.
    fn take(&mut self, line: RawLine) -> Option<LogLine> {
        self.given.offset += line.bytes;
        if let Some(since) = self.since {
            // A line without a time belongs to the one before.
            time_of(&line.text).filter(|time| *time >= since)?;
            self.since = None;
        }
        Some(LogLine { text: line.text, position: Some(self.given.to_string()) })
    }
}

#[cfg(test)]
mod tests;

//! A server's log as a stream of lines: what may be asked for, what comes, and how bytes become lines.

use futures::stream::BoxStream;
use toygres_models::Failure;
pub use toygres_models::{LogLine, LogRequest};

/// The longest line that is given whole, in bytes. Of a longer one the beginning is given, with a word
/// about the rest.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// Lines, oldest first, as they are asked for: nothing is read ahead by more than a chunk.
pub type LogStream = BoxStream<'static, Result<LogLine, Failure>>;

/// A line as it stands in a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RawLine {
    pub(crate) text: String,
    /// What it takes in the log, its end included.
    pub(crate) bytes: u64,
}

/// Cuts chunks of bytes into lines. Holds one chunk and one line of bounded length.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    chunk: Vec<u8>,
    /// Up to where the chunk has been used.
    used: usize,
    /// The beginning of the line at hand, and how long it is so far.
    line: Vec<u8>,
    bytes: u64,
}

impl LineBuffer {
    /// Takes the next chunk. The last one has to be used up: [`next`](Self::next) gave `None`.
    pub(crate) fn push(&mut self, chunk: Vec<u8>) {
        (self.chunk, self.used) = (chunk, 0);
    }

    /// The next whole line.
    pub(crate) fn next(&mut self) -> Option<RawLine> {
        let left = self.chunk.get(self.used..).unwrap_or_default();
        let end = memchr::memchr(b'\n', left);
        let part = &left[..end.unwrap_or(left.len())];
        let room = MAX_LINE_BYTES.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        let taken = part.len() + usize::from(end.is_some());
        self.used += taken;
        self.bytes += taken as u64;
        end.and_then(|_| self.finish(1))
    }

    /// The last line, where it has no end.
    pub(crate) fn rest(&mut self) -> Option<RawLine> {
        if self.bytes == 0 { None } else { self.finish(0) }
    }

    fn finish(&mut self, end_bytes: u64) -> Option<RawLine> {
        let (line, bytes) = (std::mem::take(&mut self.line), std::mem::take(&mut self.bytes));
        let mut text = String::from_utf8_lossy(&line).into_owned();
        let left_out = bytes.saturating_sub(end_bytes + line.len() as u64);
        if left_out > 0 {
            text.push_str(&format!(" … ({left_out} bytes more)"));
        }
        Some(RawLine { text, bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(chunks: &[&[u8]]) -> (Vec<(String, u64)>, Option<String>) {
        let (mut buffer, mut lines) = (LineBuffer::default(), Vec::new());
        for chunk in chunks {
            buffer.push(chunk.to_vec());
            while let Some(line) = buffer.next() {
                lines.push((line.text, line.bytes));
            }
        }
        (lines, buffer.rest().map(|line| line.text))
    }

    #[test]
    fn a_line_may_come_in_many_pieces_and_the_last_one_without_its_end() {
        let (lines, rest) = cut(&[b"one\n", b"", b"tw", b"o\n\nthree\nfo", b"ur"]);
        assert_eq!(lines, [("one".into(), 4), ("two".into(), 4), (String::new(), 1), ("three".into(), 6)]);
        assert_eq!(rest.as_deref(), Some("four"));
        assert_eq!(cut(&[b"one\n"]).1, None);
    }

    #[test]
    fn of_a_huge_line_the_beginning_is_given_and_its_length_counts() {
        let piece = [b'x'; 50_000];
        let (lines, rest) = cut(&[&piece, &piece, &piece, b"\nnext\n"]);
        assert_eq!(rest, None);
        let [(huge, bytes), next] = lines.as_slice() else { panic!("{}", lines.len()) };
        assert_eq!((*bytes, next), (150_001, &("next".to_owned(), 5)));
        assert!(huge.starts_with("xxx") && huge.ends_with("x … (84464 bytes more)"), "{}", huge.len());
    }

    proptest! {
        #[test]
        fn however_the_bytes_come_the_lines_are_the_same(text in "[ab\n]{0,60}", at in proptest::collection::vec(0usize..60, 0..5)) {
            let mut at: Vec<_> = at.into_iter().map(|at| at.min(text.len())).chain([0, text.len()]).collect();
            at.sort_unstable();
            let chunks: Vec<_> = at.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let (lines, rest) = cut(&chunks);
            let joined: String = lines.iter().map(|(line, _)| format!("{line}\n")).chain(rest).collect();
            prop_assert_eq!(joined, text);
        }
    }
}

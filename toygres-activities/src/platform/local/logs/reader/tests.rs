use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::TryStreamExt;

use super::super::files::tests::{append, empty};
use super::*;

struct Log {
    _folder: tempfile::TempDir,
    log: ServerLog,
}

impl Log {
    /// A folder without a log.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("demo");
        std::fs::create_dir(&home).unwrap();
        Self { log: empty(&home), _folder: folder }
    }

    fn write(&self, file: u64, text: &str) {
        append(&self.log, file, text);
    }

    async fn open(&self, request: LogRequest) -> Result<LogStream, Failure> {
        let missing = Failure::permanent(FailureKind::NotFound, "it isn't there");
        LogReader::open(self.log.clone(), request, missing).await.map(LogReader::into_stream)
    }

    async fn read(&self, request: LogRequest) -> Vec<LogLine> {
        self.open(request).await.unwrap().try_collect().await.unwrap()
    }

    async fn after(&self, position: &str) -> Vec<LogLine> {
        self.read(LogRequest { after: Some(position.into()), tail_lines: Some(1), ..LogRequest::default() }).await
    }

    async fn follow(&self) -> Followed {
        Followed(self.open(LogRequest { follow: true, ..LogRequest::default() }).await.unwrap())
    }
}

struct Followed(LogStream);

impl Followed {
    async fn expect(&mut self, texts: &[&str]) {
        for text in texts {
            let line = tokio::time::timeout(Duration::from_secs(10), self.0.try_next());
            let line = line.await.unwrap_or_else(|_| panic!("{text:?} didn't come")).unwrap().unwrap();
            assert_eq!(line.text, *text);
        }
    }
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

fn numbered(numbers: std::ops::Range<u32>) -> String {
    numbers.map(|n| format!("{}line {n}\n", "é".repeat((n % 7) as usize))).collect()
}

#[tokio::test]
async fn the_end_is_found_in_files_of_many_chunks() {
    let log = Log::new();
    assert!(log.read(LogRequest::tail(3)).await.is_empty(), "there is no log yet");
    for file in 0..3 {
        log.write(u64::from(file) + 7, &numbered(file * 20_000..file * 20_000 + 20_000));
    }
    let all = numbered(0..60_000);
    let all: Vec<_> = all.lines().collect();
    for lines in [0, 1, 2, 19_999, 20_000, 20_001, 59_999, 60_000, 70_000] {
        let read = log.read(LogRequest::tail(lines)).await;
        assert_eq!(texts(&read), all[all.len().saturating_sub(lines)..], "{lines}");
    }
    assert_eq!(texts(&log.read(LogRequest::default()).await), all);
}

#[tokio::test]
async fn a_last_line_without_its_end_counts_and_none_does_not() {
    let log = Log::new();
    log.write(1, "");
    assert!(log.read(LogRequest::tail(3)).await.is_empty());
    log.write(1, "a\n\nb");
    assert_eq!(texts(&log.read(LogRequest::tail(1)).await), ["b"]);
    assert_eq!(texts(&log.read(LogRequest::tail(2)).await), ["", "b"]);
    assert_eq!(texts(&log.read(LogRequest::tail(9)).await), ["a", "", "b"]);
}

#[tokio::test]
async fn any_line_may_be_gone_on_after_whatever_was_begun_or_removed_since() {
    let log = Log::new();
    for file in 1..4 {
        log.write(file, &numbered(0..100));
    }
    let all = log.read(LogRequest::default()).await;
    for (number, line) in all.iter().enumerate() {
        assert_eq!(log.after(line.position.as_ref().unwrap()).await, all[number + 1..], "after {number}");
    }
    // What the position is in is gone: what came after it; or the oldest there is, of an instance of the same name.
    std::fs::remove_file(log.log.folder().join("postgres.1.log")).unwrap();
    assert_eq!(log.after(all[7].position.as_ref().unwrap()).await, all[100..]);
    assert_eq!(log.after("9-100").await, all[100..]);
    for wrong in ["", "7", "x-y", "-1-00"] {
        let failure = log.open(LogRequest { after: Some(wrong.into()), ..LogRequest::default() }).await.err().unwrap();
        assert_eq!(failure.kind, FailureKind::InvalidInput, "{wrong:?}");
    }
}

#[tokio::test]
async fn times_are_those_of_the_lines_and_a_line_without_one_belongs_to_the_line_before() {
    let log = Log::new();
    let line = |second: &str, words: &str| format!("2026-01-01 10:00:{second} UTC [1] 00000 postmaster: LOG:  {words}\n");
    log.write(1, &format!("no time\n{}\tof one\n{}\tof two\n", line("00.000", "one"), line("00.500", "two")));
    log.write(2, &format!("of two as well\n{}", line("01.000", "three")));
    let since = async |time: &str, tail_lines| {
        let since = Some(time.parse().unwrap());
        log.read(LogRequest { since, tail_lines, ..LogRequest::default() }).await.len()
    };
    assert_eq!(since("2026-01-01T10:00:00Z", None).await, 6);
    assert_eq!(since("2026-01-01T11:00:00.500+01:00", None).await, 4);
    assert_eq!(since("2026-01-01T10:00:00.501Z", None).await, 1);
    assert_eq!(since("2026-01-01T10:00:01.001Z", None).await, 0);
    assert_eq!(since("2026-01-01T10:00:00Z", Some(2)).await, 1, "of two lines, one is of no known time");

    let follow = LogRequest { since: Some("2026-01-01T10:00:01Z".parse().unwrap()), follow: true, ..LogRequest::default() };
    let mut followed = Followed(log.open(follow).await.unwrap());
    followed.expect(&[line("01.000", "three").trim_end()]).await;
    log.write(2, "\tof three\n");
    followed.expect(&["\tof three"]).await;
}

#[tokio::test]
async fn a_followed_log_may_come_later_and_in_pieces_and_goes_with_its_instance() {
    let log = Log::new();
    let mut followed = log.follow().await;
    assert!(tokio::time::timeout(POLL * 2, followed.0.try_next()).await.is_err(), "there is nothing yet");
    log.write(1, "one\ntw");
    followed.expect(&["one"]).await;
    log.write(1, "o\n");
    followed.expect(&["two"]).await;
    log.write(1, "three\nlast words");
    log.write(2, "four\n");
    followed.expect(&["three", "last words", "four"]).await;
    // Somebody needs the room at once.
    let file = std::fs::File::options().write(true).open(log.log.folder().join("postgres.2.log")).unwrap();
    file.set_len(0).unwrap();
    tokio::time::timeout(POLL * 3, followed.0.try_next()).await.unwrap_err();
    log.write(2, "five\nlast words");
    followed.expect(&["five"]).await;
    std::fs::remove_dir_all(&log.log.home).unwrap();
    followed.expect(&["last words"]).await;
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), followed.0.try_next()).await.unwrap().unwrap(), None);
    let failure = log.open(LogRequest::default()).await.err().unwrap();
    assert_eq!(failure.kind, FailureKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_keeps_up_with_a_writer_that_begins_files_and_a_remover() {
    const ROUNDS: u32 = 20;
    let log = Log::new();
    log.write(1, "0\n");
    let mut followed = log.follow().await;
    let seen = Arc::new(AtomicU32::new(0));
    let (files, has_seen) = (log.log.clone(), seen.clone());
    let writer = std::thread::spawn(move || {
        for round in 0..ROUNDS {
            let file = u64::from(round) + 1;
            (round * 2000 + 1..=round * 2000 + 2000).for_each(|n| append(&files, file, &format!("{n}\n")));
            files.remove_old().unwrap();
            while has_seen.load(Ordering::Relaxed) < round * 2000 + 1000 {
                std::thread::yield_now();
            }
        }
    });
    for number in 0..=ROUNDS * 2000 {
        followed.expect(&[&number.to_string()]).await;
        seen.store(number, Ordering::Relaxed);
    }
    writer.join().unwrap();
}

#[tokio::test]
async fn a_huge_line_is_bounded_and_the_next_one_is_whole() {
    let log = Log::new();
    log.write(1, &format!("{}\nnext\n", "x".repeat(5_000_000)));
    let read = log.read(LogRequest::default()).await;
    assert!(read[0].text.len() < 70_000, "{}", read[0].text.len());
    assert_eq!(texts(&log.after(read[0].position.as_ref().unwrap()).await), ["next"]);
    assert_eq!(log.read(LogRequest::tail(2)).await, read);
}

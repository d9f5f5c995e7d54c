use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::TryStreamExt;

use super::super::log::cut;
use super::*;

struct Log {
    _folder: tempfile::TempDir,
    files: LogFiles,
}

impl Log {
    /// A folder without a log.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("demo");
        std::fs::create_dir(&home).unwrap();
        Self { files: LogFiles { log: home.join("postgres.log"), home }, _folder: folder }
    }

    fn write(&self, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.files.log).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    async fn open(&self, request: LogRequest) -> Result<LogStream, Failure> {
        let missing = Failure::permanent(FailureKind::NotFound, "it isn't there");
        LogReader::open(self.files.clone(), request, missing).await.map(LogReader::into_stream)
    }

    async fn read(&self, request: LogRequest) -> Vec<LogLine> {
        self.open(request).await.unwrap().try_collect().await.unwrap()
    }

    async fn follow(&self) -> Followed {
        Followed(self.open(LogRequest { follow: true, ..LogRequest::default() }).await.unwrap())
    }
}

struct Followed(LogStream);

impl Followed {
    async fn expect(&mut self, texts: &[&str]) -> LogLine {
        let mut last = None;
        for text in texts {
            let line = tokio::time::timeout(Duration::from_secs(10), self.0.try_next());
            let line = line.await.unwrap_or_else(|_| panic!("{text:?} didn't come")).unwrap().unwrap();
            assert_eq!(line.text, *text);
            last = Some(line);
        }
        last.unwrap()
    }

    async fn expect_end(mut self) {
        let end = tokio::time::timeout(Duration::from_secs(10), self.0.try_next()).await.unwrap().unwrap();
        assert_eq!(end, None);
    }
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

fn numbered(numbers: std::ops::Range<u32>) -> String {
    numbers.map(|n| format!("{}line {n}\n", "é".repeat((n % 7) as usize))).collect()
}

#[tokio::test]
async fn the_end_is_found_in_a_log_of_many_chunks_and_in_what_was_kept() {
    let log = Log::new();
    log.write(&numbered(0..30_000));
    cut(&log.files.log).unwrap();
    log.write(&numbered(30_000..60_000));
    let all = numbered(0..60_000);
    let all: Vec<_> = all.lines().collect();
    for lines in [0, 1, 2, 29_999, 30_000, 30_001, 59_999, 60_000, 70_000] {
        let read = log.read(LogRequest::tail(lines)).await;
        assert_eq!(texts(&read), all[all.len().saturating_sub(lines)..], "{lines}");
    }
    assert_eq!(texts(&log.read(LogRequest::default()).await), all);
}

#[tokio::test]
async fn a_last_line_without_its_end_counts_and_none_does_not() {
    let log = Log::new();
    assert!(log.read(LogRequest::tail(3)).await.is_empty(), "there is no log yet");
    log.write("");
    assert!(log.read(LogRequest::tail(3)).await.is_empty());
    log.write("a\n\nb");
    assert_eq!(texts(&log.read(LogRequest::tail(1)).await), ["b"]);
    assert_eq!(texts(&log.read(LogRequest::tail(2)).await), ["", "b"]);
    assert_eq!(texts(&log.read(LogRequest::tail(9)).await), ["a", "", "b"]);
}

#[tokio::test]
async fn any_line_may_be_gone_on_after_whatever_was_cut_since() {
    let log = Log::new();
    let mut positions = Vec::new();
    for part in 0..4 {
        log.write(&numbered(part * 100..part * 100 + 100));
        let read = log.read(LogRequest::tail(100)).await;
        positions.extend(read.into_iter().map(|line| line.position.unwrap()));
        for (number, position) in positions.iter().enumerate().skip((part as usize).saturating_sub(1) * 100) {
            let after = LogRequest { after: Some(position.clone()), tail_lines: Some(1), ..LogRequest::default() };
            let read = log.read(after).await;
            let expected = numbered(number as u32 + 1..part * 100 + 100);
            assert_eq!(texts(&read), expected.lines().collect::<Vec<_>>(), "after {number}");
        }
        if part < 3 {
            cut(&log.files.log).unwrap();
        }
    }
    // What the position is in is gone: the oldest there is.
    let after = LogRequest { after: Some(positions[7].clone()), ..LogRequest::default() };
    assert_eq!(log.read(after).await.len(), 200);
    for wrong in ["", "7", "x-y", "-1-00"] {
        let failure = log.open(LogRequest { after: Some(wrong.into()), ..LogRequest::default() }).await.err().unwrap();
        assert_eq!(failure.kind, FailureKind::InvalidInput, "{wrong:?}");
    }
}

#[tokio::test]
async fn times_are_those_of_the_lines_and_a_line_without_one_belongs_to_the_line_before() {
    let log = Log::new();
    log.write(
        "no time\n2026-01-01 10:00:00.000 UTC [1] LOG:  one\n\tof one\n2026-01-01 10:00:00.500 UTC [2] LOG:  two\n\tof two\n",
    );
    cut(&log.files.log).unwrap();
    log.write("of two as well\n2026-01-01 10:00:01.000 UTC [1] LOG:  three\n");
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
    followed.expect(&["2026-01-01 10:00:01.000 UTC [1] LOG:  three"]).await;
    log.write("\tof three\n");
    followed.expect(&["\tof three"]).await;
}

#[tokio::test]
async fn a_followed_log_may_come_later_and_in_pieces_and_goes_with_its_instance() {
    let log = Log::new();
    let mut followed = log.follow().await;
    assert!(tokio::time::timeout(POLL * 2, followed.0.try_next()).await.is_err(), "there is nothing yet");
    log.write("one\ntw");
    followed.expect(&["one"]).await;
    log.write("o\n");
    followed.expect(&["two"]).await;
    log.write("last words");
    std::fs::remove_dir_all(&log.files.home).unwrap();
    followed.expect(&["last words"]).await;
    followed.expect_end().await;
    let failure = log.open(LogRequest::default()).await.err().unwrap();
    assert_eq!(failure.kind, FailureKind::NotFound);
}

#[tokio::test]
async fn a_log_that_is_cut_while_it_is_followed_loses_and_doubles_nothing() {
    let log = Log::new();
    log.write("one\n");
    let mut followed = log.follow().await;
    followed.expect(&["one"]).await;
    // Before the reader has seen it, and with a line that is cut in two.
    log.write("two\nthr");
    cut(&log.files.log).unwrap();
    log.write("four\nfive\n");
    followed.expect(&["two", "thr", "four", "five"]).await;
    // When it has seen all, and the next part is longer than the last one.
    cut(&log.files.log).unwrap();
    log.write(&numbered(0..5000));
    followed.expect(&numbered(0..5000).lines().collect::<Vec<_>>()).await;
    // A copy without the cut that belongs to it.
    std::fs::copy(&log.files.log, kept_path(&log.files.log)).unwrap();
    log.write("six\n");
    followed.expect(&["six"]).await;
    assert_eq!(log.read(LogRequest::default()).await.len(), 5001);
}

/// A reader that is far behind reads what was cut meanwhile from where it is kept.
#[tokio::test]
async fn a_slow_reader_of_a_log_that_is_cut_goes_on_where_it_was() {
    let log = Log::new();
    log.write(&numbered(0..20_000));
    let mut followed = log.follow().await;
    followed.expect(&numbered(0..10).lines().collect::<Vec<_>>()).await;
    cut(&log.files.log).unwrap();
    log.write(&numbered(20_000..60_000));
    followed.expect(&numbered(10..50_000).lines().collect::<Vec<_>>()).await;
    cut(&log.files.log).unwrap();
    log.write(&numbered(60_000..60_100));
    followed.expect(&numbered(50_000..60_100).lines().collect::<Vec<_>>()).await;
}

/// Of what is cut twice before the reader looks, nothing is left; so the writer waits for it once a round.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_keeps_up_with_a_writer_and_a_cutter() {
    const ROUNDS: u32 = 20;
    let log = Log::new();
    log.write("0\n");
    let mut followed = log.follow().await;
    let seen = Arc::new(AtomicU32::new(0));
    let (path, has_seen) = (log.files.log.clone(), seen.clone());
    let writer = std::thread::spawn(move || {
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        for first in (1..ROUNDS * 2000).step_by(2000) {
            (first..first + 1000).for_each(|n| writeln!(file, "{n}").unwrap());
            cut(&path).unwrap();
            (first + 1000..first + 2000).for_each(|n| writeln!(file, "{n}").unwrap());
            while has_seen.load(Ordering::Relaxed) < first + 1000 {
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
    log.write(&format!("{}\nnext\n", "x".repeat(5_000_000)));
    let read = log.read(LogRequest::default()).await;
    assert!(read[0].text.len() < 70_000, "{}", read[0].text.len());
    let after = LogRequest { after: read[0].position.clone(), ..LogRequest::default() };
    assert_eq!(texts(&log.read(after).await), ["next"]);
    assert_eq!(log.read(LogRequest::tail(2)).await, read);
}

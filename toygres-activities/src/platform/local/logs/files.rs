//! The files of a server's log, and what the server says of itself in them.
//!
//! PostgreSQL's logging collector writes `postgres.<number>.log`, a path that the configuration names. What the
//! server says before the collector runs goes to the same file, as its standard error. When the file is full
//! ([`ServerLog::current`]), the configuration names the next one, and the collector goes on there when it reads
//! it: nothing is renamed or cut, so a file and an offset name a line for good. Numbers only grow, and are times
//! in milliseconds, so an instance that is made anew under an old name has others.
//!
//! The files belong to the server's user, which an instance's superuser has too. So a link, a pipe, or a file
//! of anybody else's in their place is passed over, as if it weren't there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use toygres_models::Failure;

use crate::platform::local::account::Account;
use crate::platform::local::files::{failed, make_folder};
use crate::platform::local::tenant_file;
use crate::server_log::own_lines;

/// From this size on, the next file is begun.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// How many files are kept.
const KEPT_FILES: usize = 2;
/// How many are looked at.
const MAX_FILES: usize = 8;
/// How much of the end is looked at for evidence, how many lines of that, and how many of them are given.
const MAX_END_BYTES: u64 = 64 * 1024;
const MAX_END_LINES: usize = 50;
const MAX_EVIDENCE_LINES: usize = 20;

/// The log of the server in a folder.
#[derive(Debug, Clone)]
pub(in crate::platform::local) struct ServerLog {
    /// The instance's folder: without it, there is no instance.
    pub(in crate::platform::local) home: PathBuf,
    account: Arc<Account>,
}

/// A place in a log: so far into that file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(in crate::platform::local) struct Position {
    pub(in crate::platform::local) file: u64,
    pub(in crate::platform::local) offset: u64,
}

/// Reads until so many bytes are there, or the file ends.
pub(in crate::platform::local) fn read_at(file: &File, mut offset: u64, length: usize) -> io::Result<Vec<u8>> {
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

pub(in crate::platform::local) fn file_name(number: u64) -> String {
    format!("postgres.{number}.log")
}

impl ServerLog {
    pub(in crate::platform::local) fn new(home: &Path, account: Arc<Account>) -> Self {
        Self { home: home.to_owned(), account }
    }

    pub(in crate::platform::local) fn folder(&self) -> PathBuf {
        self.home.join("log")
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder().join(file_name(number))
    }

    /// The numbers of the newest files that there are, in order.
    pub(in crate::platform::local) fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = self.all_numbers()?;
        // A superuser of the instance may have made any number of them.
        numbers.drain(..numbers.len().saturating_sub(MAX_FILES));
        Ok(numbers)
    }

    fn all_numbers(&self) -> io::Result<Vec<u64>> {
        let entries = match std::fs::read_dir(self.folder()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let number = |name: &str| name.strip_prefix("postgres.")?.strip_suffix(".log")?.parse().ok();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut numbers: Vec<u64> = names.filter_map(|name| number(&name).filter(|number| file_name(*number) == name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Opens a file to read it; `None` if there is none of the server's.
    pub(in crate::platform::local) fn open(&self, number: u64) -> io::Result<Option<File>> {
        let folder = self.folder();
        let (uid, _) = self.account.of_folder(&folder);
        tenant_file::open(&folder, &file_name(number), uid)
    }

    /// The number of the file that the server is to write to now.
    pub(in crate::platform::local) fn current(&self) -> Result<u64, Failure> {
        let find = || {
            let last = self.numbers()?.last().copied().unwrap_or_default();
            let file = self.open(last)?.map(|file| file.metadata()).transpose()?;
            Ok(match file {
                Some(found) if found.len() < MAX_FILE_BYTES => last,
                _ => last.saturating_add(1).max(chrono::Utc::now().timestamp_millis().unsigned_abs()),
            })
        };
        find().map_err(failed("read the log in", &self.folder()))
    }

    /// The current file, as standard error of a server that is started.
    pub(in crate::platform::local) fn open_to_append(&self) -> Result<File, Failure> {
        let owner = self.account.switches.then(|| self.account.of_folder(&self.home.join("data")));
        make_folder(&self.folder(), 0o700, owner)?;
        let path = self.path(self.current()?);
        let open = || {
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
            let file = OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(&path)?;
            let found = file.metadata()?;
            if !found.is_file() || found.nlink() != 1 {
                return Err(io::Error::other("it is no file of this server's alone"));
            }
            if let Some((uid, gid)) = owner {
                fchown(&file, Some(uid), Some(gid))?;
            }
            Ok(file)
        };
        open().map_err(failed("open", &path))
    }

    /// Removes all files but the newest ones.
    pub(in crate::platform::local) fn remove_old(&self) -> Result<(), Failure> {
        let numbers = self.all_numbers().map_err(failed("list", &self.folder()))?;
        for number in &numbers[..numbers.len().saturating_sub(KEPT_FILES)] {
            crate::platform::local::files::remove_file(&self.path(*number))?;
        }
        Ok(())
    }

    /// The file that was begun last, and its number.
    fn newest(&self) -> Option<(u64, File)> {
        let numbers = self.numbers().unwrap_or_default();
        numbers.into_iter().rev().find_map(|number| Some((number, self.open(number).ok()??)))
    }

    /// Where the log ends now.
    pub(in crate::platform::local) fn end(&self) -> Position {
        self.newest().map_or_else(Position::default, |(file, opened)| {
            let offset = opened.metadata().map_or(0, |found| found.len());
            Position { file, offset }
        })
    }

    /// What the server said of itself after that position, in the file that it writes now, oldest first: the last lines
    /// of it, and no statement.
    pub(in crate::platform::local) fn evidence(&self, after: Position) -> Vec<String> {
        let Some((number, file)) = self.newest() else { return Vec::new() };
        let length = file.metadata().map_or(0, |found| found.len());
        let begin = if number == after.file { after.offset.min(length) } else { 0 };
        let begin = begin.max(length.saturating_sub(MAX_END_BYTES));
        let content = read_at(&file, begin, usize::try_from(length - begin).unwrap_or_default()).unwrap_or_default();
        let text = String::from_utf8_lossy(&content);
        let lines: Vec<_> = text.lines().collect();
        let mut lines: Vec<_> =
            own_lines(&lines[lines.len().saturating_sub(MAX_END_LINES)..]).map(|line| (*line).to_owned()).collect();
        lines.drain(..lines.len().saturating_sub(MAX_EVIDENCE_LINES));
        lines
    }

    /// What it said of itself last.
    pub(in crate::platform::local) fn last_lines(&self) -> Vec<String> {
        self.evidence(Position::default())
    }
}

#[cfg(test)]
pub(in crate::platform::local) mod tests {
    use std::io::Write;

    use super::*;

    /// A folder without a log, of our own account.
    pub(in crate::platform::local) fn empty(folder: &Path) -> ServerLog {
        let account = Account {
            name: String::new(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            chosen: "",
            switches: false,
            separates: false,
            first_instance_id: 0,
        };
        ServerLog::new(folder, Arc::new(account))
    }

    pub(in crate::platform::local) fn append(log: &ServerLog, number: u64, text: &str) {
        std::fs::create_dir_all(log.folder()).unwrap();
        let mut file = OpenOptions::new().create(true).append(true).open(log.path(number)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn fatal(words: &str) -> String {
        format!("2026-01-01 00:00:00.000 UTC [1] XX000 postmaster: FATAL:  {words}\n")
    }

    #[test]
    fn however_many_files_there_are_the_newest_are_looked_at_and_the_others_removed() {
        let folder = tempfile::tempdir().unwrap();
        let log = empty(folder.path());
        for number in 1..=100 {
            append(&log, number, "");
        }
        assert_eq!(log.numbers().unwrap(), (93..=100).collect::<Vec<_>>());
        log.remove_old().unwrap();
        assert_eq!(log.all_numbers().unwrap(), [99, 100]);
    }

    #[test]
    fn a_full_file_is_followed_by_another_one_and_two_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = empty(folder.path());
        let first = log.current().unwrap();
        log.open_to_append().unwrap();
        assert_eq!(log.numbers().unwrap().len(), 1);
        let first = log.numbers().unwrap()[0].max(first);
        assert_eq!(log.current().unwrap(), first, "there is room in it");
        append(&log, first, &"x".repeat(usize::try_from(MAX_FILE_BYTES).unwrap()));
        log.open_to_append().unwrap();
        let far_ahead = 1 << 60;
        append(&log, far_ahead, &"x".repeat(usize::try_from(MAX_FILE_BYTES).unwrap()));
        assert_eq!(log.current().unwrap(), far_ahead + 1, "the clock was set back");
        log.open_to_append().unwrap();
        std::fs::write(log.folder().join("postgres.+7.log"), "").unwrap();
        log.remove_old().unwrap();
        assert_eq!(log.numbers().unwrap(), [far_ahead, far_ahead + 1]);
    }

    #[test]
    fn evidence_is_of_the_server_alone_and_since_a_position() {
        let folder = tempfile::tempdir().unwrap();
        let log = empty(folder.path());
        assert!(log.last_lines().is_empty());
        append(&log, 1, &fatal("one"));
        let end = log.end();
        append(&log, 1, &fatal("two"));
        append(&log, 1, "2026-01-01 00:00:00.000 UTC [7] 22P02 client backend: ERROR:  secret\n");
        let count = |lines: Vec<String>| (lines.len(), lines.concat().contains("secret"));
        assert_eq!((count(log.evidence(end)), count(log.last_lines())), ((1, false), (2, false)));
        append(&log, 2, &"x\n".repeat(40_000));
        append(&log, 2, &fatal("four").repeat(30));
        assert_eq!(log.evidence(end), vec![fatal("four").trim_end(); MAX_EVIDENCE_LINES]);
    }

    #[test]
    fn what_is_no_log_of_the_servers_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let log = empty(folder.path());
        append(&log, 1, &fatal("one"));
        let secret = folder.path().join("secret");
        std::fs::write(&secret, fatal("secret")).unwrap();
        std::os::unix::fs::symlink(&secret, log.path(2)).unwrap();
        std::fs::create_dir(log.path(3)).unwrap();
        assert_eq!(log.last_lines().len(), 1);
        assert!(log.current().unwrap() > 3);
        let own = empty(folder.path());
        let stranger = ServerLog { account: Arc::new(Account { uid: own.account.uid + 1, ..(*own.account).clone() }), ..own };
        assert!(stranger.last_lines().is_empty(), "a file of another user's");
    }
}

//! `toygres server logs`: what the server on this machine said, over its older files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::time::sleep;
use uuid::Uuid;

use crate::error::{CliError, Outcome};
use crate::output::interrupt::interrupted;
use crate::output::ui::{Ui, write_to_reader};
use crate::session::PAUSE;
use crate::settings::Settings;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  toygres server logs
  toygres server logs --follow
  toygres server logs --operation 01a22b3f-e879-76ad-85c2-dd338c58c67e --tail 1000

For a server in a pod, use kubectl logs. TOYGRES_LOG=debug makes a server say more.")]
pub struct ServerLogs {
    /// Go on with what the server says from now on
    #[arg(short, long)]
    follow: bool,

    /// Only so many lines from the end of what there is
    #[arg(long, value_name = "LINES", default_value_t = 100)]
    tail: usize,

    /// Only what is about that operation
    #[arg(long, value_name = "ID")]
    operation: Option<Uuid>,
}

pub async fn run(arguments: ServerLogs, settings: &Settings, ui: &Ui) -> Outcome {
    let path = settings.server.state().log_path();
    let operation = arguments.operation.map(|id| id.to_string());
    let is_wanted = |line: &str| operation.as_ref().is_none_or(|id| line.contains(id));
    let mut current = None;
    let mut last = VecDeque::new();
    for mut log in open_all(&path)? {
        while let Some(line) = log.next()? {
            if is_wanted(&line) {
                last.push_back(line);
            }
            if last.len() > arguments.tail {
                last.pop_front();
            }
        }
        current = Some(log);
    }
    let Some(mut current) = current else {
        return Err(CliError::failed(format!("no server has run on {} yet", settings.server.state_dir.display())));
    };
    let is_read = last.iter().try_fold(true, |is_read, line| Ok::<_, CliError>(is_read && write(line)?))?;
    if !arguments.follow || !is_read {
        return Ok(ExitCode::SUCCESS);
    }
    let follow = async {
        loop {
            // Before it is read to its end: a rotation meanwhile is seen the next time.
            let next = current.next_file(&path)?;
            while let Some(line) = current.next()? {
                if is_wanted(&line) && !write(&line)? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            match next {
                Some(next) => current = next,
                None => sleep(PAUSE).await,
            }
        }
    };
    tokio::select! {
        ended = follow => ended,
        // The usual end of following.
        () = interrupted() => {
            ui.end_line();
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// `false` if nobody reads on.
fn write(line: &str) -> Result<bool, CliError> {
    write_to_reader(format!("{line}\n").as_bytes())
}

/// The log's files, the oldest first: `server.log.4` … `server.log`.
fn files(path: &Path) -> Vec<PathBuf> {
    let older = |number: usize| path.with_file_name(format!("{}.{number}", path.file_name().unwrap_or_default().display()));
    let mut older: Vec<_> = (1..).map(older).take_while(|path| path.exists()).collect();
    older.reverse();
    older.push(path.to_owned());
    older
}

/// All of them, the oldest first. The newest is opened first: of a rotation meanwhile, none is missed.
fn open_all(path: &Path) -> Result<Vec<Log>, CliError> {
    let mut logs: Vec<Log> = Vec::new();
    for file in files(path).iter().rev() {
        if let Some(log) = Log::open(file)?
            && !logs.iter().any(|known| known.id() == log.id())
        {
            logs.push(log);
        }
    }
    logs.reverse();
    Ok(logs)
}

struct Log {
    path: PathBuf,
    lines: BufReader<File>,
    /// A line of which the end isn't written yet.
    unfinished: Vec<u8>,
}

impl Log {
    fn open(path: &Path) -> Result<Option<Self>, CliError> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self { path: path.to_owned(), lines: BufReader::new(file), unfinished: Vec::new() })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(path, &error)),
        }
    }

    /// The next whole line.
    fn next(&mut self) -> Result<Option<String>, CliError> {
        self.lines.read_until(b'\n', &mut self.unfinished).map_err(|error| unreadable(&self.path, &error))?;
        if self.unfinished.pop_if(|byte| *byte == b'\n').is_none() {
            return Ok(None);
        }
        Ok(Some(String::from_utf8_lossy(&std::mem::take(&mut self.unfinished)).into_owned()))
    }

    /// What tells the file from others, whatever it is called.
    fn id(&self) -> Option<(u64, u64)> {
        self.lines.get_ref().metadata().ok().map(|file| (file.dev(), file.ino()))
    }

    /// The file that comes after it, if there is one by now.
    fn next_file(&self, path: &Path) -> Result<Option<Self>, CliError> {
        let logs = open_all(path)?;
        let position = logs.iter().position(|log| log.id() == self.id());
        // One that was removed was the oldest.
        Ok(logs.into_iter().nth(position.map_or(0, |position| position + 1)))
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed(format!("{} can't be read: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn older_files_come_first_and_a_line_that_is_being_written_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.log");
        for (name, text) in [("server.log.2", "1\n"), ("server.log.1", "2\n"), ("server.log", "3\nfou")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let names: Vec<_> = files(&path).iter().map(|file| file.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["server.log.2", "server.log.1", "server.log"]);
        let mut log = Log::open(&path).unwrap().unwrap();
        assert_eq!((log.next().unwrap().as_deref(), log.next().unwrap()), (Some("3"), None));
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"r\n").unwrap();
        assert!(log.next_file(&path).unwrap().is_none());
        assert_eq!(log.next().unwrap().as_deref(), Some("four"));
        // Rotated twice, before anybody looked.
        std::fs::remove_file(folder.path().join("server.log.2")).unwrap();
        std::fs::rename(folder.path().join("server.log.1"), folder.path().join("server.log.3")).unwrap();
        std::fs::rename(&path, folder.path().join("server.log.2")).unwrap();
        std::fs::write(folder.path().join("server.log.1"), "5\n").unwrap();
        std::fs::write(&path, "6\n").unwrap();
        let mut log = log.next_file(&path).unwrap().unwrap();
        assert_eq!(log.next().unwrap().as_deref(), Some("5"));
        let mut log = log.next_file(&path).unwrap().unwrap();
        assert_eq!(log.next().unwrap().as_deref(), Some("6"));
        assert!(log.next_file(&path).unwrap().is_none());
    }
}

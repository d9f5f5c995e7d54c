//! Data directories made ahead of need.
//!
//! `initdb` takes most of a second; a create that finds a finished directory takes a rename. Each
//! directory is made by an `initdb` of its own: copies of one would share its system identifier,
//! and a standby of one would then take another's WAL.
//!
//! Directories are built at most as many at once as the machine has cores, those that a create
//! waits for first. A directory is announced by its rename, after its content has been synced.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use toygres_models::{DatabaseName, Failure, FailureKind};

use super::account::Account;
use super::confinement::{self, Limits};
use super::files::{blocking, failed, lock, make_folder, names_in, remove_tree};
use super::programs::archives::sync_all;
use super::programs::{Programs, cannot_run};
use super::server::major_of;
use crate::kill_point::kill_point;
use crate::platform::session::TOYGRES;

const BUILDING: &str = ".building-";
/// How long after a create the pool is refilled.
const REFILL_AFTER: Duration = Duration::from_millis(500);

/// Which directories are built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Demand {
    /// Those that somebody waits for, or is about to.
    Awaited,
    /// Also those that are kept in store.
    Any,
}

pub(super) struct Pool {
    root: PathBuf,
    account: Arc<Account>,
    /// How many finished directories are kept in all: each set of programs in use has an equal share, and one at least.
    size: usize,
    cores: usize,
    state: Mutex<State>,
    stopped: CancellationToken,
}

#[derive(Default)]
struct State {
    shelves: BTreeMap<String, Shelf>,
    building: usize,
}

/// The directories of one set of programs.
struct Shelf {
    programs: Programs,
    ready: Vec<PathBuf>,
    waiting: VecDeque<oneshot::Sender<Result<Directory, Failure>>>,
    /// How many are wanted at once, though nobody waits for them yet.
    wished: usize,
    building: usize,
    /// Off after a build failed that nobody waited for, until the next wish.
    refill: bool,
}

/// A finished data directory that goes back into the pool unless it is placed.
pub(super) struct Directory {
    path: PathBuf,
    key: String,
    pool: Arc<Pool>,
    placed: bool,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Directory {
    /// Moves it to its place, which must be empty or missing.
    pub(super) fn place(mut self, target: &Path) -> Result<(), Failure> {
        std::fs::rename(&self.path, target).map_err(failed("put a new data directory in place at", target))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.placed {
            let path = std::mem::take(&mut self.path);
            if let Some(shelf) = lock(&self.pool.state).shelves.get_mut(&self.key) {
                shelf.ready.push(path);
            }
        }
    }
}

/// What tells sets of programs apart: a directory is used by the programs that made it.
fn key_of(programs: &Programs) -> String {
    let folder = programs.bin_dir.display().to_string();
    let folder = folder.trim_matches('/').replace(['/', ' '], "-");
    // A file name holds 255 bytes.
    let tail: String = folder.chars().rev().take(100).collect::<Vec<_>>().into_iter().rev().collect();
    format!("{}@{tail}", programs.postgres_version)
}

/// The finished directories in the folder of one set of programs.
fn on_disk(folder: &Path) -> Vec<PathBuf> {
    let names = names_in(folder).unwrap_or_default();
    names.into_iter().filter(|name| !name.starts_with('.')).map(|name| folder.join(name)).collect()
}

impl Pool {
    pub(super) fn new(root: PathBuf, account: Arc<Account>, size: usize) -> Arc<Self> {
        Arc::new(Self {
            root,
            account,
            size,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            state: Mutex::default(),
            stopped: CancellationToken::new(),
        })
    }

    /// Removes what builds left that were cut off, but not what another process builds now.
    pub(super) fn remove_leftovers(&self) {
        for key in names_in(&self.root).unwrap_or_default() {
            for name in names_in(&self.root.join(&key)).unwrap_or_default() {
                let builder = name.strip_prefix(BUILDING).and_then(|rest| rest.split('-').next()?.parse::<i32>().ok());
                let alive = |pid| {
                    rustix::process::Pid::from_raw(pid)
                        .is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
                };
                if builder.is_some_and(|pid| !alive(pid)) {
                    let _ = remove_tree(&self.root.join(&key).join(name));
                }
            }
        }
    }

    /// Takes the directories of the last server over, and removes those of programs that are gone, as after an upgrade of them.
    pub(super) fn take_over(&self, at_hand: &[Programs]) {
        for key in names_in(&self.root).unwrap_or_default() {
            let mut state = lock(&self.state);
            match at_hand.iter().find(|programs| key_of(programs) == key) {
                Some(_) if state.shelves.contains_key(&key) => {}
                // It isn't filled up until somebody wants one.
                Some(programs) => self.shelf(&mut state, programs).refill = false,
                None if state.shelves.contains_key(&key) => {}
                None => {
                    drop(state);
                    let _ = remove_tree(&self.root.join(key));
                }
            }
        }
    }

    /// How many finished directories each set of programs may have.
    fn share(&self, state: &State) -> usize {
        match self.size {
            0 => 0,
            size => {
                let is_in_use = |shelf: &&Shelf| shelf.refill || shelf.building > 0 || !shelf.ready.is_empty();
                (size / state.shelves.values().filter(is_in_use).count().max(1)).max(1)
            }
        }
    }

    /// Removes what is more than that, since another set of programs came into use.
    async fn trim(&self) {
        let surplus: Vec<PathBuf> = {
            let mut state = lock(&self.state);
            let share = self.share(&state);
            let more = |shelf: &mut Shelf| shelf.ready.split_off(shelf.ready.len().min(share));
            state.shelves.values_mut().flat_map(more).collect()
        };
        let removed = blocking(move || surplus.iter().try_for_each(|path| remove_tree(path).map(drop))).await;
        if let Err(failure) = removed {
            tracing::warn!(error = %failure, "could not remove a data directory that was kept ready");
        }
    }

    fn shelf<'a>(&self, state: &'a mut State, programs: &Programs) -> &'a mut Shelf {
        let key = key_of(programs);
        let folder = self.root.join(&key);
        state.shelves.entry(key).or_insert_with(|| Shelf {
            programs: programs.clone(),
            ready: on_disk(&folder),
            waiting: VecDeque::new(),
            wished: 0,
            building: 0,
            refill: true,
        })
    }

    /// Begins to fill the pool for these programs: one directory at once, the rest in the background.
    pub(super) fn warm(self: &Arc<Self>, programs: &Programs) {
        if self.size == 0 {
            return;
        }
        {
            let mut state = lock(&self.state);
            let shelf = self.shelf(&mut state, programs);
            shelf.refill = true;
            shelf.wished = usize::from(shelf.ready.is_empty());
        }
        self.pump(Demand::Awaited);
        self.refill_later();
    }

    /// How many finished directories there are now.
    pub(super) fn ready(&self) -> usize {
        lock(&self.state).shelves.values().map(|shelf| shelf.ready.len()).sum()
    }

    /// A finished directory; waits for one to be built if there is none.
    pub(super) async fn take(self: &Arc<Self>, programs: &Programs) -> Result<Directory, Failure> {
        let receiver = {
            let mut state = lock(&self.state);
            let shelf = self.shelf(&mut state, programs);
            shelf.refill = true;
            let mut found = None;
            while let Some(path) = shelf.ready.pop() {
                if major_of(&path, self.account.uid).is_some() {
                    found = Some(path);
                    break;
                }
            }
            match found {
                Some(path) => Err(path),
                None => {
                    let (sender, receiver) = oneshot::channel();
                    shelf.waiting.push_back(sender);
                    Ok(receiver)
                }
            }
        };
        let receiver = match receiver {
            Err(path) => {
                let directory = Directory { path, key: key_of(programs), pool: self.clone(), placed: false };
                self.refill_later();
                return Ok(directory);
            }
            Ok(receiver) => receiver,
        };
        self.pump(Demand::Awaited);
        tokio::select! {
            built = receiver => built.unwrap_or_else(|_| Err(stopped())),
            () = self.stopped.cancelled() => Err(stopped()),
        }
    }

    /// Refills after a moment, so that the create that just took a directory has the machine to
    /// itself.
    fn refill_later(self: &Arc<Self>) {
        let pool = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(REFILL_AFTER) => {
                    pool.trim().await;
                    pool.pump(Demand::Any);
                }
                () = pool.stopped.cancelled() => {}
            }
        });
    }

    /// Starts as many builds as are wanted and the machine can do at once.
    fn pump(self: &Arc<Self>, demand: Demand) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        while state.building < self.cores && !self.stopped.is_cancelled() {
            for shelf in state.shelves.values_mut() {
                shelf.waiting.retain(|waiting| !waiting.is_closed());
            }
            let awaited = |shelf: &Shelf| shelf.waiting.len() + shelf.wished > shelf.building;
            // What nobody waits for leaves room for what somebody does.
            let in_store = demand == Demand::Any && state.building < (self.cores / 2).max(1);
            let share = self.share(state);
            let wanted =
                |shelf: &Shelf| in_store && shelf.refill && shelf.ready.len() + shelf.building < share + shelf.waiting.len();
            let key = state.shelves.iter().find(|(_, shelf)| awaited(shelf));
            let key = key.or_else(|| state.shelves.iter().find(|(_, shelf)| wanted(shelf)));
            let Some(key) = key.map(|(key, _)| key.clone()) else { return };
            let Some(shelf) = state.shelves.get_mut(&key) else { return };
            shelf.building += 1;
            state.building += 1;
            let (pool, programs) = (self.clone(), shelf.programs.clone());
            tokio::spawn(async move {
                let built = tokio::select! {
                    built = pool.build(&key, &programs) => Some(built),
                    () = pool.stopped.cancelled() => None,
                };
                pool.finish(&key, built);
            });
        }
    }

    fn finish(self: &Arc<Self>, key: &str, built: Option<Result<PathBuf, Failure>>) {
        let undelivered = {
            let mut state = lock(&self.state);
            state.building -= 1;
            let Some(shelf) = state.shelves.get_mut(key) else { return };
            shelf.building -= 1;
            let mut result =
                built.map(|built| built.map(|path| Directory { path, key: key.to_owned(), pool: self.clone(), placed: false }));
            if let Some(Err(failure)) = &result {
                (shelf.refill, shelf.wished) = (false, 0);
                if shelf.waiting.is_empty() {
                    tracing::warn!(error = %failure, "could not make a data directory ahead of need");
                }
            }
            while let Some(outcome) = result.take() {
                let Some(waiting) = shelf.waiting.pop_front() else {
                    result = Some(outcome);
                    break;
                };
                result = waiting.send(outcome).err();
            }
            if matches!(result, Some(Ok(_))) {
                shelf.wished = shelf.wished.saturating_sub(1);
            }
            result
        };
        // Its drop puts a directory on the shelf, for which the lock must be free.
        drop(undelivered);
        self.pump(Demand::Awaited);
        self.refill_later();
    }

    async fn build(&self, key: &str, programs: &Programs) -> Result<PathBuf, Failure> {
        let name = uuid::Uuid::new_v4();
        let shelf = self.root.join(key);
        let building = shelf.join(format!("{BUILDING}{}-{name}", std::process::id()));
        let (account, folder, made) = (self.account.clone(), shelf.clone(), building.clone());
        blocking(move || {
            let (mode, owner) = account.passable_by((account.uid, account.gid));
            make_folder(&folder, mode, owner)?;
            make_folder(&made, 0o700, account.owner())
        })
        .await?;
        let removed_unless_finished = RemovedOnDrop(Some(building.clone()));
        initdb(&self.account, programs, &building, None).await?;
        make_database(&self.account, programs, &building).await?;
        let target = shelf.join(name.to_string());
        blocking(move || {
            sync_all(&building)?;
            std::fs::rename(&building, &target).map_err(failed("rename", &building))?;
            removed_unless_finished.keep();
            Ok(target)
        })
        .await
    }

    /// Stops building. Who waits is told to try again.
    pub(super) fn stop(&self) {
        self.stopped.cancel();
    }
}

fn stopped() -> Failure {
    Failure::transient(FailureKind::Platform, "toygres is stopping and makes no data directory any more; try again")
}

struct RemovedOnDrop(Option<PathBuf>);

impl RemovedOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = remove_tree(path);
        }
    }
}

/// Runs `initdb` on an empty directory: toygres's own role is the superuser, with the password in `password_file` if there is
/// one. It doesn't sync: the caller does, once.
pub(super) async fn initdb(
    account: &Account,
    programs: &Programs,
    data: &Path,
    password_file: Option<&Path>,
) -> Result<(), Failure> {
    // Sorting by code point is the same on every machine and build, so data can move between them.
    // Not every system has that locale; C sorts the same and only knows fewer letters.
    const LOCALES: [&str; 2] = ["C.UTF-8", "C"];
    let mut words = String::new();
    for locale in LOCALES {
        let mut command = account.command(&programs.program("initdb"));
        command
            .arg("-D")
            .arg(data)
            .args(["-U", TOYGRES, "-E", "UTF8", "--data-checksums", "--auth=reject"])
            .arg(format!("--locale={locale}"))
            .current_dir(data)
            .kill_on_drop(true);
        if let Some(file) = password_file {
            command.arg("--pwfile").arg(file);
        }
        if cfg!(target_os = "linux") {
            command.arg("--no-sync");
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let begun = confinement::spawn(Limits::of_initdb(&programs.bin_dir, data, password_file), command);
        kill_point("create-initdb-begun");
        let output = async { begun?.wait_with_output().await };
        let output = output.await.map_err(|error| cannot_run(&programs.program("initdb"), error))?;
        if output.status.success() {
            return Ok(());
        }
        words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !words.contains("locale") {
            break;
        }
    }
    let evidence: Vec<_> = words.lines().map(str::to_owned).collect();
    let headline = evidence.iter().find(|line| line.contains("error:") || line.contains("FATAL")).cloned().unwrap_or_default();
    let message = format!("initdb of PostgreSQL {} failed: {headline}; nothing was created", programs.postgres_version);
    // A block that was written in part comes with the hint alone.
    let failure = if words.contains("No space left on device") || words.contains("Check free disk space") {
        Failure::permanent(
            FailureKind::Exhausted,
            format!("the disk of {} is full; free some room and try again", data.display()),
        )
    } else {
        Failure::permanent(FailureKind::StartFailed, message)
    };
    Err(failure.with_evidence(evidence))
}

/// Makes the owner's database, under the name that most have, in a directory that no server works on yet: a server takes longer
/// for it, as it syncs. It is renamed or handed over when the owner is made.
async fn make_database(account: &Account, programs: &Programs, data: &Path) -> Result<(), Failure> {
    let program = programs.program("postgres");
    let mut command = account.command(&program);
    command.args(["--single", "-F", "-c", "exit_on_error=on", "-D"]).arg(data).arg("template1").current_dir(data);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let work = async {
        let mut server = confinement::spawn(Limits::of_initdb(&programs.bin_dir, data, None), command)?;
        if let Some(mut statements) = server.stdin.take() {
            statements.write_all(format!("CREATE DATABASE \"{}\"\n", DatabaseName::default()).as_bytes()).await?;
        }
        server.wait_with_output().await
    };
    let output = work.await.map_err(|error| cannot_run(&program, error))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let evidence: Vec<_> = words.lines().map(str::to_owned).collect();
    let message =
        format!("PostgreSQL {} made no database in a new data directory; nothing was created", programs.postgres_version);
    let failure = match words.contains("No space left on device") {
        true => Failure::permanent(
            FailureKind::Exhausted,
            format!("the disk of {} is full; free some room and try again", data.display()),
        ),
        false => Failure::permanent(FailureKind::StartFailed, message),
    };
    Err(failure.with_evidence(evidence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_file_name_and_tells_programs_apart() {
        let programs = |bin_dir: &str| Programs {
            bin_dir: bin_dir.into(),
            postgres_version: "15.18".parse().unwrap(),
            source: String::new(),
        };
        assert_eq!(key_of(&programs("/usr/lib/postgresql/15/bin")), "15.18@usr-lib-postgresql-15-bin");
        assert_ne!(key_of(&programs("/a/bin")), key_of(&programs("/b/bin")));
        assert!(key_of(&programs(&format!("/{}", "é".repeat(200)))).len() <= 255);
    }

    #[tokio::test]
    async fn the_size_is_for_all_programs_together() {
        let root = tempfile::tempdir().unwrap();
        let account = Account {
            name: "somebody".into(),
            uid: 0,
            gid: 0,
            chosen: "a test",
            switches: false,
            separates: false,
            first_instance_id: 0,
        };
        let at_hand: Vec<Programs> = ["15.18", "17.6", "18.4"]
            .map(|version| Programs {
                bin_dir: format!("/opt/{version}/bin").into(),
                postgres_version: version.parse().unwrap(),
                source: String::new(),
            })
            .into();
        let folders = || at_hand.iter().map(|programs| on_disk(&root.path().join(key_of(programs))).len()).collect::<Vec<_>>();
        for programs in &at_hand {
            for number in 0..8 {
                std::fs::create_dir_all(root.path().join(key_of(programs)).join(number.to_string())).unwrap();
            }
        }
        let pool = Pool::new(root.path().to_owned(), Arc::new(account), 8);
        pool.take_over(&at_hand[..2]);
        assert_eq!(folders(), [8, 8, 0], "those of programs that are gone stay");
        pool.trim().await;
        assert_eq!((folders(), pool.ready()), (vec![4, 4, 0], 8));
    }
}

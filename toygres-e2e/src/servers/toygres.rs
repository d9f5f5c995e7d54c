//! A `toygres` with a state directory, ports and a home folder of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::process::Command;

use super::{control, place, process, ready_pool};
use crate::api::Api;
use crate::by_hand;
use crate::checks::evidence;
use crate::run::Run;
use crate::wait::{SOON, eventually, wait_until};

/// How many ports a test gets unless it asks for others.
const PORTS: u16 = 50;

/// A fresh installation: nothing runs, nothing is there. Dropping it ends all that was started.
#[derive(Debug)]
pub struct Toygres {
    folder: TempDir,
    state_dir: PathBuf,
    program: PathBuf,
    variables: BTreeMap<&'static str, OsString>,
    /// User and group that the program runs as, where it isn't ours.
    user: Option<(u32, u32)>,
}

impl Toygres {
    /// Makes its folders; starts nothing.
    ///
    /// # Errors
    /// If the program under test isn't there, or a folder can't be made.
    pub fn new() -> Result<Self> {
        Self::set_up(place::temporary_folder()?, program("debug")?)
    }

    /// The optimised program on a real disk with its defaults, for measurements.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_measurement() -> Result<Self> {
        Ok(Self::set_up(place::temporary_folder_on_disk()?, program("release")?)?.without("TOYGRES_POOL_SIZE"))
    }

    fn set_up(folder: TempDir, program: PathBuf) -> Result<Self> {
        let (state_dir, home, config) =
            (folder.path().join("state"), folder.path().join("home"), folder.path().join("config.toml"));
        std::fs::create_dir(&home)?;
        // The machine's own config file is not the test's business.
        std::fs::write(&config, "")?;
        // Fetched programs would change the default version, so they come in only where asked for.
        let cache = if by_hand::Programs::installed().is_some() { folder.path().join("cache") } else { place::shared_cache() };
        let first = 10_000 + (RandomState::new().hash_one(0) % 9_000) as u16;
        let variables: [(_, OsString); 7] = [
            ("TOYGRES_STATE_DIR", state_dir.clone().into()),
            ("TOYGRES_CACHE_DIR", cache.into()),
            ("TOYGRES_CONFIG", config.into()),
            ("TOYGRES_LISTEN", "127.0.0.1:0".into()),
            ("TOYGRES_PORT_RANGE", format!("{first}-{}", first + PORTS - 1).into()),
            // Each prepared directory costs an initdb; see `ready_pool`.
            ("TOYGRES_POOL_SIZE", "0".into()),
            ("HOME", home.into()),
        ];
        Ok(Self { state_dir, program, variables: variables.into(), folder, user: None })
    }

    /// The same with an environment variable set otherwise.
    #[must_use]
    pub fn with(mut self, variable: &'static str, value: impl Into<OsString>) -> Self {
        let value = value.into();
        if variable == "TOYGRES_STATE_DIR" {
            self.state_dir = value.clone().into();
        }
        self.variables.insert(variable, value);
        self
    }

    /// The same with an environment variable, if [`with`](Self::with) didn't set it.
    #[must_use]
    pub fn with_unless_set(mut self, variable: &'static str, value: impl Into<OsString>) -> Self {
        self.variables.entry(variable).or_insert_with(|| value.into());
        self
    }

    /// The same without an environment variable.
    #[must_use]
    pub fn without(mut self, variable: &'static str) -> Self {
        self.variables.remove(variable);
        self
    }

    /// The same with the cache of PostgreSQL builds that survives a run.
    #[must_use]
    pub fn with_shared_cache(self) -> Self {
        self.with("TOYGRES_CACHE_DIR", place::shared_cache())
    }

    /// The same, by a copy of the program that has another name.
    ///
    /// # Errors
    /// If it can't be copied.
    pub fn named(mut self, name: &str) -> Result<Self> {
        let copy = self.folder.path().join(name);
        std::fs::copy(&self.program, &copy)?;
        self.program = copy;
        Ok(self)
    }

    /// The same, run by an ordinary user in a folder of that user's. `None` if there is no such
    /// user, or none that can reach the program.
    ///
    /// # Errors
    /// If the folder can't be given away.
    pub async fn as_another_user(mut self) -> Result<Option<Self>> {
        let Some((uid, gid)) = ["daemon", "postgres"].into_iter().find_map(place::user) else { return Ok(None) };
        for path in [self.folder.path().to_owned(), self.folder.path().join("home"), self.folder.path().join("config.toml")] {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
        }
        self.user = Some((uid, gid));
        let can_run = self.run(&["--version"]).await.is_ok_and(|run| run.code == Some(0));
        Ok(can_run.then_some(self))
    }

    /// The state directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The folder around the state directory, for other files of the test.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// An instance's folder.
    #[must_use]
    pub fn instance_dir(&self, name: &str) -> PathBuf {
        self.state_dir.join("instances/default").join(name)
    }

    /// The files of an instance's log, oldest first.
    pub fn log_files(&self, name: &str) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(self.instance_dir(name).join("log"))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.sort();
        Ok(files)
    }

    /// An instance's log.
    pub fn log(&self, name: &str) -> Result<String> {
        Ok(self.log_files(name)?.iter().map(std::fs::read_to_string).collect::<Result<_, _>>()?)
    }

    /// An instance's secret file.
    #[must_use]
    pub fn secret_file(&self, name: &str) -> PathBuf {
        self.state_dir.join("secrets/default").join(name)
    }

    /// The servers that run on an instance's data directory.
    #[must_use]
    pub fn postmasters(&self, name: &str) -> Vec<u32> {
        process::postmasters_on(&self.instance_dir(name).join("data"))
    }

    /// The servers of all instances and the control database's, in order. What initdb runs for the
    /// pool isn't among them.
    #[must_use]
    pub fn all_postmasters(&self) -> Vec<u32> {
        let mut found = process::postmasters_on(&self.state_dir.join("control/data"));
        found.extend(process::postmasters_below(&self.state_dir.join("instances")));
        found.sort_unstable();
        found
    }

    /// A command of the program, with nothing of the test's own environment but the path.
    #[must_use]
    pub fn command<A: AsRef<str>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(&self.variables).current_dir(self.folder.path());
        for kept in ["PATH", "TZ", "TOYGRES_LOG"] {
            command.envs(std::env::var_os(kept).map(|value| (kept, value)));
        }
        command.args(arguments.iter().map(AsRef::as_ref));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs the program.
    ///
    /// # Errors
    /// If it can't be run, or hangs.
    pub async fn run<A: AsRef<str>>(&self, arguments: &[A]) -> Result<Run> {
        Run::of(self.command(arguments), None).await
    }

    /// Runs the program with something to read.
    ///
    /// # Errors
    /// If it can't be run, or hangs.
    pub async fn run_with_input<A: AsRef<str>>(&self, arguments: &[A], input: &[u8]) -> Result<Run> {
        Run::of(self.command(arguments), Some(input)).await
    }

    /// Runs the program, which has to succeed.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn ok<A: AsRef<str>>(&self, arguments: &[A]) -> Result<Run> {
        self.run(arguments).await?.expect_code(0)
    }

    /// Runs the program for its result as JSON.
    ///
    /// # Errors
    /// If it fails.
    pub async fn json<A: AsRef<str>>(&self, arguments: &[A]) -> Result<Value> {
        let words: Vec<&str> = ["-o", "json"].into_iter().chain(arguments.iter().map(AsRef::as_ref)).collect();
        self.ok(&words).await?.json()
    }

    /// Runs the program, which has to fail with that exit status and a text for people.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn fails<A: AsRef<str>>(&self, code: i32, arguments: &[A]) -> Result<Run> {
        self.run(arguments).await?.expect_code(code)?.expect_humane()
    }

    /// Starts the server, with data directories that are ready for it; its HTTP interface.
    ///
    /// # Errors
    /// If it doesn't start.
    pub async fn serve(&self) -> Result<Api> {
        let is_measured = !self.variables.contains_key("TOYGRES_POOL_SIZE");
        let is_elsewhere = !self.state_dir.starts_with(self.folder());
        if !is_measured && !is_elsewhere && self.user.is_none() && !self.state_dir.exists() {
            ready_pool::fill(&self.program, &self.state_dir).await?;
        }
        self.ok(&["server", "start"]).await?;
        self.api()
    }

    /// The HTTP interface of the server that runs.
    ///
    /// # Errors
    /// If none does.
    pub fn api(&self) -> Result<Api> {
        let token = std::fs::read_to_string(self.state_dir.join("token"))?;
        Api::new(&self.url()?, Some(token.trim()))
    }

    /// The Unix socket of the server.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("api/socket")
    }

    /// Where the server that runs listens by TCP, as it says by its socket.
    ///
    /// # Errors
    /// If none does.
    pub fn url(&self) -> Result<String> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"GET /server HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer without an end to its head")?;
        let about: Value = serde_json::from_str(body).with_context(|| answer.clone())?;
        Ok(about["url"].as_str().context("no URL")?.to_owned())
    }

    fn connect(&self) -> Result<UnixStream> {
        let socket = self.socket();
        UnixStream::connect(&socket).with_context(|| format!("no server listens on {}", socket.display()))
    }

    /// The server's process: it may hang.
    ///
    /// # Errors
    /// If none listens.
    pub fn server_pid(&self) -> Result<u32> {
        let stream = self.connect()?;
        stream.set_nonblocking(true)?;
        let peer = tokio::net::UnixStream::from_std(stream)?.peer_cred()?;
        Ok(u32::try_from(peer.pid().context("this system doesn't tell the process")?)?)
    }

    /// Kills the server with no chance to tidy up.
    ///
    /// # Errors
    /// If there is none.
    pub async fn kill_server(&self) -> Result<()> {
        // A command that waits may be starting the next one.
        let pid = eventually("a server to listen", SOON, async || self.server_pid().map(Some)).await?;
        process::kill(pid).await
    }

    /// Kills every server process on the state directory, one that is still starting too.
    ///
    /// # Errors
    /// If one doesn't go.
    pub async fn kill_servers(&self) -> Result<()> {
        for pid in process::servers_on(&self.state_dir) {
            process::kill(pid).await?;
        }
        Ok(())
    }

    /// The control database.
    ///
    /// # Errors
    /// If it can't be reached.
    pub async fn control(&self) -> Result<PgPool> {
        control::connect(&self.state_dir).await
    }

    /// The process of the instance's server, of which there has to be exactly one soon.
    ///
    /// # Errors
    /// If there is none or more.
    pub async fn only_postmaster(&self, name: &str) -> Result<u32> {
        let what = format!("exactly one server of {name}");
        eventually(&what, SOON, async || match self.postmasters(name).as_slice() {
            [pid] => Ok(Some(*pid)),
            other => bail!("there are {other:?}"),
        })
        .await
    }

    /// Makes an error of anything that is left of an instance: processes, files, its secret, its
    /// port, its live row.
    ///
    /// # Errors
    /// Names what is left.
    pub async fn expect_nothing_of(&self, name: &str) -> Result<()> {
        self.expect_nothing_made_of(name)?;
        let control = self.control().await?;
        let (rows, ports): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM toygres.instances WHERE name = $1 AND state <> 'deleted'),
                (SELECT count(*) FROM toygres.ports WHERE name = $1)",
        )
        .bind(name)
        .fetch_one(&control)
        .await?;
        control.close().await;
        if rows + ports > 0 {
            bail!("{rows} rows and {ports} ports of {name} are left");
        }
        Ok(())
    }

    /// The same without a look into the control database.
    ///
    /// # Errors
    /// Names what is left.
    pub fn expect_nothing_made_of(&self, name: &str) -> Result<()> {
        for path in [self.instance_dir(name), self.secret_file(name)] {
            if path.symlink_metadata().is_ok() {
                bail!("{} is left", path.display());
            }
        }
        match self.postmasters(name).as_slice() {
            [] => Ok(()),
            left => bail!("the processes {left:?} of {name} are left"),
        }
    }

    /// Waits until as many data directories are ready as the pool is to hold.
    ///
    /// # Errors
    /// If they never are.
    pub async fn wait_pool(&self, size: usize) -> Result<()> {
        let ready = || {
            let versions = std::fs::read_dir(self.state_dir.join("pool")).into_iter().flatten().flatten();
            let directories = versions.flat_map(|version| std::fs::read_dir(version.path()).into_iter().flatten().flatten());
            directories.filter(|directory| !directory.file_name().to_string_lossy().starts_with('.')).count() >= size
        };
        wait_until("the pool to be full", Duration::from_secs(60), ready).await
    }
}

impl Drop for Toygres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", evidence::gather(&self.state_dir));
        }
        process::end_all(&self.state_dir);
    }
}

/// The program under test.
///
/// # Errors
/// If it isn't there.
pub fn program(profile: &str) -> Result<PathBuf> {
    let path = match std::env::var_os("TOYGRES_BIN") {
        Some(path) => path.into(),
        None => {
            let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| place::workspace().join("target"), PathBuf::from);
            target.join(profile).join("toygres")
        }
    };
    path.canonicalize().with_context(|| format!("there is no {}; build it first: cargo build -p toygres-cli", path.display()))
}

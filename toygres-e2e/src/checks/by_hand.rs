//! PostgreSQL as one would run it by hand: what toygres is measured against, and a database for
//! tests of the metadata store.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use sysinfo::Signal;
use tempfile::TempDir;

use crate::place;
use crate::process;
use crate::wait::SOON;

/// Nobody who works by hand is faster.
const POLL: Duration = Duration::from_millis(2);

/// The folder with initdb and postgres.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// The newest PostgreSQL that is installed on this machine.
    #[must_use]
    pub fn installed() -> Option<Self> {
        Self::all_installed().pop().map(|(_, programs)| programs)
    }

    /// Every PostgreSQL in the system's folders, by major version, and the one on the path.
    #[must_use]
    pub fn all_installed() -> Vec<(u16, Self)> {
        let by_version = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = by_version.map(|version| version.path().join("bin")).collect();
        folders.push("/opt/homebrew/bin".into());
        folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut found: Vec<(u16, Self)> = Vec::new();
        for folder in folders.iter().filter(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file()) {
            if let Some(major) = major_of(folder).filter(|major| found.iter().all(|(known, _)| known != major)) {
                found.push((major, Self(folder.clone())));
            }
        }
        found.sort_by_key(|(major, _)| *major);
        found
    }

    /// The path of a program of it, whether it is there or not.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }

    /// A program of it, run as whom toygres runs servers as.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.0.join(program));
        command.env_clear().env("LANG", "C.UTF-8").env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).current_dir("/");
        if let Some((uid, gid)) = server_user() {
            command.uid(uid).gid(gid);
        }
        command
    }
}

fn major_of(folder: &Path) -> Option<u16> {
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // postgres (PostgreSQL) 15.18 (Debian …)
    text.split_whitespace().nth(2)?.split('.').next()?.parse().ok()
}

/// The user and group that servers run as when the tests run as root; PostgreSQL refuses root.
fn server_user() -> Option<(u32, u32)> {
    place::is_root().then(|| place::user("toygres").or_else(|| place::user("postgres"))).flatten()
}

/// A server made and started by hand; stopped and removed when dropped.
#[derive(Debug)]
pub struct Server {
    folder: Arc<TempDir>,
    programs: Programs,
    child: Option<Child>,
    port: u16,
}

impl Server {
    /// `initdb` with its defaults, and `postgres` on it until it answers `SELECT 1`.
    ///
    /// # Errors
    /// If a program fails.
    pub async fn create(programs: &Programs, folder: TempDir) -> Result<Self> {
        if let Some((uid, gid)) = server_user() {
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(gid))?;
        }
        let data = folder.path().join("data");
        let output = programs.command("initdb").args(["-U", "postgres", "-A", "trust", "-D"]).arg(&data).output()?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let mut server = Self { folder: Arc::new(folder), programs: programs.clone(), child: None, port: 5432 };
        server.start().await?;
        Ok(server)
    }

    /// Starts it again after [`stop`](Self::stop).
    ///
    /// # Errors
    /// If it doesn't answer.
    pub async fn start(&mut self) -> Result<()> {
        let log = std::fs::File::create(self.folder.path().join("postgres.log"))?;
        let mut command = self.programs.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path()).args(["-c", "listen_addresses="]);
        self.child = Some(command.process_group(0).stdout(log.try_clone()?).stderr(log).spawn()?);
        let asked = Instant::now();
        loop {
            match self.connect().await {
                Ok(connection) => return Ok(connection.close().await?),
                Err(error) => ensure!(asked.elapsed() < SOON, "the server made by hand doesn't answer: {error}"),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// How to connect.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.folder.path())
            .port(self.port)
            .username("postgres")
            .database("postgres")
            .disable_statement_logging()
    }

    /// The same as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// How to connect to one of its databases, as a URL.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        let folder = self.folder.path().to_string_lossy().replace('/', "%2F");
        format!("postgresql://postgres@localhost:{}/{database}?host={folder}", self.port)
    }

    async fn connect(&self) -> Result<PgConnection> {
        let mut connection = self.options().connect().await?;
        sqlx::query("SELECT 1").execute(&mut connection).await?;
        Ok(connection)
    }

    /// Stops it fast, as `pg_ctl stop` does, and removes its directory.
    ///
    /// # Errors
    /// If it doesn't end.
    pub async fn remove(mut self) -> Result<()> {
        self.stop().await?;
        std::fs::remove_dir_all(self.data())?;
        Ok(())
    }

    /// Stops it fast.
    ///
    /// # Errors
    /// If it doesn't end.
    pub async fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it doesn't run")?;
        process::send(child.id(), Signal::Interrupt)?;
        let told = Instant::now();
        while child.try_wait()?.is_none() {
            ensure!(told.elapsed() < SOON, "the server made by hand doesn't stop");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = process::send(child.id(), Signal::Quit);
            for _ in 0..250 {
                if !matches!(child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

//! The start of a server's process: how it is called, what it can reach, and why it ended at once.

use std::time::Duration;

use rustix::fs::StatVfsMountFlags;
use toygres_models::{Failure, FailureKind};

use super::process::{Postmaster, last_child_ended};
use super::settings::{self, Role};
use super::{Cause, Server, StartFailure, why_not_free};
use crate::platform::local::confinement::{self, Limits};
use crate::platform::local::files::failed;
use crate::platform::local::logs::files::Position;
use crate::platform::local::programs::{Programs, cannot_run};
use crate::server_log::{Line, headline};

/// How long the log of a server that ended may take to be written to its end.
const COLLECT_LIMIT: Duration = Duration::from_secs(2);

impl Server {
    /// Starts its process, within its limits.
    pub(super) fn spawn(&self, programs: &Programs, port: u16) -> Result<Postmaster, Failure> {
        let data = self.data();
        let log = self.log();
        let stderr = log.open_to_append()?;
        let stdout = stderr.try_clone().map_err(failed("open", &log.folder()))?;
        let program = programs.program("postgres");
        let mut command = self.surroundings.account.command_as(&program, self.owner());
        command.arg("-D").arg(&data).arg("-c").arg(format!("port={port}"));
        for argument in settings::arguments(self.role, &self.surroundings, &self.home, &log) {
            command.arg("-c").arg(argument);
        }
        command.current_dir(&data).stdout(stdout).stderr(stderr);
        let child = confinement::spawn(self.limits(programs, port), command).map_err(|error| cannot_run(&program, error))?;
        Postmaster::spawned(child, &data, self.uid())
    }

    /// What it can reach. Its folder is read as a whole, since each file of its configuration is replaced by another one.
    fn limits(&self, programs: &Programs, port: u16) -> Limits {
        let mut writes = vec![self.data(), self.log().folder()];
        let mut reads = vec![self.home.clone()];
        match self.role {
            Role::Instance => reads.push(self.surroundings.way_in.clients().certificate_path().to_owned()),
            Role::Control => writes.push(self.surroundings.socket_dir.clone()),
        }
        let is_instance = self.role == Role::Instance;
        Limits { bin_dir: programs.bin_dir.clone(), reads, writes, port: is_instance.then_some(port) }
    }

    /// Why a server that was just started ended, in its own words.
    pub(super) async fn explain_start(
        &self,
        programs: &Programs,
        postmaster: &Postmaster,
        port: u16,
        log_begin: Position,
    ) -> StartFailure {
        last_child_ended(&self.data(), COLLECT_LIMIT).await;
        let evidence = self.log().evidence(log_begin);
        let lines: Vec<_> = evidence.iter().filter_map(|line| Line::parse(line)).collect();
        let has_code = |code: &str| lines.iter().any(|line| line.code.starts_with(code));
        let headline = match headline(&evidence) {
            Some(headline) => headline.to_owned(),
            None => format!("it {} and said nothing", postmaster.ending().await),
        };
        let (label, home) = (&self.label, self.home.display());
        // F0001: the data directory's lock file exists.
        let is_locked = has_code("F0001");
        use std::io::ErrorKind::{AddrInUse, AddrNotAvailable};
        let port_trouble = (self.role == Role::Instance && !is_locked).then(|| why_not_free(port)).flatten();
        let port_trouble = port_trouble.map(|error| error.kind()).filter(|kind| matches!(kind, AddrInUse | AddrNotAvailable));
        let is_read_only = || rustix::fs::statvfs(&self.home).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
        let (cause, failure) = if let Some(kind) = port_trouble {
            if kind == AddrInUse {
                let message = format!(
                    "the server of {label} did not start, as another program has its port: {headline}; stop that program"
                );
                (Cause::PortTaken, Failure::transient(FailureKind::StartFailed, message))
            } else {
                let message = format!(
                    "the server of {label} did not start, as this machine has no address 127.0.0.1: {headline}; see whether its \
                     loopback interface is up: `ip address show lo`"
                );
                (Cause::Other, Failure::transient(FailureKind::Platform, message))
            }
        } else if lines.is_empty() && !programs.answer().await {
            let message = format!("the server of {label} did not start, and its PostgreSQL programs are damaged: {headline}");
            (Cause::Other, Failure::permanent(FailureKind::ProgramsUnavailable, format!("{message}; {}", programs.remedy())))
        } else if is_locked {
            let message = format!(
                "the server of {label} did not start, as processes of its last run still hold its data directory: {headline}"
            );
            (Cause::Interlock, Failure::transient(FailureKind::StartFailed, message))
        } else if has_code("53100") {
            let message =
                format!("the server of {label} did not start, as the disk of {home} is full; free some room: {headline}");
            (Cause::Other, Failure::permanent(FailureKind::Exhausted, message))
        } else if is_read_only() {
            let message = format!("the server of {label} did not start, as {home} is on a read-only file system: {headline}");
            (Cause::Other, Failure::permanent(FailureKind::Platform, message))
        } else if self.is_being_removed() {
            let message = format!("the start of {label} was given up, as it is being deleted");
            (Cause::Other, Failure::permanent(FailureKind::Superseded, message))
        } else {
            // Memory, semaphores and sockets come back (of these the server tells no SQLSTATE); a wrong setting doesn't.
            let is_scarce = |line: &Line<'_>| line.is_fatal() && line.process == "postmaster" && line.code == "XX000";
            let message = format!("the server of {label} did not start: {headline}");
            let failure = if has_code("53") || lines.iter().any(is_scarce) {
                Failure::transient(FailureKind::StartFailed, message)
            } else {
                Failure::permanent(FailureKind::StartFailed, message)
            };
            (Cause::Other, failure)
        };
        StartFailure { cause, failure: failure.with_evidence(evidence) }
    }
}

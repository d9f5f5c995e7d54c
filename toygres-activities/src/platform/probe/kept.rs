//! The connection that is kept into each instance, and what it last brought.
//!
//! While a server hangs, its probe is waited for and no second one is sent: a server that is stopped has one session of
//! toygres's, however long that lasts.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio_postgres::Statement;
use toygres_models::{Failure, FailureKind, InstanceKey};

use super::sample::{Sample, Slow, statement};
use crate::platform::session::connection::{Connection, Error, Target};
use crate::platform::session::log_in;

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long one is waited for that was not there in time before.
const GLANCE: Duration = Duration::from_millis(50);
/// A session is ended after that long: a process of PostgreSQL's grows with what it has seen, and what is read of a connection has
/// a limit.
const SESSION_LIMIT: Duration = Duration::from_secs(30 * 60);
/// What takes longer to find out is asked for that often.
const SLOW_INTERVAL: Duration = Duration::from_secs(60);
/// A connection that nobody asks for is closed after that long.
const UNUSED_LIMIT: Duration = Duration::from_secs(120);

/// What a probe brought.
#[derive(Debug, Clone)]
pub struct Probed {
    /// When the answer came.
    pub at: DateTime<Utc>,
    /// How long it took, a log-in included where one was needed.
    pub latency: Duration,
    /// What the server said.
    pub sample: Sample,
}

/// How to log in to a server, and what has to be held meanwhile: a forwarded port, say.
pub(crate) type Way = (Target, Option<Box<dyn std::any::Any + Send + Sync>>);

/// An open session.
struct Kept {
    target: Target,
    connection: Connection,
    statement: Statement,
    opened: Instant,
    held: Option<Box<dyn std::any::Any + Send + Sync>>,
}

type Ended = (Option<Kept>, Result<Sample, Failure>);

/// A probe that is on its way.
struct Pending {
    task: JoinHandle<Ended>,
    begun: Instant,
    begun_at: DateTime<Utc>,
    is_late: bool,
}

#[derive(Default)]
struct State {
    kept: Option<Kept>,
    pending: Option<Pending>,
    last: Option<(Instant, Arc<Probed>)>,
    slow: Option<(Instant, Slow)>,
    used: Option<Instant>,
}

type Slot = Arc<tokio::sync::Mutex<State>>;

/// The connections into a platform's instances.
#[derive(Default)]
pub(crate) struct Probes {
    slots: Mutex<HashMap<InstanceKey, Slot>>,
    /// The path of the file about the volume, where servers have one.
    volume_file: &'static str,
    last_cleaned: Mutex<Option<Instant>>,
}

impl Probes {
    /// None yet. `volume_file` is what the pod's own probe writes; empty where there is none.
    pub(crate) fn new(volume_file: &'static str) -> Self {
        Self { volume_file, ..Self::default() }
    }

    /// What the instance's server says now, or said within `max_age`.
    ///
    /// # Errors
    /// [`TimedOut`](FailureKind::TimedOut) if there is no answer, and otherwise those of a log-in and of a statement.
    pub(crate) async fn probe(
        &self,
        key: &InstanceKey,
        max_age: Duration,
        way: impl Future<Output = Result<Way, Failure>> + Send + 'static,
    ) -> Result<Arc<Probed>, Failure> {
        self.close_unused();
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default().clone();
        let mut state = slot.lock().await;
        state.used = Some(Instant::now());
        if let Some((at, last)) = &state.last
            && at.elapsed() <= max_age
        {
            return Ok(last.clone());
        }
        let is_slow_due = state.slow.as_ref().is_none_or(|(at, _)| at.elapsed() >= SLOW_INTERVAL);
        let mut pending = match state.pending.take() {
            Some(pending) => pending,
            None => Pending {
                task: tokio::spawn(ask(state.kept.take(), way, is_slow_due, self.volume_file)),
                begun: Instant::now(),
                begun_at: Utc::now(),
                is_late: false,
            },
        };
        let patience = if pending.is_late { GLANCE } else { ANSWER_LIMIT };
        let Ok(ended) = tokio::time::timeout(patience, &mut pending.task).await else {
            let message = format!("the server of {key} has not answered since {}", pending.begun_at.format("%F %T UTC"));
            state.pending = Some(Pending { is_late: true, ..pending });
            return Err(Failure::transient(FailureKind::TimedOut, message));
        };
        let (kept, sample) = ended
            .map_err(|error| Failure::transient(FailureKind::Internal, format!("the probe of {key} was cut off: {error}")))?;
        state.kept = kept;
        state.last = None;
        let mut sample = sample?;
        match &state.slow {
            Some((_, slow)) if sample.slow == Slow::default() => sample.slow = slow.clone(),
            _ => state.slow = Some((Instant::now(), sample.slow.clone())),
        }
        let probed = Arc::new(Probed { at: Utc::now(), latency: pending.begun.elapsed(), sample });
        state.last = Some((Instant::now(), probed.clone()));
        Ok(probed)
    }

    /// Closes what wasn't asked for in a while: those instances are stopped, deleted, or another server's by now.
    fn close_unused(&self) {
        let mut last_cleaned = self.last_cleaned.lock().unwrap_or_else(PoisonError::into_inner);
        if last_cleaned.is_some_and(|at| at.elapsed() < UNUSED_LIMIT / 2) {
            return;
        }
        *last_cleaned = Some(Instant::now());
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is locked is in use.
        slots.retain(|_, slot| {
            let Ok(state) = slot.try_lock() else { return true };
            let is_used = state.used.is_none_or(|used| used.elapsed() < UNUSED_LIMIT);
            if !is_used && let Some(pending) = &state.pending {
                pending.task.abort();
            }
            is_used
        });
    }
}

/// Asks over the session that is kept, or over a new one: that of a server which was restarted is dead.
async fn ask(kept: Option<Kept>, way: impl Future<Output = Result<Way, Failure>>, slow: bool, volume_file: &str) -> Ended {
    // Through a forwarded port a knock says nothing, so that each probe logs in.
    if let Some(kept) = kept.filter(|kept| kept.opened.elapsed() < SESSION_LIMIT && kept.held.is_none())
        && kept.target.knock().await.is_ok()
        && let Ok(sample) = kept.ask(slow, volume_file).await
    {
        return (Some(kept), sample);
    }
    let kept = match open(way).await {
        Ok(kept) => kept,
        Err(failure) => return (None, Err(failure)),
    };
    match kept.ask(true, volume_file).await {
        Ok(sample) => (Some(kept), sample),
        Err(failure) => (None, Err(failure)),
    }
}

impl Kept {
    /// What it says; an error is one of the session, which is of no use any more.
    async fn ask(&self, slow: bool, volume_file: &str) -> Result<Result<Sample, Failure>, Failure> {
        let row = self.connection.client.query_one(&self.statement, &[&slow, &volume_file]).await.map_err(refused)?;
        let answer: Result<&str, _> = row.try_get(0);
        let answer = answer.map_err(|error| not_understood(&error));
        Ok(answer.and_then(|answer| Sample::parse(answer).map_err(|error| not_understood(&error))))
    }
}

async fn open(way: impl Future<Output = Result<Way, Failure>>) -> Result<Kept, Failure> {
    let (target, held) = way.await?;
    let connection = log_in(&target).await?;
    let version = connection.client.query_one("SELECT current_setting('server_version_num')::int", &[]).await.map_err(refused)?;
    let version: i32 = version.try_get(0).map_err(|error| not_understood(&error))?;
    let statement = connection.client.prepare(&statement(version)).await.map_err(refused)?;
    Ok(Kept { target, connection, statement, opened: Instant::now(), held })
}

fn refused(error: tokio_postgres::Error) -> Failure {
    let error = Error::from(error);
    let message = format!("the server did not answer toygres's probe: {error}");
    Failure::transient(FailureKind::ConnectionFailed, message)
}

fn not_understood(error: &dyn std::error::Error) -> Failure {
    let message = format!("the server answers toygres's probe with something else than PostgreSQL does: {error}");
    Failure::transient(FailureKind::ConnectionFailed, message)
}

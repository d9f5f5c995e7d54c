//! The connection that is kept into each instance, and what it last brought.
//!
//! While a server hangs, its probe is waited for and no second one is sent: a server that is stopped has one session of
//! toygres's, however long that lasts. Who waits may leave at any time; the probe stays where it is.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio_postgres::Statement;
use tokio_util::task::AbortOnDropHandle;
use toygres_models::{Failure, FailureKind, InstanceKey};

use super::sample::{Sample, Slow, slow_statement, statement};
use crate::platform::session::connection::{Connection, Error, Target};
use crate::platform::session::{Held, Way, log_in};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long one is waited for that was not there in time before.
const GLANCE: Duration = Duration::from_millis(50);
/// A session is ended after that long: a process of PostgreSQL's grows with what it has seen, and what is read of a connection has
/// a limit.
const SESSION_LIMIT: Duration = Duration::from_secs(30 * 60);
/// What takes longer to find out is asked for that often.
const SLOW_INTERVAL: Duration = Duration::from_secs(30);
/// A connection that nobody asks for is closed after that long.
const UNUSED_LIMIT: Duration = Duration::from_secs(120);

/// A probe's commit waits for this server's disk and no other; what fails is nothing for the log of the instance.
const SETTINGS: &str = "SET synchronous_commit = 'local'; SET statement_timeout = '5s'; SET log_min_error_statement = 'panic'; \
                        SET log_min_messages = 'fatal'";

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

/// How it is found out whether a server takes connections: sessions that are there outlive a postmaster that is stopped.
pub(crate) enum Knock {
    /// By a connection to it.
    AtTheServer,
    /// By asking the platform. Through a forwarded port a connection says nothing: whoever forwards it takes it first.
    Elsewhere(BoxFuture<'static, bool>),
}

/// An open session.
struct Kept {
    target: Target,
    connection: Connection,
    statement: Statement,
    slow_statement: Statement,
    opened: Instant,
    /// Held for the connection.
    _held: Option<Held>,
}

/// A probe that is on its way.
struct Pending {
    /// Ends with the session, where that is of use still, and what takes longer, where that was asked for.
    task: AbortOnDropHandle<(Option<Kept>, Option<Slow>)>,
    /// The answer, until it was taken.
    answer: Option<oneshot::Receiver<Result<Sample, Failure>>>,
    begun: Instant,
    begun_at: DateTime<Utc>,
    is_late: bool,
}

#[derive(Default)]
struct State {
    kept: Option<Kept>,
    pending: Option<Pending>,
    last: Option<(Instant, Arc<Probed>)>,
    slow: Slow,
    slow_asked: Option<Instant>,
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
        knock: Knock,
    ) -> Result<Arc<Probed>, Failure> {
        self.close_unused();
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default().clone();
        let mut state = slot.lock().await;
        state.used = Some(Instant::now());
        if let Some((at, last)) = &state.last
            && !max_age.is_zero()
            && at.elapsed() <= max_age
        {
            return Ok(last.clone());
        }
        state.wait_for_session(key).await?;
        if state.pending.is_none() {
            state.begin(way, knock, self.volume_file);
        }
        let Some(pending) = &mut state.pending else { return Err(cut_off(key)) };
        let Some(answer) = &mut pending.answer else { return Err(cut_off(key)) };
        let patience = if pending.is_late { GLANCE } else { ANSWER_LIMIT };
        let Ok(answer) = tokio::time::timeout(patience, answer).await else {
            pending.is_late = true;
            return Err(pending.no_answer(key));
        };
        pending.answer = None;
        let latency = pending.begun.elapsed();
        state.last = None;
        let mut sample = answer.unwrap_or_else(|_| Err(cut_off(key)))?;
        sample.slow = state.slow.clone();
        let probed = Arc::new(Probed { at: Utc::now(), latency, sample });
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
        slots.retain(|_, slot| slot.try_lock().map_or(true, |state| state.used.is_none_or(|used| used.elapsed() < UNUSED_LIMIT)));
    }
}

fn cut_off(key: &InstanceKey) -> Failure {
    Failure::transient(FailureKind::Internal, format!("the probe of {key} was cut off"))
}

impl Pending {
    fn no_answer(&self, key: &InstanceKey) -> Failure {
        let message = format!("the server of {key} has not answered since {}", self.begun_at.format("%F %T UTC"));
        Failure::transient(FailureKind::TimedOut, message)
    }
}

impl State {
    /// After an answer was taken, the session may be at what takes longer.
    async fn wait_for_session(&mut self, key: &InstanceKey) -> Result<(), Failure> {
        let Some(pending) = self.pending.as_mut().filter(|pending| pending.answer.is_none()) else { return Ok(()) };
        let Ok(ended) = tokio::time::timeout(ANSWER_LIMIT, &mut pending.task).await else {
            return Err(pending.no_answer(key));
        };
        self.pending = None;
        let (kept, slow) = ended.unwrap_or_default();
        self.kept = kept;
        if let Some(slow) = slow {
            self.slow = slow;
        }
        Ok(())
    }

    fn begin(
        &mut self,
        way: impl Future<Output = Result<Way, Failure>> + Send + 'static,
        knock: Knock,
        volume_file: &'static str,
    ) {
        let wants_slow = self.slow_asked.is_none_or(|asked| asked.elapsed() >= SLOW_INTERVAL);
        if wants_slow {
            self.slow_asked = Some(Instant::now());
        }
        let (answers, answer) = oneshot::channel();
        let kept = self.kept.take();
        let task = tokio::spawn(async move {
            let (kept, sample) = ask(kept, way, knock, volume_file).await;
            let is_answered = sample.is_ok();
            // Whoever asked may have left.
            let _ = answers.send(sample);
            match kept {
                Some(kept) if wants_slow && is_answered => {
                    let slow = kept.ask_slow().await;
                    (Some(kept), slow)
                }
                kept => (kept, None),
            }
        });
        self.pending = Some(Pending {
            task: AbortOnDropHandle::new(task),
            answer: Some(answer),
            begun: Instant::now(),
            begun_at: Utc::now(),
            is_late: false,
        });
    }
}

/// Asks over the session that is kept, or over a new one: that of a server which was restarted is dead.
async fn ask(
    kept: Option<Kept>,
    way: impl Future<Output = Result<Way, Failure>>,
    knock: Knock,
    volume_file: &str,
) -> (Option<Kept>, Result<Sample, Failure>) {
    if let Some(kept) = kept.filter(|kept| kept.opened.elapsed() < SESSION_LIMIT)
        && kept.is_answered(knock).await
        && let Ok(sample) = kept.ask(volume_file).await
    {
        return (Some(kept), sample);
    }
    let kept = match open(way).await {
        Ok(kept) => kept,
        Err(failure) => return (None, Err(failure)),
    };
    match kept.ask(volume_file).await {
        Ok(sample) => (Some(kept), sample),
        Err(failure) => (None, Err(failure)),
    }
}

impl Kept {
    /// Whether the server takes connections besides this one.
    async fn is_answered(&self, knock: Knock) -> bool {
        match knock {
            Knock::AtTheServer => self.target.knock().await.is_ok(),
            Knock::Elsewhere(is_answered) => is_answered.await,
        }
    }

    /// What it says; an error is one of the session, which is of no use any more.
    async fn ask(&self, volume_file: &str) -> Result<Result<Sample, Failure>, Failure> {
        let row = self.connection.client.query_one(&self.statement, &[&volume_file]).await.map_err(refused)?;
        let answer: Result<&str, _> = row.try_get(0);
        let answer = answer.map_err(|error| not_understood(&error));
        Ok(answer.and_then(|answer| Sample::parse(answer).map_err(|error| not_understood(&error))))
    }

    /// What takes longer. Without it an instance is as well as with it.
    async fn ask_slow(&self) -> Option<Slow> {
        let row = self.connection.client.query_one(&self.slow_statement, &[]).await.ok()?;
        Slow::parse(row.try_get(0).ok()?).ok()
    }
}

async fn open(way: impl Future<Output = Result<Way, Failure>>) -> Result<Kept, Failure> {
    let (target, held) = way.await?;
    let connection = log_in(&target).await?;
    connection.client.batch_execute(SETTINGS).await.map_err(refused)?;
    let version = connection.client.query_one("SELECT current_setting('server_version_num')::int", &[]).await.map_err(refused)?;
    let version: i32 = version.try_get(0).map_err(|error| not_understood(&error))?;
    let statement = connection.client.prepare(&statement(version)).await.map_err(refused)?;
    let slow_statement = connection.client.prepare(&slow_statement(version)).await.map_err(refused)?;
    Ok(Kept { target, connection, statement, slow_statement, opened: Instant::now(), _held: held })
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

//! Reading a server's log from the API server, and going on with it from container to container and
//! from pod to pod.
//!
//! The kubelet puts a time before each line, from one clock for all containers of a pod. So within a pod
//! a position is a time, and the number of lines that bear it; reading goes on by asking for the log
//! since that second and passing over what was given already, in the container that ended and in the one
//! that runs. What a pod's replacement says is asked for from its beginning. What the kubelet itself has
//! thrown away (it keeps a pod's last two containers, and of each some megabytes) can't be told.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures::{AsyncBufRead, AsyncBufReadExt, Stream, StreamExt, stream};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::LogParams;
use kube::runtime::watcher::watch_object;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::time::timeout;
use toygres_models::{Failure, FailureKind, InstanceKey};

use super::readiness::container;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity::{MemberNames, is_of};
use crate::platform::logs::{LineBuffer, LogLine, LogRequest, LogStream, RawLine};

/// A connection that brings nothing for so long is made anew: nothing else tells a server that is silent
/// from a cable that is cut.
const SILENCE: Duration = Duration::from_secs(60);
/// Before the log of a container that seems to run is asked for again.
const PAUSE: Duration = Duration::from_secs(1);

/// What a [`LogLine::position`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Position {
    /// The pod's uid.
    pod: String,
    time: DateTime<Utc>,
    /// How many lines of that time were given.
    lines: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.pod, self.time.to_rfc3339_opts(SecondsFormat::Nanos, true), self.lines)
    }
}

impl FromStr for Position {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let read = || {
            let [pod, time, lines] = text.split('/').collect::<Vec<_>>().try_into().ok()?;
            let time = DateTime::parse_from_rfc3339(time).ok()?.to_utc();
            Some(Self { pod: pod.to_owned(), time, lines: lines.parse().ok()? })
        };
        read().ok_or_else(|| {
            let message = "after: that is no position in this instance's log; give one that came with a line";
            Failure::permanent(FailureKind::InvalidInput, message).with_field("after")
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing of it runs yet, or not again yet.
    Waiting,
    Running,
    Ended,
}

/// Which container the log is of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    pod: String,
    restarts: i32,
    state: State,
}

impl Place {
    fn of(pod: &Pod) -> Self {
        let status = container(pod);
        let state = status.and_then(|status| status.state.as_ref());
        let state = match state {
            Some(state) if state.running.is_some() => State::Running,
            Some(state) if state.terminated.is_some() => State::Ended,
            _ => State::Waiting,
        };
        let restarts = status.map_or(0, |status| status.restart_count);
        Self { pod: pod.metadata.uid.clone().unwrap_or_default(), restarts, state }
    }

    /// Whether there is the log of a container before the one that is simply called the pod's: while a
    /// container waits to be started again, that is the one that ended.
    fn has_previous(&self) -> bool {
        self.restarts > 0 && self.state != State::Waiting
    }
}

/// A container's log, as far as it is wanted.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    previous: bool,
    tail_lines: Option<usize>,
    follow: bool,
}

/// A log that is open.
struct Source {
    reader: Pin<Box<dyn AsyncBufRead + Send>>,
    lines: LineBuffer,
    follow: bool,
    /// Up to here its lines were given from an earlier one.
    given: Option<Position>,
    /// How many lines of just that time were seen.
    seen: usize,
}

impl Source {
    async fn next(&mut self) -> io::Result<Option<RawLine>> {
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(Some(line));
            }
            let read = timeout(SILENCE, self.reader.fill_buf()).await;
            let chunk = read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??.to_vec();
            if chunk.is_empty() {
                // Where it breaks off while it is written, the whole line comes the next time.
                return Ok(self.lines.rest().filter(|_| !self.follow));
            }
            self.reader.consume_unpin(chunk.len());
            self.lines.push(chunk);
        }
    }

    /// Whether a line of that time was given already.
    fn repeats(&mut self, time: DateTime<Utc>) -> bool {
        let Some(given) = &self.given else { return false };
        if time == given.time {
            self.seen += 1;
            return self.seen <= given.lines;
        }
        let repeats = time < given.time;
        if !repeats {
            self.given = None;
        }
        repeats
    }
}

enum Change {
    Pod(Option<Place>),
    Set(bool),
    Failed(watcher::Error),
}

/// Reads a log. See [`Platform::logs`](crate::platform::Platform::logs).
pub(in crate::platform::kubernetes) struct LogReader {
    cluster: Arc<Cluster>,
    key: InstanceKey,
    follow: bool,
    since: Option<DateTime<Utc>>,
    /// Whether what there is was asked for at all.
    silent: bool,
    last: Option<Position>,
    /// The container whose log is read, or was read last.
    place: Option<Place>,
    spans: VecDeque<Span>,
    source: Option<Source>,
    /// The cluster's words in place of a log.
    words: VecDeque<String>,
    changes: Option<Pin<Box<dyn Stream<Item = Change> + Send>>>,
    /// Whether the StatefulSet is there, as far as that is known.
    has_set: Option<bool>,
}

impl Cluster {
    /// The container as it is now.
    async fn place(&self, key: &InstanceKey) -> Result<Option<Place>, Failure> {
        let pods = self.client.api::<Pod>(key.namespace.as_str());
        let pod = MemberNames::first(key).pod;
        let pod = self.client.call(format!("read the Pod of {key}"), pods.get_opt(&pod)).await?;
        Ok(pod.filter(|pod| is_of(&pod.metadata, key)).map(|pod| Place::of(&pod)))
    }
}

impl LogReader {
    /// Finds what there is, and opens the first of it.
    pub(in crate::platform::kubernetes) async fn open(
        cluster: Arc<Cluster>,
        key: InstanceKey,
        request: LogRequest,
    ) -> Result<Self, Failure> {
        let LogRequest { tail_lines, since, after, follow } = request;
        let last: Option<Position> = after.as_deref().map(str::parse).transpose()?;
        let silent = tail_lines == Some(0) && last.is_none();
        let since = since.filter(|_| last.is_none());
        let mut reader = Self {
            cluster,
            key,
            follow,
            since,
            silent,
            last,
            place: None,
            spans: VecDeque::new(),
            source: None,
            words: VecDeque::new(),
            changes: None,
            has_set: None,
        };
        reader.place = reader.cluster.place(&reader.key).await?;
        if reader.place.is_none() && reader.cluster.observe(&reader.key).await?.is_none() {
            return Err(reader.cluster.not_found(&reader.key));
        }
        reader.plan_history(tail_lines).await?;
        while reader.source.is_none()
            && let Some(span) = reader.spans.pop_front()
        {
            reader.source = reader.open_span(span).await?;
        }
        if follow && reader.place.is_some() {
            reader.spans.push_back(Span { follow, ..Span::default() });
        }
        Ok(reader)
    }

    pub(in crate::platform::kubernetes) fn into_stream(self) -> LogStream {
        stream::try_unfold(self, |mut reader| async { Ok(reader.next().await?.map(|line| (line, reader))) }).boxed()
    }

    async fn next(&mut self) -> Result<Option<LogLine>, Failure> {
        loop {
            if let Some(text) = self.words.pop_front() {
                return Ok(Some(LogLine { text, position: None }));
            }
            if let Some(source) = &mut self.source {
                match source.next().await {
                    Ok(Some(line)) => {
                        if let Some(line) = self.take(line) {
                            return Ok(Some(line));
                        }
                        continue;
                    }
                    Err(error) if !self.follow => {
                        let message = format!("the log of {} broke off: {error}", self.key);
                        return Err(Failure::transient(FailureKind::Platform, message));
                    }
                    Ok(None) | Err(_) => self.source = None,
                }
            }
            if let Some(span) = self.spans.pop_front() {
                self.silent &= !span.follow;
                self.source = self.open_span(span).await?;
            } else if !self.follow || !self.wait().await? {
                return Ok(None);
            }
        }
    }

    /// What there is already.
    async fn plan_history(&mut self, tail_lines: Option<usize>) -> Result<(), Failure> {
        let Some(place) = self.place.clone() else { return Ok(()) };
        // Of nothing, the last line is read all the same, to know where to go on.
        let tail_lines = tail_lines.filter(|_| self.last.is_none()).map(|lines| lines.max(1));
        let mut previous = Span { previous: true, tail_lines, follow: false };
        let current = Span { previous: false, ..previous };
        if place.has_previous() {
            if let Some(lines) = tail_lines {
                previous.tail_lines = Some(lines - self.count(current, lines).await?);
            }
            if previous.tail_lines != Some(0) {
                self.spans.push_back(previous);
            }
        }
        self.spans.push_back(current);
        Ok(())
    }

    /// How many lines a container's log has, at most `limit`.
    async fn count(&mut self, span: Span, limit: usize) -> Result<usize, Failure> {
        let Some(mut source) = self.open_span(span).await? else { return Ok(0) };
        let mut count = 0;
        while count < limit && source.next().await.is_ok_and(|line| line.is_some()) {
            count += 1;
        }
        Ok(count)
    }

    /// `None` if there is nothing to be read.
    async fn open_span(&mut self, span: Span) -> Result<Option<Source>, Failure> {
        let client = &self.cluster.client;
        let given = self.last.clone().filter(|last| self.place.as_ref().is_some_and(|place| place.pod == last.pod));
        let since = given.as_ref().map(|given| given.time).or(self.since);
        let params = LogParams {
            follow: span.follow,
            previous: span.previous,
            tail_lines: span.tail_lines.map(|lines| i64::try_from(lines).unwrap_or(i64::MAX)),
            // In whole seconds, and the kubelet's own.
            since_time: since.and_then(|since| Timestamp::from_second(since.timestamp() - 1).ok()),
            timestamps: true,
            ..LogParams::default()
        };
        let (pods, pod) = (client.api::<Pod>(self.key.namespace.as_str()), MemberNames::first(&self.key).pod);
        let doing = format!("read the log of {}", self.key);
        let opened = if span.follow {
            client.count();
            // It is answered when there is a line, not before.
            match timeout(SILENCE, pods.log_stream(&pod, &params)).await {
                Ok(opened) => opened.map_err(|error| client.failure(&doing, &error)),
                Err(_) => return Ok(None),
            }
        } else {
            client.call(doing, pods.log_stream(&pod, &params)).await
        };
        match opened {
            Ok(reader) => {
                let lines = LineBuffer::default();
                Ok(Some(Source { reader: Box::pin(reader), lines, follow: span.follow, given, seen: 0 }))
            }
            // The pod is gone, or the kubelet has thrown that log away.
            Err(failure) if failure.kind == FailureKind::NotFound || (span.previous && !failure.retryable) => Ok(None),
            Err(failure) if failure.message.contains("waiting to start") => {
                if !span.follow && !self.follow {
                    let seen = self.cluster.observe(&self.key).await?;
                    self.words.extend(seen.and_then(|seen| seen.reason).map(|reason| reason.evidence).unwrap_or_default());
                }
                Ok(None)
            }
            Err(failure) if span.follow && failure.retryable => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Notes that a line was read; `None` if it isn't wanted.
    fn take(&mut self, line: RawLine) -> Option<LogLine> {
        let (source, place) = (self.source.as_mut()?, self.place.as_ref()?);
        let (time, text) = line.text.split_once(' ').unwrap_or((&line.text, ""));
        let Ok(time) = DateTime::parse_from_rfc3339(time).map(|time| time.to_utc()) else {
            tracing::debug!(instance.name = %self.key, words = line.text, "the kubelet says something in place of a log line");
            return None;
        };
        if self.since.is_some_and(|since| time < since) || source.repeats(time) {
            return None;
        }
        match &mut self.last {
            Some(last) if last.pod == place.pod && last.time == time => last.lines += 1,
            // Two streams of one container may overtake each other by an instant.
            Some(last) if last.pod == place.pod && last.time > time => {}
            last => *last = Some(Position { pod: place.pod.clone(), time, lines: 1 }),
        }
        let position = self.last.as_ref().map(ToString::to_string);
        (!self.silent).then(|| LogLine { text: text.to_owned(), position })
    }

    /// Waits for another container, or for the same one's log to go on, and plans to read it. `false` if
    /// there will be none: the instance is gone.
    async fn wait(&mut self) -> Result<bool, Failure> {
        let mut changes = match self.changes.take() {
            Some(changes) => changes,
            None => self.watch(),
        };
        // What was read to its end is followed no further, unless its container still runs.
        let mut pause = self.place.as_ref().is_some_and(|place| place.state == State::Running);
        let mut has_pod = self.place.is_some();
        let now = loop {
            let change = if pause { timeout(PAUSE, changes.next()).await } else { Ok(changes.next().await) };
            let is_due = match change {
                Err(_) => true,
                // Watches go on for ever.
                Ok(None) => return Ok(false),
                Ok(Some(Change::Failed(error))) => {
                    let failure = self.cluster.explain(&format!("watch the pod of {}", self.key), &error);
                    if !failure.retryable {
                        return Err(failure);
                    }
                    false
                }
                Ok(Some(Change::Set(there))) => {
                    self.has_set = Some(there);
                    false
                }
                Ok(Some(Change::Pod(place))) => {
                    has_pod = place.is_some();
                    has_pod && place != self.place
                }
            };
            if is_due {
                // What a watch tells may be long past, and the log that is opened now is of what is there now.
                match self.cluster.place(&self.key).await {
                    Ok(Some(now)) if pause || self.place.as_ref() != Some(&now) => break now,
                    Ok(place) => has_pod = place.is_some(),
                    Err(failure) if failure.retryable => pause = true,
                    Err(failure) => return Err(failure),
                }
            }
            pause &= has_pod;
            if !has_pod && self.has_set == Some(false) {
                return Ok(false);
            }
        };
        self.changes = Some(changes);
        let restarted = self.place.as_ref().is_none_or(|last| last.pod != now.pod || last.restarts != now.restarts);
        if restarted && now.has_previous() {
            self.spans.push_back(Span { previous: true, ..Span::default() });
        }
        self.spans.push_back(Span { follow: true, ..Span::default() });
        self.place = Some(now);
        Ok(true)
    }

    fn watch(&self) -> Pin<Box<dyn Stream<Item = Change> + Send>> {
        let (client, namespace, names) = (&self.cluster.client, self.key.namespace.as_str(), MemberNames::first(&self.key));
        // Each is a list and a watch.
        (0..4).for_each(|_| client.count());
        let (of_pod, of_set) = (self.key.clone(), self.key.clone());
        let pods = watch_object(client.api::<Pod>(namespace), &names.pod).default_backoff().map(move |pod| match pod {
            Ok(pod) => Change::Pod(pod.filter(|pod| is_of(&pod.metadata, &of_pod)).map(|pod| Place::of(&pod))),
            Err(error) => Change::Failed(error),
        });
        let sets = watch_object(client.api::<StatefulSet>(namespace), &names.set).default_backoff().map(move |set| match set {
            Ok(set) => Change::Set(set.is_some_and(|set| is_of(&set.metadata, &of_set))),
            Err(error) => Change::Failed(error),
        });
        Box::pin(stream::select(pods, sets))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source(given: Option<Position>) -> Source {
        let reader = Box::pin(futures::io::Cursor::new(Vec::new()));
        Source { reader, lines: LineBuffer::default(), follow: true, given, seen: 0 }
    }

    #[test]
    fn what_was_given_is_passed_over_to_the_very_line() {
        let time = |text: &str| DateTime::parse_from_rfc3339(text).unwrap().to_utc();
        let times = ["2026-01-01T00:00:01.1Z", "2026-01-01T00:00:01.100000002Z", "2026-01-01T00:00:01.100000002Z"];
        let later = ["2026-01-01T00:00:01.100000002Z", "2026-01-01T00:00:01.2Z", "2026-01-01T00:00:01.1Z"];
        let position: Position = "8f-1/2026-01-01T00:00:01.100000002Z/2".parse().unwrap();
        assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        let mut source = source(Some(position));
        assert!(times.iter().all(|text| source.repeats(time(text))));
        assert!(!later.iter().any(|text| source.repeats(time(text))));
    }

    #[test]
    fn another_platforms_position_is_refused() {
        for wrong in ["", "12-ab", "a/b/c", "a/2026-01-01T00:00:00Z/x", "a/2026-01-01T00:00:00Z"] {
            assert_eq!(wrong.parse::<Position>().unwrap_err().kind, FailureKind::InvalidInput, "{wrong:?}");
        }
    }

    #[test]
    fn a_container_that_waits_has_no_log_before_its_own() {
        let place = |state: serde_json::Value, restarts: i32| {
            let pod = json!({"metadata": {"uid": "u"}, "status": {"containerStatuses": [
                {"name": "postgres", "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state}]}});
            Place::of(&serde_json::from_value(pod).unwrap())
        };
        let (running, waiting) = (json!({"running": {}}), json!({"waiting": {"reason": "CrashLoopBackOff"}}));
        assert!(place(running.clone(), 1).has_previous() && place(json!({"terminated": {"exitCode": 1}}), 2).has_previous());
        assert!(!place(running.clone(), 0).has_previous() && !place(waiting, 3).has_previous());
        assert_ne!(place(running.clone(), 1), place(running, 2));
    }
}

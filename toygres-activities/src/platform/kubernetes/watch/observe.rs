//! Looking at an instance, once or by watch until it is ready or there is no point in waiting.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{ListParams, LogParams};
use kube::runtime::watcher;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use toygres_models::{Failure, FailureKind, InstanceKey};

use super::change::Change;
use super::readiness::{Objects, Readiness};
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity::{MemberNames, is_of, spec_of};
use crate::platform::{Observation, Phase};
use crate::server_log::{Line, headline, own_lines};

/// How long something may be in doubt: a slow controller may still mend it.
const DOUBT: Duration = Duration::from_secs(3);
/// How long after a log-in that failed the next one is tried.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(300);
/// Between two looks at what is in doubt while the API server is away.
const PAUSE: Duration = Duration::from_millis(500);
/// How much of a crashing server's log is told.
const LOG_LINES: i64 = 30;
/// However long its lines are.
const LOG_BYTES: i64 = 1 << 20;

impl Cluster {
    /// See [`Platform::observe`](crate::platform::Platform::observe).
    pub(in crate::platform::kubernetes) async fn observe(&self, key: &InstanceKey) -> Result<Option<Observation>, Failure> {
        let objects = self.fetch_objects(key).await?;
        let (image, derived) = (objects.image(), objects.derived());
        let observation =
            |phase, ready, reason| Ok(Some(Observation { image, derived, ..Observation::new(phase, ready, reason) }));
        match objects.readiness(key) {
            Readiness::Absent => Ok(None),
            Readiness::Ready => observation(Phase::Running, true, None),
            Readiness::Stopped => observation(Phase::Stopped, false, None),
            Readiness::Waiting(phase, failure) => observation(phase, false, Some(failure)),
            Readiness::Stalled(failure) | Readiness::Delayed(failure, _) => observation(Phase::Pending, false, Some(failure)),
            Readiness::Failed(failure) => observation(Phase::Failed, false, Some(failure)),
            Readiness::Crashing(failure) => observation(Phase::Failed, false, Some(self.with_log(key, failure).await)),
        }
    }

    /// See [`Platform::wait_ready`](crate::platform::Platform::wait_ready).
    pub(in crate::platform::kubernetes) async fn watch_until_ready(
        self: &Arc<Self>,
        key: &InstanceKey,
        timeout: Duration,
    ) -> Result<Observation, Failure> {
        let deadline = Instant::now() + timeout;
        // First, so that nothing is missed that comes after the look.
        let mut changes = self.subscribe(&key.namespace);
        let mut objects = self.fetch_objects(key).await?;
        let mut in_doubt_since = None;
        // Why nothing is known any more, while a watch is down.
        let mut blind: Option<Failure> = None;
        loop {
            let readiness = objects.readiness(key);
            if !matches!(readiness, Readiness::Stalled(_) | Readiness::Delayed(..)) {
                in_doubt_since = None;
            }
            let (phase, reason, wake) = match readiness {
                Readiness::Absent => return Err(self.not_found(key)),
                Readiness::Ready => match self.finish_start(key, &objects).await {
                    Ok(()) => {
                        return Ok(Observation { image: objects.image(), ..Observation::new(Phase::Running, true, None) });
                    }
                    // What the cluster says of a server is some seconds old.
                    Err(failure) if failure.retryable && failure.kind == FailureKind::ConnectionFailed => {
                        (Phase::Running, failure, deadline.min(Instant::now() + RECONNECT_INTERVAL))
                    }
                    Err(failure) => return Err(failure),
                },
                Readiness::Stopped => {
                    let message = format!("{key} is stopped; `toygres start {}` starts it", key.argument());
                    return Err(Failure::permanent(FailureKind::Conflict, message));
                }
                Readiness::Failed(failure) => return Err(failure),
                Readiness::Crashing(failure) => return Err(self.with_log(key, failure).await),
                Readiness::Waiting(phase, failure) => (phase, failure, deadline),
                Readiness::Stalled(failure) => {
                    let since = *in_doubt_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= DOUBT && blind.is_none() {
                        return Err(failure);
                    }
                    (Phase::Pending, failure, deadline.min((since + DOUBT).max(Instant::now() + PAUSE)))
                }
                Readiness::Delayed(failure, since) => {
                    // By the pod's own time, as this may be one wait of many; and for a moment by ours,
                    // as clocks differ.
                    let waited = u64::try_from(Utc::now().timestamp() - since).unwrap_or(0);
                    let here = *in_doubt_since.get_or_insert_with(Instant::now);
                    let left = Duration::from_secs(self.config.scheduling_timeout_seconds.saturating_sub(waited));
                    let left = left.max(DOUBT.saturating_sub(here.elapsed()));
                    if left.is_zero() && blind.is_none() {
                        return Err(failure);
                    }
                    (Phase::Pending, failure, deadline.min(Instant::now() + left.max(PAUSE)))
                }
            };
            if Instant::now() >= deadline {
                return blind.map_or(Ok(Observation::new(phase, false, Some(reason))), Err);
            }
            tokio::select! {
                () = tokio::time::sleep_until(wake) => {}
                change = changes.recv() => match change.as_deref() {
                    Ok(Change::Failed(error)) => {
                        let failure = self.explain(&format!("watch the pod of {key}"), error);
                        if !failure.retryable {
                            return Err(failure);
                        }
                        blind = Some(failure);
                    }
                    Ok(change) => {
                        blind = None;
                        self.take_in(key, &mut objects, change).await?;
                    }
                    // More came than it could take in.
                    Err(RecvError::Lagged(_)) => objects = self.fetch_objects(key).await?,
                    // The platform ends.
                    Err(RecvError::Closed) => return Ok(Observation::new(phase, false, Some(reason))),
                },
            }
        }
    }

    /// What is done once a server is ready: its image is noted, and its owner made where it isn't there.
    async fn finish_start(&self, key: &InstanceKey, objects: &Objects) -> Result<(), Failure> {
        let names = MemberNames::first(key);
        let claim = self.client.ours::<PersistentVolumeClaim>(key, &names.data).await?;
        let (Some(claim), Some(pod)) = (claim, &objects.pod) else { return Err(self.not_found(key)) };
        let spec = spec_of(key, &claim)?;
        tokio::try_join!(self.pin_image(key, pod, &claim), self.make_owner(key, &spec)).map(drop)
    }

    /// The instance as it is now.
    pub(in crate::platform::kubernetes) async fn fetch_objects(&self, key: &InstanceKey) -> Result<Objects, Failure> {
        let names = MemberNames::first(key);
        let namespace = key.namespace.as_str();
        let (sets, pods) = (self.client.api::<StatefulSet>(namespace), self.client.api::<Pod>(namespace));
        let (set, pod) = tokio::try_join!(
            self.client.call(format!("read the StatefulSet of {key}"), sets.get_opt(&names.set)),
            self.client.call(format!("read the Pod of {key}"), pods.get_opt(&names.pod)),
        )?;
        let mut objects = Objects { set: ours(set, key), pod: ours(pod, key), ..Objects::default() };
        if objects.set.is_none() && objects.pod.is_none() {
            // Mostly there is nothing at all, and nothing happened to it.
            let claims = self.client.api::<PersistentVolumeClaim>(namespace);
            let claim = self.client.call(format!("read the volume of {key}"), claims.get_opt(&names.data)).await?;
            objects.claim = ours(claim, key);
        } else if !objects.is_ready() {
            let (claims, events) = (self.client.api::<PersistentVolumeClaim>(namespace), self.client.api::<Event>(namespace));
            // Why there is no pod its StatefulSet says.
            let warner = if objects.pod.is_some() { &names.pod } else { &names.set };
            let warnings = ListParams::default().fields(&format!("type=Warning,involvedObject.name={warner}"));
            let about_claim = ListParams::default()
                .fields(&format!("involvedObject.kind=PersistentVolumeClaim,involvedObject.name={}", names.data));
            let doing = format!("read the events of {key}");
            let (claim, warnings, about_claim) = tokio::try_join!(
                self.client.call(format!("read the volume of {key}"), claims.get_opt(&names.data)),
                self.client.call(doing.as_str(), events.list(&warnings)),
                self.client.call(doing.as_str(), events.list(&about_claim)),
            )?;
            objects.claim = ours(claim, key);
            for event in warnings.items.iter().chain(&about_claim.items) {
                note(&mut objects, event);
            }
            objects.events.sort_by_key(when);
        }
        Ok(objects)
    }

    async fn take_in(&self, key: &InstanceKey, objects: &mut Objects, change: &Change) -> Result<(), Failure> {
        match change {
            Change::Pod(pod) | Change::Gone(pod) if !is_of(&pod.metadata, key) => {}
            // Of a server that was ready nothing else was looked at.
            Change::Pod(_) if objects.claim.is_none() => *objects = self.fetch_objects(key).await?,
            Change::Pod(pod) => objects.pod = Some((**pod).clone()),
            // What it went with is worth another look.
            Change::Gone(_) => *objects = self.fetch_objects(key).await?,
            Change::Event(event) => {
                let about = event.involved_object.kind.as_deref();
                if note(objects, event) && about != Some("Pod") {
                    let (claims, names) =
                        (self.client.api::<PersistentVolumeClaim>(key.namespace.as_str()), MemberNames::first(key));
                    let claim = self.client.call(format!("read the volume of {key}"), claims.get_opt(&names.data)).await?;
                    objects.claim = ours(claim, key);
                }
            }
            Change::Again | Change::Failed(_) => {}
        }
        Ok(())
    }

    pub(in crate::platform::kubernetes) fn explain(&self, doing: &str, error: &watcher::Error) -> Failure {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => self.client.failure(doing, error),
            watcher::Error::WatchError(status) => self.client.failure(doing, &kube::Error::Api(status.clone())),
            _ => Failure::transient(FailureKind::Platform, format!("could not {doing}: {error}")),
        }
    }

    /// A crashing server's own last words.
    async fn with_log(&self, key: &InstanceKey, mut failure: Failure) -> Failure {
        let mut lines = Vec::new();
        for previous in [true, false] {
            lines = match self.log(key, LOG_LINES, previous).await {
                Ok(log) => words_of_server(log),
                Err(unread) => vec![unread.message],
            };
            // Of a container that it has just removed the kubelet answers that it has no log.
            if lines.iter().any(|line| Line::parse(line).is_some()) {
                break;
            }
        }
        if let Some(headline) = headline(&lines) {
            failure = failure.with_headline(headline);
        }
        let evidence = std::mem::take(&mut failure.evidence).into_iter().chain(lines).collect();
        failure.with_evidence(evidence)
    }

    /// The end of a server's log; of the last one that ended, if `previous`.
    pub(in crate::platform::kubernetes) async fn log(
        &self,
        key: &InstanceKey,
        lines: i64,
        previous: bool,
    ) -> Result<Vec<String>, Failure> {
        let params = LogParams { tail_lines: Some(lines), limit_bytes: Some(LOG_BYTES), previous, ..LogParams::default() };
        let pods = self.client.api::<Pod>(key.namespace.as_str());
        let pod = MemberNames::first(key).pod;
        let text = self.client.call(format!("read the log of {key}"), pods.logs(&pod, &params)).await?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

/// What a log's end says of the server, and of the `initdb` before it. A log that was cut begins anywhere.
fn words_of_server(log: Vec<String>) -> Vec<String> {
    // `initdb` speaks first, of itself alone and without a prefix.
    let whole = log.len() < usize::try_from(LOG_LINES).unwrap_or(usize::MAX);
    let of_server = if whole { log.iter().position(|line| Line::parse(line).is_some()).unwrap_or(log.len()) } else { 0 };
    let (before, of_server) = log.split_at(of_server);
    before.iter().filter(|line| !line.trim().is_empty()).chain(own_lines(of_server)).cloned().collect()
}

fn ours<K: Resource>(object: Option<K>, key: &InstanceKey) -> Option<K> {
    object.filter(|object| is_of(object.meta(), key))
}

fn when(event: &Event) -> Option<String> {
    let last = event.last_timestamp.as_ref().map(|time| time.0.to_string());
    last.or_else(|| event.event_time.as_ref().map(|time| time.0.to_string()))
}

/// Keeps an event if it is about this instance, and not an earlier one of its name.
fn note(objects: &mut Objects, event: &Event) -> bool {
    let about = event.involved_object.uid.as_ref();
    let is = |meta: Option<&ObjectMeta>| about.is_some() && meta.and_then(|meta| meta.uid.as_ref()) == about;
    let ours = is(objects.set.as_ref().map(|set| &set.metadata))
        || is(objects.pod.as_ref().map(|pod| &pod.metadata))
        || is(objects.claim.as_ref().map(|claim| &claim.metadata));
    if ours {
        objects.events.retain(|known| known.metadata.uid != event.metadata.uid);
        objects.events.push(event.clone());
    }
    ours
}

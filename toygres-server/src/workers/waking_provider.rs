//! Fast workflows without hot polling.
//!
//! duroxide's dispatchers poll the database. A workflow of five activities makes about eleven queue
//! hops, so its latency is the poll interval times five, and a short interval costs a core when
//! nothing happens. This decorator looks again when this process has put something into a queue,
//! and otherwise once a second, by one dispatcher for all of its kind: enough to take over what
//! another server left behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use duroxide::providers::{
    DispatcherCapabilityFilter, ExecutionMetadata, OrchestrationItem, Provider, ProviderAdmin, ProviderError,
    ScheduledActivityIdentifier, SessionFetchConfig, TagFilter, WorkItem,
};
use duroxide::{Event, OrchestrationRegistry, SystemStats};
use tokio::sync::{Mutex, Notify};

use super::clock::Clock;
use super::places::Places;

/// How long a workflow that this server doesn't know is left to the others before the next look: a newer
/// server beside this one began it. The engine itself would give it up after ten looks.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(500);
/// How often an idle queue is looked at.
const IDLE_POLL: Duration = Duration::from_secs(1);

/// One queue's bell, and whose turn it is to look while nobody rings.
#[derive(Debug, Default)]
struct Queue {
    bell: Arc<Notify>,
    idle_poller: Mutex<()>,
}

impl Queue {
    fn ring(&self) {
        self.bell.notify_one();
    }

    /// Rings when an item that isn't visible yet becomes so.
    fn ring_after(&self, delay: Duration) {
        let bell = self.bell.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            bell.notify_one();
        });
    }

    /// Fetches until there is something or `patience` is over; nothing while the `clock` is wrong.
    async fn fetch<T, F: Future<Output = Result<Option<T>, ProviderError>>>(
        &self,
        clock: &Clock,
        patience: Duration,
        fetch: impl Fn() -> F,
    ) -> Result<Option<T>, ProviderError> {
        let deadline = Instant::now() + patience;
        loop {
            if clock.is_right()
                && let Some(item) = fetch().await?
            {
                // There may be more, and one ring may have stood for several items.
                self.ring();
                return Ok(Some(item));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            tokio::select! {
                () = self.bell.notified() => {}
                () = self.idle(left) => {}
            }
        }
    }

    /// Waits for the next idle poll, or for `left` where another dispatcher is the idle_poller.
    async fn idle(&self, left: Duration) {
        let poll = async {
            let _guard = self.idle_poller.lock().await;
            tokio::time::sleep(IDLE_POLL).await;
        };
        // Ending early is the purpose of the time-out, not an error.
        let _ = tokio::time::timeout(left, poll).await;
    }
}

/// A provider whose queues wake their dispatchers.
pub struct WakingProvider {
    inner: Arc<dyn Provider>,
    known: OrchestrationRegistry,
    clock: Arc<Clock>,
    places: Places,
    orchestrations: Queue,
    activities: Queue,
}

impl WakingProvider {
    /// Decorates `inner`. Of the workflows, those that are `known` are run, and nothing is while the `clock` is
    /// wrong, by which that would be leased.
    #[must_use]
    pub fn new(inner: Arc<dyn Provider>, known: OrchestrationRegistry, clock: Arc<Clock>, places: Places) -> Self {
        Self { inner, known, clock, places, orchestrations: Queue::default(), activities: Queue::default() }
    }

    /// Whether this server has a workflow in that version. One without a version is begun in the newest.
    fn knows(&self, item: &OrchestrationItem) -> bool {
        let versions = self.known.list_versions(&item.orchestration_name);
        item.version == "unknown" || versions.iter().any(|version| version.to_string() == item.version)
    }

    fn ring_for(&self, orchestrator_items: &[WorkItem]) {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        for item in orchestrator_items {
            match item {
                WorkItem::TimerFired { fire_at_ms, .. } if u128::from(*fire_at_ms) > now_ms => {
                    let delay = u64::try_from(u128::from(*fire_at_ms) - now_ms).unwrap_or(u64::MAX);
                    self.orchestrations.ring_after(Duration::from_millis(delay));
                }
                _ => self.orchestrations.ring(),
            }
        }
    }
}

#[async_trait]
impl Provider for WakingProvider {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn version(&self) -> &str {
        self.inner.version()
    }

    async fn fetch_orchestration_item(
        &self,
        lock_timeout: Duration,
        poll_timeout: Duration,
        filter: Option<&DispatcherCapabilityFilter>,
    ) -> Result<Option<(OrchestrationItem, String, u32)>, ProviderError> {
        let fetched = self
            .orchestrations
            .fetch(&self.clock, poll_timeout, || self.inner.fetch_orchestration_item(lock_timeout, Duration::ZERO, filter))
            .await?;
        match fetched {
            Some((item, lock_token, _)) if !self.knows(&item) => {
                let (name, version) = (&item.orchestration_name, &item.version);
                tracing::debug!(operation.id = item.instance, name, version, "left a workflow to servers that know it");
                self.inner.abandon_orchestration_item(&lock_token, Some(UNKNOWN_PAUSE), true).await?;
                Ok(None)
            }
            fetched => Ok(fetched),
        }
    }

    async fn fetch_work_item(
        &self,
        lock_timeout: Duration,
        poll_timeout: Duration,
        session: Option<&SessionFetchConfig>,
        _: &TagFilter,
    ) -> Result<Option<(WorkItem, String, u32)>, ProviderError> {
        // The engine's own filter is fixed at its start, when clusters aren't known yet.
        let fetch = || {
            let places = self.places.filter();
            async move { self.inner.fetch_work_item(lock_timeout, Duration::ZERO, session, &places).await }
        };
        self.activities.fetch(&self.clock, poll_timeout, fetch).await
    }

    async fn ack_orchestration_item(
        &self,
        lock_token: &str,
        execution_id: u64,
        history_delta: Vec<Event>,
        worker_items: Vec<WorkItem>,
        orchestrator_items: Vec<WorkItem>,
        metadata: ExecutionMetadata,
        cancelled_activities: Vec<ScheduledActivityIdentifier>,
    ) -> Result<(), ProviderError> {
        let (activities, orchestrations) = (worker_items.len(), orchestrator_items.clone());
        self.inner
            .ack_orchestration_item(
                lock_token,
                execution_id,
                history_delta,
                worker_items,
                orchestrator_items,
                metadata,
                cancelled_activities,
            )
            .await?;
        if activities > 0 {
            self.activities.ring();
        }
        self.ring_for(&orchestrations);
        // What came in for this instance while it was locked is visible from now on.
        self.orchestrations.ring();
        Ok(())
    }

    async fn ack_work_item(&self, token: &str, completion: Option<WorkItem>) -> Result<(), ProviderError> {
        let completes = completion.is_some();
        self.inner.ack_work_item(token, completion).await?;
        if completes {
            self.orchestrations.ring();
        }
        Ok(())
    }

    async fn enqueue_for_worker(&self, item: WorkItem) -> Result<(), ProviderError> {
        self.inner.enqueue_for_worker(item).await?;
        self.activities.ring();
        Ok(())
    }

    async fn enqueue_for_orchestrator(&self, item: WorkItem, delay: Option<Duration>) -> Result<(), ProviderError> {
        self.inner.enqueue_for_orchestrator(item, delay).await?;
        match delay {
            Some(delay) => self.orchestrations.ring_after(delay),
            None => self.orchestrations.ring(),
        }
        Ok(())
    }

    async fn abandon_orchestration_item(
        &self,
        lock_token: &str,
        delay: Option<Duration>,
        ignore_attempt: bool,
    ) -> Result<(), ProviderError> {
        self.inner.abandon_orchestration_item(lock_token, delay, ignore_attempt).await
    }

    async fn abandon_work_item(&self, token: &str, delay: Option<Duration>, ignore_attempt: bool) -> Result<(), ProviderError> {
        self.inner.abandon_work_item(token, delay, ignore_attempt).await
    }

    async fn renew_orchestration_item_lock(&self, token: &str, extend_for: Duration) -> Result<(), ProviderError> {
        self.inner.renew_orchestration_item_lock(token, extend_for).await
    }

    async fn renew_work_item_lock(&self, token: &str, extend_for: Duration) -> Result<(), ProviderError> {
        self.inner.renew_work_item_lock(token, extend_for).await
    }

    async fn renew_session_lock(
        &self,
        owner_ids: &[&str],
        extend_for: Duration,
        idle_timeout: Duration,
    ) -> Result<usize, ProviderError> {
        self.inner.renew_session_lock(owner_ids, extend_for, idle_timeout).await
    }

    async fn cleanup_orphaned_sessions(&self, idle_timeout: Duration) -> Result<usize, ProviderError> {
        self.inner.cleanup_orphaned_sessions(idle_timeout).await
    }

    async fn read(&self, instance: &str) -> Result<Vec<Event>, ProviderError> {
        self.inner.read(instance).await
    }

    async fn read_with_execution(&self, instance: &str, execution_id: u64) -> Result<Vec<Event>, ProviderError> {
        self.inner.read_with_execution(instance, execution_id).await
    }

    async fn append_with_execution(
        &self,
        instance: &str,
        execution_id: u64,
        new_events: Vec<Event>,
    ) -> Result<(), ProviderError> {
        self.inner.append_with_execution(instance, execution_id, new_events).await
    }

    fn as_management_capability(&self) -> Option<&dyn ProviderAdmin> {
        self.inner.as_management_capability()
    }

    async fn get_custom_status(
        &self,
        instance: &str,
        last_seen_version: u64,
    ) -> Result<Option<(Option<String>, u64)>, ProviderError> {
        self.inner.get_custom_status(instance, last_seen_version).await
    }

    async fn get_kv_value(&self, instance: &str, key: &str) -> Result<Option<String>, ProviderError> {
        self.inner.get_kv_value(instance, key).await
    }

    async fn get_kv_all_values(&self, instance: &str) -> Result<HashMap<String, String>, ProviderError> {
        self.inner.get_kv_all_values(instance).await
    }

    async fn get_instance_stats(&self, instance: &str) -> Result<Option<SystemStats>, ProviderError> {
        self.inner.get_instance_stats(instance).await
    }
}

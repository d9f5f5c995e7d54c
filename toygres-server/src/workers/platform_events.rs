//! What happens to instances by itself, taken down in the store.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use toygres_activities::platform::{Phase, Platform, PlatformEvent, health};
use toygres_models::store::{InstanceFilter, Leadership, StoreError};
use toygres_models::{Failure, InstanceKey, InstanceState, PlatformName, Store};
use tracing::{error, info, warn};

/// How long an event that can't be written down is kept for the next try.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often a server makes sure that it is still the one that writes down what a cluster does.
const LEADERSHIP_INTERVAL: Duration = Duration::from_secs(5);
/// Instances that are looked at at once.
const AT_ONCE: usize = 8;
/// How often the instances of a machine are looked at. A server that ends is an event; a server that hangs or is full says nothing.
/// (In a cluster the kubelet looks, and its findings are events.)
const OBSERVATION_INTERVAL: Duration = Duration::from_secs(15);

/// The tasks that write down what happens, one for each platform that is open.
#[derive(Clone)]
pub struct Recorders {
    store: Store,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Recorders {
    /// None yet.
    pub fn new(store: Store) -> Self {
        Self { store, tasks: Arc::default() }
    }

    /// Writes down every event of the platform, in order, until the platform is gone.
    pub fn begin(&self, platform: Arc<dyn Platform>, events: Receiver<PlatformEvent>) {
        let store = self.store.clone();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        match platform.name() {
            // What happens on a machine one of its own servers sees.
            PlatformName::Local => tasks.spawn(async move {
                // It is always known.
                let cluster_id = platform.cluster_id().await.unwrap_or_default();
                Recorder { store, platform, cluster_id, events }.record(None).await;
            }),
            // What happens in a cluster every server sees, and one writes down.
            PlatformName::Kubernetes => tasks.spawn(take_turns(store, platform)),
        };
    }

    /// Other work that ends with them.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(work);
    }

    /// Ends all of them.
    pub fn stop(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

/// Writes down what happens whenever no other server does.
async fn take_turns(store: Store, platform: Arc<dyn Platform>) {
    loop {
        let leading = async {
            let cluster_id = platform.cluster_id().await?;
            let role = format!("events of {} {}", platform.name(), cluster_id.as_deref().unwrap_or_default());
            Ok::<_, Failure>((store.lead(&role).await?, cluster_id))
        };
        match leading.await {
            Ok((leadership, cluster_id)) => {
                let events = platform.events();
                let mut recorder = Recorder { store: store.clone(), platform: platform.clone(), cluster_id, events };
                if let Ended::PlatformGone = recorder.record(Some(leadership)).await {
                    return;
                }
                warn!(platform = %platform.name(), "the metadata store was away; whichever server is first writes down events now");
            }
            Err(error) => warn!(%error, "whose turn it is to write down events can't be found out; it is tried again"),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Why a recorder ended.
enum Ended {
    PlatformGone,
    LeadershipLost,
}

struct Recorder {
    store: Store,
    platform: Arc<dyn Platform>,
    cluster_id: Option<String>,
    events: Receiver<PlatformEvent>,
}

impl Recorder {
    async fn record(&mut self, mut leadership: Option<Leadership>) -> Ended {
        self.observe_all(Phase::ALL).await;
        let mut looks = tokio::time::interval(LEADERSHIP_INTERVAL);
        let mut observations = tokio::time::interval(OBSERVATION_INTERVAL);
        observations.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let is_local = self.platform.name() == PlatformName::Local;
        loop {
            let still_leading = async {
                looks.tick().await;
                match &mut leadership {
                    Some(leadership) => leadership.is_valid().await,
                    None => true,
                }
            };
            let event = tokio::select! {
                event = self.events.recv() => event,
                leading = still_leading => match leading {
                    true => continue,
                    false => return Ended::LeadershipLost,
                },
                _ = observations.tick(), if is_local => {
                    self.observe_all(&[Phase::Running]).await;
                    continue;
                }
            };
            match event {
                Ok(event) => self.write_down(&event).await,
                Err(RecvError::Lagged(missed)) => {
                    warn!(missed, "events came faster than they could be written down; looking at all instances instead");
                    self.observe_all(Phase::ALL).await;
                }
                Err(RecvError::Closed) => return Ended::PlatformGone,
            }
        }
    }

    async fn write_down(&self, event: &PlatformEvent) {
        info!(instance.name = %event.key, event.kind, message = event.message, "platform event");
        while let Err(error) = self.try_write_down(event).await {
            // The control database's own restart is such a time.
            warn!(%error, "an event could not be written down; it is tried again");
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn try_write_down(&self, event: &PlatformEvent) -> Result<(), StoreError> {
        let cause = format!("seen by the {} platform", self.platform.name());
        let cluster_id = self.cluster_id.as_deref();
        self.store.record_platform_event(&event.key, cluster_id, event.kind, &event.message, &cause, event.healthy).await
    }

    /// Brings the health of every running instance that is seen in one of these phases up to what is seen now.
    async fn observe_all(&self, phases: &[Phase]) {
        if let Err(error) = self.try_observe_all(phases).await {
            error!(%error, "the instances' health could not be brought up to date");
        }
    }

    async fn try_observe_all(&self, phases: &[Phase]) -> Result<(), StoreError> {
        let mut filter = InstanceFilter {
            platform: Some(self.platform.name()),
            state: Some(InstanceState::Running),
            ..InstanceFilter::default()
        };
        loop {
            let page = self.store.instances(&filter, 500).await?;
            let Some(last) = page.last() else { return Ok(()) };
            filter.after = InstanceKey::parse(&last.namespace, &last.name).ok();
            if filter.after.is_none() {
                return Ok(());
            }
            let mut looks = Vec::new();
            for instance in page.iter().filter(|instance| instance.cluster_id == self.cluster_id) {
                if let Ok(key) = InstanceKey::parse(&instance.namespace, &instance.name) {
                    looks.push(self.observe(key, instance.status.health_status.as_deref(), phases));
                }
            }
            // One that hangs holds up few others.
            stream::iter(looks).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        }
    }

    async fn observe(&self, key: InstanceKey, known: Option<&str>, phases: &[Phase]) -> Result<(), StoreError> {
        match self.platform.observe(&key).await {
            // Whatever else it is in is an event.
            Ok(Some(seen)) if !phases.contains(&seen.phase) => Ok(()),
            Ok(seen) => {
                let (healthy, reason) = health(seen);
                // An unhealthy one may be so for another reason by now.
                if healthy && known == Some("healthy") {
                    return Ok(());
                }
                self.store.record_health(&key, healthy, &reason).await
            }
            Err(error) => {
                warn!(%error, instance.name = %key, "the instance could not be looked at");
                Ok(())
            }
        }
    }
}

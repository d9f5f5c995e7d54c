//! What happens to instances by itself, taken down in the store.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use toygres_activities::platform::{Platform, PlatformEvent};
use toygres_models::store::{Leadership, StoreError};
use toygres_models::{Failure, PlatformName, Store};
use tracing::{info, warn};

/// How long an event that can't be written down is kept for the next try.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often a server makes sure that it is still the one that writes down what a cluster does.
const LEADERSHIP_INTERVAL: Duration = Duration::from_secs(5);
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
        let mut looks = tokio::time::interval(LEADERSHIP_INTERVAL);
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
            };
            match event {
                Ok(event) => self.write_down(&event).await,
                Err(RecvError::Lagged(missed)) => {
                    warn!(missed, "events came faster than they could be written down; the next sweep sees how instances are");
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
}

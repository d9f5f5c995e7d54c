//! What happens to instances by itself, taken down in the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use toygres_activities::platform::{Platform, PlatformEvent};
use toygres_models::store::StoreError;
use toygres_models::{InstanceState, Store};
use tracing::{error, info, warn};

/// How long an event that can't be written down is kept for the next try.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Writes down every event of the platform, in order, until the platform is gone.
pub async fn record_forever(store: Store, platform: Arc<dyn Platform>, mut events: Receiver<PlatformEvent>) {
    observe_all(&store, &*platform).await;
    loop {
        match events.recv().await {
            Ok(event) => {
                info!(instance.name = %event.key, event.kind, message = event.message, "platform event");
                let cause = format!("seen by the {} platform", platform.name());
                while let Err(error) =
                    store.record_platform_event(&event.key, event.kind, &event.message, &cause, event.healthy).await
                {
                    // The control database's own restart is such a time.
                    warn!(%error, "an event could not be written down; it is tried again");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
            Err(RecvError::Lagged(missed)) => {
                warn!(missed, "events came faster than they could be written down; looking at all instances instead");
                observe_all(&store, &*platform).await;
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Brings every running instance's health up to what is seen now: nobody watched meanwhile.
async fn observe_all(store: &Store, platform: &dyn Platform) {
    if let Err(error) = try_observe_all(store, platform).await {
        error!(%error, "the instances' health could not be brought up to date");
    }
}

async fn try_observe_all(store: &Store, platform: &dyn Platform) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let page = store.instances(None, after.as_ref(), 500).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = toygres_models::InstanceKey::parse(&last.namespace, &last.name).ok();
        if after.is_none() {
            return Ok(());
        }
        for instance in page.iter().filter(|instance| instance.state == InstanceState::Running) {
            let Ok(key) = toygres_models::InstanceKey::parse(&instance.namespace, &instance.name) else { continue };
            match platform.observe(&key).await {
                Ok(seen) => store.record_health(&key, seen.is_some_and(|seen| seen.ready)).await?,
                Err(error) => warn!(%error, instance.name = %key, "the instance could not be looked at"),
            }
        }
    }
}

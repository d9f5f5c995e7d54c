//! What one of the servers on a state directory does for all of them: it keeps the control database and
//! the instances running, keeps data directories ready, and writes down what happens. The others wait
//! for their turn, which comes as soon as that one has ended, however it did.

use std::sync::Arc;
use std::time::Duration;

use toygres_activities::Place;
use toygres_activities::platform::Platform;
use toygres_activities::platform::local::{LocalHost, LocalPlatform};
use toygres_activities::secrets::FileSecretStore;
use toygres_models::{Failure, Store};

use super::orphans;
use super::platform_events::Recorders;
use super::ports::StorePorts;
use super::state_files::ServerLock;
use crate::settings::Settings;

/// How long after a failure to take them up it is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// What is to be done for the machine.
#[derive(Clone)]
pub struct Duties {
    host: Arc<LocalHost>,
    platform: Arc<LocalPlatform>,
    place: Place,
    store: Store,
    recorders: Recorders,
    pool_size: usize,
    owns_database: bool,
}

impl Duties {
    /// The local platform, with nothing done for it yet.
    pub fn new(settings: &Settings, host: &Arc<LocalHost>, store: &Store, recorders: &Recorders) -> Self {
        let platform = LocalPlatform::beside_others(host.clone(), Arc::new(StorePorts(store.clone())));
        let secrets = Arc::new(FileSecretStore::new(settings.state_dir.join("secrets")));
        Self {
            place: Place { platform: platform.clone(), secrets },
            host: host.clone(),
            platform,
            store: store.clone(),
            recorders: recorders.clone(),
            pool_size: settings.pool_size,
            owns_database: settings.database_url.is_none(),
        }
    }

    /// The local platform, as it is served.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Does them from now on, the control database being there. `alone` tells that nobody else works on
    /// the state directory, and requests aren't served yet.
    ///
    /// # Errors
    /// If the state directory or the store fails; it may be tried again.
    pub async fn take_up(&self, alone: bool) -> Result<(), Failure> {
        let events = self.platform.events();
        self.platform.supervise().await?;
        self.store.adopt(&self.platform.list().await?, self.host.machine_id()).await?;
        if alone {
            orphans::forget(&self.place, &self.store, Duration::ZERO).await?;
        }
        self.host.warm_pool(self.pool_size);
        self.recorders.begin(self.platform.clone(), events);
        self.recorders.spawn(orphans::keep_forgetting(self.place.clone(), self.store.clone()));
        Ok(())
    }

    /// Does them when it is this server's turn.
    pub async fn in_turn(self, lock: Arc<ServerLock>) {
        if let Err(error) = lock.lead().await {
            tracing::error!(error = format!("{error:#}"), "this server can't take over from the one that leads");
            return;
        }
        tracing::info!("the server that kept the instances running has ended; this one does from now on");
        while let Err(failure) = self.take_over().await {
            tracing::error!(error = %failure, "could not take over; it is tried again");
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn take_over(&self) -> Result<(), Failure> {
        if self.owns_database {
            self.host.start_control().await?;
        }
        self.take_up(false).await
    }
}

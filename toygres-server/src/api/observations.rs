//! What many readers ask for, found out at most once a second.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use toygres_models::Store;
use toygres_models::store::{StoreError, Sweep};
use uuid::Uuid;

/// How long an observation is good for. What happens meanwhile the platform's events write down.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Observations that are remembered at once; each takes some hundred bytes.
const MOST: u64 = 20_000;

/// What was found out within the last second.
#[derive(Debug, Clone)]
pub struct Observations {
    recent: Cache<Uuid, bool>,
    sweeps: Cache<(), Arc<Vec<Sweep>>>,
}

impl Default for Observations {
    fn default() -> Self {
        Self {
            recent: Cache::builder().time_to_live(GOOD_FOR).max_capacity(MOST).build(),
            sweeps: Cache::builder().time_to_live(GOOD_FOR).max_capacity(1).build(),
        }
    }
}

impl Observations {
    /// When each shard was last looked at, as it was a second ago at most: a list needs no query more for that.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn sweeps(&self, store: &Store) -> Result<Arc<Vec<Sweep>>, Arc<StoreError>> {
        self.sweeps.try_get_with((), async { Ok(Arc::new(store.sweeps().await?)) }).await
    }

    /// What the observation finds, or found for another reader within a second.
    pub async fn share(&self, id: Uuid, observation: impl Future<Output = bool>) -> bool {
        self.recent.get_with(id, observation).await
    }
}

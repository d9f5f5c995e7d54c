//! Observes instances for those who ask about them: at most once a second each, however many ask and
//! however often, so that reading a record stays as cheap as that.

use std::time::Duration;

use moka::future::Cache;
use uuid::Uuid;

/// How long an observation is good for. What happens meanwhile the platform's events write down.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Observations that are remembered at once; each takes some hundred bytes.
const MOST: u64 = 20_000;

/// Whether an instance could be observed a moment ago.
#[derive(Debug, Clone)]
pub struct Observations {
    recent: Cache<Uuid, bool>,
}

impl Default for Observations {
    fn default() -> Self {
        Self { recent: Cache::builder().time_to_live(GOOD_FOR).max_capacity(MOST).build() }
    }
}

impl Observations {
    /// Whether the instance could be observed, now or a moment ago; and whether now.
    pub async fn share(&self, id: Uuid, observation: impl Future<Output = bool>) -> (bool, bool) {
        let entry = self.recent.entry(id).or_insert_with(observation).await;
        (*entry.value(), entry.is_fresh())
    }
}

//! Looks at instances for those who ask about them: at most once a second each, however many ask and
//! however often, so that reading a record stays as cheap as that.

use std::time::Duration;

use moka::future::Cache;
use uuid::Uuid;

/// How long a look is good for. What happens meanwhile the platform's events write down.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Looks that are remembered at once; each takes some hundred bytes.
const MOST: u64 = 20_000;

/// Whether an instance could be looked at a moment ago.
#[derive(Debug, Clone)]
pub struct Observations {
    looks: Cache<Uuid, bool>,
}

impl Default for Observations {
    fn default() -> Self {
        Self { looks: Cache::builder().time_to_live(GOOD_FOR).max_capacity(MOST).build() }
    }
}

impl Observations {
    /// Whether the instance could be looked at, by this look unless another was a moment ago; and whether by this one.
    pub async fn share(&self, id: Uuid, looking: impl Future<Output = bool>) -> (bool, bool) {
        let look = self.looks.entry(id).or_insert_with(looking).await;
        (*look.value(), look.is_fresh())
    }
}

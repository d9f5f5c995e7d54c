//! Where this server can work: the activities that it takes from the queue are those of these places.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use duroxide::providers::TagFilter;

/// The places that are served: the id of this machine, the names of platforms, and the ids of clusters as they become
/// known. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Places(Arc<RwLock<HashSet<String>>>);

impl Places {
    /// Serves that place too. The engine takes five at most: a machine, two platforms and one cluster are four.
    pub fn add(&self, place: impl Into<String>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(place.into());
    }

    /// Lets activities of these places through.
    #[must_use]
    pub fn filter(&self) -> TagFilter {
        TagFilter::DefaultAnd(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

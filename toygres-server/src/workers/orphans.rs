//! Passwords of creations that were cut off before they were written down: kept for nobody.

use std::time::Duration;

use toygres_activities::Place;
use toygres_activities::secrets::Kept;
use toygres_models::store::StoreError;
use toygres_models::{Failure, Store};

/// A creation writes its password down and itself moments later.
const LONG_PAST: Duration = Duration::from_secs(10 * 60);
const PERIOD: Duration = Duration::from_secs(60 * 60);

/// Forgets the passwords that were kept `kept_for` ago or longer, and that neither an instance on
/// record nor anything on the platform belongs to.
pub async fn forget(place: &Place, store: &Store, kept_for: Duration) -> Result<(), Failure> {
    for Kept { key, instance_id } in place.secrets.list(kept_for).await? {
        let on_record = match store.instance(&key).await {
            Ok(instance) => Some(instance.id),
            Err(StoreError::InstanceNotFound(_)) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(id) = instance_id {
            if on_record != Some(id) {
                place.secrets.discard(&key, id).await?;
            }
            continue;
        }
        if on_record.is_some() {
            continue;
        }
        // Another toygres's, or made without a server.
        if place.platform.observe(&key).await?.is_some() {
            continue;
        }
        tracing::info!(instance.name = %key, "forgetting the password of an instance that never came to be");
        place.secrets.remove(&key).await?;
    }
    Ok(())
}

/// Does so now and then, where others may be creating instances at the same time.
pub async fn keep_forgetting(place: Place, store: Store) {
    loop {
        if let Err(failure) = forget(&place, &store, LONG_PAST).await {
            tracing::warn!(error = %failure, "could not look for passwords that nobody needs; the next look is in an hour");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

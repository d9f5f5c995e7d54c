//! Whether instances' owners log in with the passwords that are kept for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use toygres_models::{Failure, InstanceKey, RoleName};

use crate::platform::Platform;
use crate::secrets::SecretStore;

/// How long one that was right isn't asked about again: the secret store, and the instance, are spared.
const GOOD_FOR: Duration = Duration::from_secs(300);
/// How soon one is asked about again that was wrong, or of which nothing could be found out.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long it is waited for whether one that was wrong still is, so that it isn't told when it is mended already.
const PATIENCE: Duration = Duration::from_secs(2);
/// One that is wrong has to be so twice: while a password is being changed, both sides differ for a moment.
const TOLD_FROM: u32 = 2;

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// How often in a row it was wrong.
    times_wrong: u32,
    /// When it is asked about again.
    next: Instant,
}

/// What was last seen of each instance's.
#[derive(Debug, Default)]
pub(crate) struct PasswordChecks(Mutex<HashMap<InstanceKey, Seen>>);

impl PasswordChecks {
    /// Whether the owner's password is another than the one that is kept for it, as far as that is known. What isn't known of late
    /// is found out meanwhile; nobody waits for it unless it was wrong.
    pub(crate) async fn differs(
        self: &Arc<Self>,
        platform: &Arc<dyn Platform>,
        secrets: &Arc<dyn SecretStore>,
        key: &InstanceKey,
        owner: &RoleName,
    ) -> bool {
        let was_wrong = self.times_wrong(key) > 0;
        if self.begin(key) {
            let (checks, platform, secrets) = (self.clone(), platform.clone(), secrets.clone());
            let (key, owner) = (key.clone(), owner.clone());
            let looking = tokio::spawn(async move { checks.find_out(&*platform, &*secrets, key, &owner).await });
            if was_wrong {
                // What takes longer goes on, and is known at the next look.
                let _ = tokio::time::timeout(PATIENCE, looking).await;
            }
        }
        self.times_wrong(key) >= TOLD_FROM
    }

    fn times_wrong(&self, key: &InstanceKey) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).map_or(0, |seen| seen.times_wrong)
    }

    /// Whether it is to be found out now. Until that is done no second one is begun.
    fn begin(&self, key: &InstanceKey) -> bool {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = all.get(key).copied();
        if last.is_some_and(|last| last.next > now) {
            return false;
        }
        // Of those that nobody asks about any more.
        all.retain(|_, seen| seen.next + GOOD_FOR > now);
        all.insert(key.clone(), Seen { times_wrong: last.map_or(0, |last| last.times_wrong), next: now + GOOD_FOR });
        true
    }

    async fn find_out(&self, platform: &dyn Platform, secrets: &dyn SecretStore, key: InstanceKey, owner: &RoleName) {
        let found = async {
            let kept = secrets.get(&key).await?;
            platform.session(&key).await?.has_password(owner, &kept).await
        };
        let found: Result<bool, Failure> = found.await;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(seen) = all.get_mut(&key) else { return };
        let now = Instant::now();
        *seen = match found {
            Ok(true) => Seen { times_wrong: 0, next: now + GOOD_FOR },
            Ok(false) => Seen { times_wrong: seen.times_wrong.saturating_add(1), next: now + AGAIN_AFTER },
            // That nobody answers, or that the password is lost, is told elsewhere.
            Err(failure) => {
                tracing::debug!(instance.name = %key, error = %failure, "the owner's password could not be checked");
                Seen { times_wrong: seen.times_wrong, next: now + AGAIN_AFTER * 3 }
            }
        };
    }
}

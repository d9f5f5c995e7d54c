//! Who may come in: tokens, looked up in the store and kept in memory for a moment.
//!
//! A token is looked up once a second at most while it is in use. One that is revoked is forgotten
//! before the revocation is answered, by this server; the others hear of it through the database, and
//! while they can't, they keep nothing in memory. What a server believes is never older than
//! [`GOOD_FOR`], of an answer that goes on or is waited for [`STREAM_GOOD_FOR`], even if its connection to the database died
//! without a word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moka::future::Cache;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use toygres_models::store::{KeptToken, Presented};
use toygres_models::{BearerToken, Store};
use uuid::Uuid;

use super::caller::Caller;
use crate::api::http::problem::ApiError;

/// How long what was looked up is believed.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// How long an open stream's token is believed in while nothing is heard of it.
const STREAM_GOOD_FOR: Duration = Duration::from_secs(5);
/// Looks that are remembered at once; those at ids that don't exist are among them.
const MOST: u64 = 10_000;
/// Before listening is tried again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// The tokens that were made for people and programs.
#[derive(Debug)]
pub struct KnownTokens {
    store: Store,
    /// By age and id. A look that began before the age's end is never found after it, whenever it ends.
    looks: Cache<(u64, Uuid), Option<Arc<KeptToken>>>,
    /// Counts how often everything was forgotten.
    age: watch::Sender<u64>,
    /// Whether changes are heard of.
    listening: AtomicBool,
}

impl KnownTokens {
    /// None are known yet.
    #[must_use]
    pub fn new(store: Store) -> Self {
        let looks = Cache::builder().time_to_live(GOOD_FOR).max_capacity(MOST).build();
        Self { store, looks, age: watch::Sender::new(0), listening: AtomicBool::new(false) }
    }

    /// Whose token it is.
    pub(super) async fn caller(&self, sent: &BearerToken) -> Result<Caller, ApiError> {
        let (kept, is_fresh) = self.look_up(sent.id).await?;
        let kept = kept.as_deref();
        let token = match KeptToken::judge(kept, sent) {
            Presented::Good(token) => token,
            Presented::Unknown => return Err(Self::unknown()),
            Presented::Expired(at) => {
                let at = at.format("%F %T UTC");
                return Err(ApiError::unauthorized(format!("the token expired at {at}; ask an admin for a new one")));
            }
            Presented::Revoked => {
                return Err(ApiError::unauthorized("the token was revoked; ask an admin for a new one"));
            }
        };
        if is_fresh && !kept.is_some_and(KeptToken::use_is_noted) {
            self.store.note_token_use(token.id).await?;
        }
        Ok(Caller::of(token))
    }

    /// What is answered to a token that isn't known, whatever is wrong with it.
    pub(super) fn unknown() -> ApiError {
        ApiError::unauthorized(
            "the token is wrong; `toygres login` stores the right one, and on the server's machine one is in the file `token` of \
             the state directory",
        )
    }

    /// Returns when the token isn't good any more.
    pub(super) async fn until_refused(&self, sent: &BearerToken) {
        let mut age = self.age.subscribe();
        loop {
            age.mark_unchanged();
            // While nobody can tell, it goes on.
            let end = match self.look_up(sent.id).await {
                Ok((kept, _)) => match KeptToken::judge(kept.as_deref(), sent) {
                    Presented::Good(_) => kept.and_then(|kept| kept.ends_at()),
                    _ => return,
                },
                Err(_) => None,
            };
            let again = Instant::now() + STREAM_GOOD_FOR;
            tokio::select! {
                changed = age.changed() => if changed.is_err() { return },
                () = sleep_until(end.map_or(again, |end| again.min(end.into()))) => {}
            }
        }
    }

    /// Looks every token up anew from now on.
    pub fn forget(&self) {
        self.age.send_modify(|age| *age += 1);
    }

    /// Hears of tokens that change, until the task ends.
    pub async fn listen_forever(self: Arc<Self>) {
        loop {
            match self.store.listen_to_tokens().await {
                Ok(mut changes) => {
                    self.forget();
                    self.listening.store(true, Ordering::SeqCst);
                    while changes.next().await.is_some() {
                        self.forget();
                    }
                    self.listening.store(false, Ordering::SeqCst);
                    tracing::warn!(
                        "listening for changes of tokens was cut off; each request looks its token up until it is back"
                    );
                }
                Err(error) => tracing::warn!(%error, "changes of tokens can't be listened for; trying again"),
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    /// What is kept of the token of that id, and whether that was looked up just now.
    async fn look_up(&self, id: Uuid) -> Result<(Option<Arc<KeptToken>>, bool), ApiError> {
        let look = async { Ok::<_, ApiError>(self.store.kept_token(id).await?.map(Arc::new)) };
        if !self.listening.load(Ordering::SeqCst) {
            return Ok((look.await?, true));
        }
        let age = *self.age.borrow();
        match self.looks.entry((age, id)).or_try_insert_with(look).await {
            Ok(entry) => Ok((entry.value().clone(), entry.is_fresh())),
            Err(error) => Err(Arc::unwrap_or_clone(error)),
        }
    }
}

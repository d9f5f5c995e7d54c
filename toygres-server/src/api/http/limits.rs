//! What a request may cost: how many are served at once, how long each may take, how large it may be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use toygres_models::Role;

use super::problem::{ApiError, OUTCOME_UNKNOWN};
use super::waits::asks_to_wait;
use crate::api::auth::caller::Caller;

/// How long an answer may take, of a request that doesn't ask to wait. The program's own client gives up
/// later.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(25);
/// Requests at once that want their answer now. Each may need one of the metadata store's connections.
const MAX_REQUESTS: usize = 256;
/// Requests at once that wait for news or are streams of it: they cost memory only.
const MAX_WAITING: usize = 2048;
/// One token may have this part of the waits, and this of the other requests. An admin's of all namespaces may have all.
const WAITING_PART: usize = 8;
const REQUESTS_PART: usize = 4;
/// This part of each is for admins alone.
const RESERVE_PART: usize = 8;
/// A request's line and headers together.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Room for requests.
#[derive(Debug, Clone)]
pub struct Limits {
    requests: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    request_shares: Arc<Shares>,
    waiting_shares: Arc<Shares>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            request_shares: Arc::new(Shares::of(MAX_REQUESTS, REQUESTS_PART)),
            waiting_shares: Arc::new(Shares::of(MAX_WAITING, WAITING_PART)),
        }
    }
}

/// How much of the room tokens have that aren't an admin's.
#[derive(Debug)]
struct Shares {
    /// How much one of them may have.
    each: usize,
    /// How much all of them may have.
    all: usize,
    taken: Mutex<HashMap<String, usize>>,
}

impl Shares {
    fn of(room: usize, part: usize) -> Self {
        Self { each: room / part, all: room - room / RESERVE_PART, taken: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // Nothing panics while it is held, and what it guards is never half changed.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a request with that token; what is said if there is none.
    fn take(self: &Arc<Self>, token_id: &str) -> Result<Share, String> {
        let mut taken = self.lock();
        let own = taken.get(token_id).copied().unwrap_or_default();
        if own >= self.each {
            return Err(format!("the token is at work on {own} such requests, which is all that one may; nothing was changed"));
        }
        if taken.values().sum::<usize>() >= self.all {
            return Err("the server is at work on as many requests as it takes; nothing was changed. Try again".into());
        }
        taken.insert(token_id.to_owned(), own + 1);
        Ok(Share { shares: self.clone(), token_id: token_id.to_owned() })
    }
}

/// A request's place, until it is dropped.
#[derive(Debug)]
struct Share {
    shares: Arc<Shares>,
    token_id: String,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.lock();
        if let Some(own) = taken.get_mut(&self.token_id) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.token_id);
            }
        }
    }
}

/// How large a request's line and headers were.
#[derive(Debug, Clone, Copy)]
struct HeadBytes(usize);

/// Measures a request's line and headers, before any are added.
pub async fn measure_head(mut request: Request, next: Next) -> Response {
    // As they were sent: with `: ` and the line's end.
    let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let line = request.method().as_str().len() + request.uri().to_string().len() + "  HTTP/1.1\r\n".len();
    request.extensions_mut().insert(HeadBytes(line + headers + 2));
    next.run(request).await
}

/// Refuses a request whose line and headers were too large.
pub async fn bound_head(request: Request, next: Next) -> Response {
    match request.extensions().get::<HeadBytes>().is_some_and(|head| head.0 > MAX_HEAD_BYTES) {
        true => {
            ApiError::head_too_large("the request's line and headers are larger than 32 KiB; nothing was changed").into_response()
        }
        false => next.run(request).await,
    }
}

/// Serves a request if its token has a share of the room left.
pub async fn share(State(limits): State<Limits>, caller: Caller, request: Request, next: Next) -> Response {
    if caller.role == Role::Admin && caller.namespaces.is_none() {
        return next.run(request).await;
    }
    let shares = if asks_to_wait(&request) { limits.waiting_shares } else { limits.request_shares };
    match shares.take(&caller.token_id) {
        Ok(share) => hold_until_sent(next.run(request).await, share),
        Err(problem) => ApiError::too_many_requests(problem).into_response(),
    }
}

/// A stream, or a log of any length, has its place until it ends; any other answer gives it up now.
pub fn hold_until_sent<T: Send + 'static>(response: Response, place: T) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &place;
            frame
        }))
    })
}

/// Serves a request if there is room for it, and for as long as it may take.
pub async fn bound(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    let waits = asks_to_wait(&request);
    let slots = if waits { limits.waiting } else { limits.requests };
    let Ok(slot) = slots.try_acquire_owned() else {
        return ApiError::too_many_requests(
            "the server is at work on as many requests as it takes; nothing was changed. Try again",
        )
        .into_response();
    };
    let limit = if waits { Duration::MAX } else { ANSWER_LIMIT };
    let Ok(response) = timeout(limit, next.run(request)).await else {
        return ApiError::unavailable(format!("the answer took too long, and {OUTCOME_UNKNOWN}")).into_response();
    };
    hold_until_sent(response, slot)
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_token_has_its_share_and_all_leave_the_admins_theirs() {
        let shares = Arc::new(Shares::of(64, 8));
        let mut held: Vec<Share> = (0..8).map(|_| shares.take("a").unwrap()).collect();
        assert!(shares.take("a").unwrap_err().contains("8 such requests"));
        held.extend((0..48).map(|turn| shares.take(&format!("b{}", turn % 6)).unwrap()));
        assert!(shares.take("c").unwrap_err().contains("as many requests as it takes"));
        held.pop();
        shares.take("c").unwrap();
        held.clear();
        assert!(shares.lock().is_empty());
    }
}

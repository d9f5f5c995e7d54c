//! Has a request that only reads fail soon when the metadata store is gone. A request that changes something waits for it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use toygres_models::Store;
use toygres_models::store::StoreError;

use super::problem::ApiError;
use super::waits::asks_to_wait;

/// How soon it is asked whether the store is there, and how long an answer is good for.
const INTERVAL: Duration = Duration::from_millis(400);
/// How long the answer may take. On a busy machine a connection takes its time.
const LIMIT: Duration = Duration::from_millis(1100);

/// Asks whether the metadata store is there: once, however many requests wait.
pub struct StoreProbe {
    store: Store,
    last: Mutex<Option<Answer>>,
}

/// What came of the last question.
struct Answer {
    at: Instant,
    /// What is wrong, if anything is.
    words: Option<String>,
}

impl StoreProbe {
    /// Of that store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, last: Mutex::default() }
    }

    /// What is wrong, if it isn't there. One that answers, if only that it is busy, is.
    async fn ask(&self) -> Option<String> {
        let mut last = self.last.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.at.elapsed() < INTERVAL) {
            return last.words.clone();
        }
        let words = match timeout(LIMIT, self.store.reach()).await {
            Ok(Err(StoreError::Database(sqlx::Error::Io(error)))) => Some(format!("can't be reached ({})", error.kind())),
            Ok(_) => None,
            Err(_) => Some("does not answer".to_owned()),
        };
        *last = Some(Answer { at: Instant::now(), words: words.clone() });
        words
    }

    /// Returns when it wasn't there twice in a row.
    async fn until_gone(&self) -> ApiError {
        let mut failed_before = false;
        loop {
            sleep(INTERVAL).await;
            match self.ask().await {
                Some(words) if failed_before => {
                    return ApiError::unavailable(format!("the metadata store {words}; try again, and see the server's log"));
                }
                words => failed_before = words.is_some(),
            }
        }
    }
}

/// Answers a request that only looks as soon as the store is known to be gone.
pub async fn fail_fast(State(probe): State<Arc<StoreProbe>>, request: Request, next: Next) -> Response {
    if request.method() != Method::GET || asks_to_wait(&request) {
        return next.run(request).await;
    }
    tokio::select! {
        answer = next.run(request) => answer,
        gone = probe.until_gone() => gone.into_response(),
    }
}

//! Requests, counted: so that a server that is told to stop does so when none come any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::api::state::Shared;

/// The requests that have come so far.
#[derive(Debug, Default)]
pub struct Traffic {
    begun: AtomicU64,
}

impl Traffic {
    /// Returns when no request has come for `length`.
    pub async fn pause(&self, length: Duration) {
        loop {
            let before = self.begun.load(Ordering::Relaxed);
            tokio::time::sleep(length).await;
            if self.begun.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

/// Counts a request. Once the server stops, every answer is its connection's last.
pub async fn count(State(state): Shared, request: Request, next: Next) -> Response {
    // Who asks whether the server is ready isn't who has to be served.
    if request.uri().path().starts_with("/v1") {
        state.traffic.begun.fetch_add(1, Ordering::Relaxed);
    }
    let mut response = next.run(request).await;
    if state.stopping.is_cancelled() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

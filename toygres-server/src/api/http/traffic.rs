//! Requests, counted: so that a server that is told to stop does so when none come any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use tokio_util::sync::CancellationToken;

/// The requests that have come so far.
#[derive(Debug)]
pub struct Traffic {
    begun: AtomicU64,
    stopping: CancellationToken,
}

impl Traffic {
    /// None have come; the server stops when the token is cancelled.
    #[must_use]
    pub fn new(stopping: CancellationToken) -> Self {
        Self { begun: AtomicU64::new(0), stopping }
    }

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
pub async fn count(State(traffic): State<Arc<Traffic>>, request: Request, next: Next) -> Response {
    // Who asks whether the server is ready isn't who has to be served.
    if request.uri().path().starts_with("/v1") {
        traffic.begun.fetch_add(1, Ordering::Relaxed);
    }
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    // A stranger's may be any word, and each is counted for ever.
    let known = [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::HEAD, Method::OPTIONS];
    let method = known.iter().find(|known| **known == *request.method()).map_or("other", Method::as_str).to_owned();
    let mut response = next.run(request).await;
    let code = response.status().as_str().to_owned();
    metrics::counter!("toygres_http_requests_total", "route" => route.clone(), "method" => method.clone(), "code" => code)
        .increment(1);
    metrics::histogram!("toygres_http_request_duration_seconds", "route" => route, "method" => method).record(begun.elapsed());
    if traffic.stopping.is_cancelled() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

//! What a request may cost: how many are served at once, how long each may take, how large it may be.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::problem::{ApiError, OUTCOME_UNKNOWN};
use super::request::wants_stream;

/// How long an answer may take, of a request that doesn't ask to wait. The program's own client gives up
/// later.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(25);
/// Requests at once that want their answer now. Each may need one of the metadata store's connections.
const MAX_REQUESTS: usize = 256;
/// Requests at once that wait for news or are streams of it: they cost memory only.
const MAX_WAITING: usize = 2048;
/// What can be waited for.
const CAN_WAIT: [&str; 3] = ["/v1/events", "/v1/instances/{name}/logs", "/v1/operations/{id}"];

/// Room for requests.
#[derive(Debug, Clone)]
pub struct Limits {
    requests: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: Arc::new(Semaphore::new(MAX_REQUESTS)), waiting: Arc::new(Semaphore::new(MAX_WAITING)) }
    }
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
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    // A stream, or a log of any length: it has its place until it ends.
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &slot;
            frame
        }))
    })
}

/// Whether it is answered when something happens, or for as long as things do. A change never waits, whatever it accepts,
/// nor does a look at anything else than these.
pub fn asks_to_wait(request: &Request) -> bool {
    request.extensions().get::<MatchedPath>().is_some_and(|route| waits(route.as_str(), request))
}

fn waits(route: &str, request: &Request) -> bool {
    let mut query = url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
    CAN_WAIT.contains(&route)
        && request.method() == Method::GET
        && (wants_stream(request.headers()) || query.any(|(name, value)| asks(&name, &value)))
}

fn asks(name: &str, value: &str) -> bool {
    match name {
        "follow" => value != "false",
        "wait" => value.trim_end_matches('s').bytes().any(|digit| digit != b'0'),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header::ACCEPT;

    use super::*;

    #[test]
    fn who_asks_to_wait_is_counted_apart() {
        let request = |uri: &str, accept: &str| {
            Request::builder().uri(uri).header(ACCEPT, "application/json").header(ACCEPT, accept).body(Body::empty()).unwrap()
        };
        let (events, operation, logs) = ("/v1/events", "/v1/operations/{id}", "/v1/instances/{name}/logs");
        assert!(waits(operation, &request("/operations/x?wait=20s", "*/*")));
        assert!(waits(logs, &request("/instances/x/logs?namespace=a&follow=true", "*/*")));
        assert!(waits(events, &request("/events", "text/event-stream")));
        assert!(!waits(events, &request("/events?kind=wait%3Dtrue", "application/json")));
        assert!(!waits("/v1/instances/{name}/why", &request("/instances/x/why?wait=20s", "text/event-stream")));
        for not in ["/x?follow=false", "/x?wait=0s", "/x?wait=00s", "/x?wait=0"] {
            assert!(!waits(operation, &request(not, "*/*")) && !waits(logs, &request(not, "*/*")), "{not}");
        }
        let mut change = request("/operations/x?wait=20s", "text/event-stream");
        *change.method_mut() = Method::POST;
        assert!(!waits(operation, &change));
    }
}

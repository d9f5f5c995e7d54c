//! Requests that are answered when something happens.

use axum::extract::{MatchedPath, Request};
use axum::http::Method;

use super::request::wants_stream;

/// What can be waited for.
const CAN_WAIT: [&str; 3] = ["/v1/events", "/v1/instances/{name}/logs", "/v1/operations/{id}"];

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
    use axum::body::Body;
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

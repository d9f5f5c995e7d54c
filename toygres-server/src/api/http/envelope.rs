//! What every answer has, from any handler: a request id, a problem document where it is an error, and
//! the headers that keep a browser from misreading it.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::request_id::RequestId;
use toygres_client::resources::PROBLEM_CONTENT_TYPE;
use tracing::Span;

use super::problem::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that a client may give its request.
const MAX_REQUEST_ID_LENGTH: usize = 128;
/// For the page that shows the API: nothing from elsewhere, no frame around it, no form to elsewhere.
/// Swagger's page sets styles in its elements, and has its small pictures in the style sheet.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// For everything else, which is no page.
const DATA_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

/// Removes a request's id unless it can stand in a log as it is; it gets one of the server's then.
pub async fn check_request_id(mut request: Request, next: Next) -> Response {
    let is_plain = |id: &HeaderValue| {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        (1..=MAX_REQUEST_ID_LENGTH).contains(&id.len()) && id.as_bytes().iter().all(plain)
    };
    let mut ids = request.headers().get_all(REQUEST_ID).iter();
    if !ids.next().is_some_and(is_plain) || ids.next().is_some() {
        request.headers_mut().remove(REQUEST_ID);
    }
    next.run(request).await
}

/// What the log's lines about a request begin with. Its query isn't in it: it may be anything.
pub fn span<B>(request: &axum::http::Request<B>) -> Span {
    let id = request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok()).unwrap_or_default();
    tracing::info_span!("request", request.id = id, http.method = %request.method(), http.path = request.uri().path())
}

/// Completes an answer.
pub async fn complete(request: Request, next: Next) -> Response {
    let is_page = request.uri().path().starts_with("/docs");
    let response = next.run(request).await;
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    let is_problem = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_CONTENT_TYPE);
    let mut response = match is_error && !is_problem {
        // Of the framework's own, such as a file of the page that isn't there.
        true => ApiError::of_status(response.status()).into_response(),
        false => response,
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let policy = if is_page { PAGE_POLICY } else { DATA_POLICY };
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    if !is_page {
        // Among them are passwords.
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
    response
}

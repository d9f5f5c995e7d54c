//! `Idempotency-Key`: a request that is sent again begins no second operation
//! (<https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header>).
//!
//! An operation keeps the key of its request, and a digest of it. The repeat is answered with that operation, also
//! after a restart and by another server. What begins no operation (a change on record alone, a quota) leads
//! to the same state when it is carried out again.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use toygres_client::resources::IDEMPOTENCY_KEY;
use toygres_models::store::IdempotencyKey;

use crate::api::auth::caller::Caller;
use crate::api::http::body::read_body;
use crate::api::http::problem::ApiError;
use crate::api::operations::accepted;
use crate::api::state::{AppState, Shared};

/// Says that an operation was begun by an earlier request.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// The longest key.
const MAX_KEY_LENGTH: usize = 255;

/// Carries out a request that has a key, or answers with the operation that an earlier one with it began.
pub async fn once(State(state): Shared, caller: Caller, request: Request, next: Next) -> Response {
    let changes = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
    match request.headers().get(IDEMPOTENCY_KEY) {
        Some(key) if changes => match once_by_key(&state, &caller, key.clone(), request, next).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        },
        _ => next.run(request).await,
    }
}

async fn once_by_key(
    state: &AppState,
    caller: &Caller,
    key: HeaderValue,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let key = key
        .to_str()
        .ok()
        .filter(|key| (1..=MAX_KEY_LENGTH).contains(&key.len()) && !key.contains([' ', '\t']))
        .ok_or_else(|| ApiError::invalid("Idempotency-Key: give 1 to 255 visible ASCII characters").field(IDEMPOTENCY_KEY))?;
    let key = format!("{}:{key}", caller.token_id);
    let (mut parts, body) = request.into_parts();
    let body = read_body(body).await?;
    // The token, which isn't in the database, comes first: what the body's password is can't be tried with the digest.
    let mut digest = Sha256::new();
    digest.update(parts.headers.get(header::AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes));
    digest.update([0]);
    for part in [parts.method.as_str(), parts.uri.path(), parts.uri.query().unwrap_or_default()] {
        digest.update(part);
        digest.update([0]);
    }
    digest.update(&body);
    let request_sha256: [u8; 32] = digest.finalize().into();
    if let Some((operation, digest)) = state.store.operation_by_idempotency_key(&key).await? {
        if digest != request_sha256 {
            return Err(ApiError::invalid(
                "Idempotency-Key: it was used for another request (method, path, query or body); nothing was changed. Use a new \
                 key for each request, and the same one only to repeat it",
            )
            .field(IDEMPOTENCY_KEY));
        }
        let mut response = accepted(operation);
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        return Ok(response);
    }
    parts.extensions.insert(IdempotencyKey { key, request_sha256 });
    Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
}

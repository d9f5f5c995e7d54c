//! What a request with an `Idempotency-Key` carries, and what its answer may.

use axum::body::Bytes;
use axum::response::Response;

/// A request's key, made unique among all callers' by the token's id.
#[derive(Debug, Clone)]
pub struct IdempotencyKey(pub String);

/// An answer that may not be kept as it is, since it holds a secret: what is kept in its place.
#[derive(Debug, Clone)]
pub struct KeepInstead(pub Bytes);

/// `body` as JSON, to be kept in place of an answer with a secret.
pub fn without_secret<T: serde::Serialize>(mut response: Response, body: &T) -> Response {
    let kept = serde_json::to_vec(body).unwrap_or_default();
    response.extensions_mut().insert(KeepInstead(kept.into()));
    response
}

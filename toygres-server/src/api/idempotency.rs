//! `Idempotency-Key`: a request that is sent again is carried out once and answered the same way,
//! also after a restart and by another server
//! (<https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header>).
//!
//! The key is reserved in the database before the request is carried out, and the answer is kept
//! with it. It is carried out to its end, also if its sender hangs up. If the server is killed in
//! between, the operation that it wrote down carries the key, so the repeat finds it; what has no
//! operation is carried out again, and leads to the same state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use toygres_client::resources::IDEMPOTENCY_KEY;
use toygres_models::store::{Hold, KeptAnswer, Reservation};
use tracing::Instrument;

use crate::api::auth::caller::Caller;
use crate::api::http::body::read_body;
use crate::api::http::idempotency_key::{IdempotencyKey, KeepInstead};
use crate::api::http::problem::ApiError;
use crate::api::instances;
use crate::api::state::{AppState, Shared};

/// Says that an answer was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Longer than any request may take; after that a killed server's request may be carried out again.
const HOLD: Duration = Duration::from_secs(45);
/// The longest key.
const MAX_KEY_LENGTH: usize = 255;
/// The headers that belong to an answer rather than to its transport.
const KEPT_HEADERS: [HeaderName; 4] = [header::CONTENT_TYPE, header::LOCATION, header::ETAG, header::RETRY_AFTER];

/// Carries out a request that has a key, or gives the answer that it had.
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
    state: &Arc<AppState>,
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
    let hold = match state.store.reserve_idempotency_key(&key, &digest.finalize(), HOLD).await? {
        Reservation::Ours(hold) => hold,
        Reservation::Answered(answer) => return Ok(replay(answer)),
        Reservation::OtherRequest => {
            return Err(ApiError::invalid(
                "Idempotency-Key: it was used for another request (method, path, query or body); nothing was changed. Use a new \
                 key for each request, and the same one only to repeat it",
            )
            .field(IDEMPOTENCY_KEY));
        }
        Reservation::AtWork => {
            return match state.store.operation_by_idempotency_key(&key).await? {
                Some(operation) => Ok(instances::accepted(operation)),
                None => Err(ApiError::in_progress("the first request with this Idempotency-Key is still being carried out")),
            };
        }
    };
    parts.extensions.insert(IdempotencyKey(key.clone()));
    // A killed server's request may have got as far as its operation.
    if let Some(operation) = state.store.operation_by_idempotency_key(&key).await? {
        return keep(state, &hold, instances::accepted(operation)).await;
    }
    let state = state.clone();
    let carried_out = async move { keep(&state, &hold, next.run(Request::from_parts(parts, Body::from(body))).await).await };
    tokio::spawn(carried_out.in_current_span()).await.map_err(|_| ApiError::internal())?
}

/// Keeps an answer for the request's repeats, unless it says that nothing was done and trying again
/// may help.
async fn keep(state: &AppState, hold: &Hold, response: Response) -> Result<Response, ApiError> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|_| ApiError::internal())?.to_bytes();
    let passing = parts.status.is_server_error()
        || matches!(parts.status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED);
    let kept = if passing {
        state.store.release_idempotency_key(hold).await
    } else {
        let headers: BTreeMap<_, _> = KEPT_HEADERS
            .iter()
            .filter_map(|name| Some((name.to_string(), parts.headers.get(name)?.to_str().ok()?.to_owned())))
            .collect();
        let body = parts.extensions.get::<KeepInstead>().map_or(&body, |instead| &instead.0).to_vec();
        state.store.keep_answer(hold, &KeptAnswer { status: parts.status.as_u16(), headers, body }).await
    };
    if let Err(error) = kept {
        // It was carried out; a repeat finds the operation, or the state that it led to.
        tracing::warn!(%error, "the answer to a request with an Idempotency-Key could not be kept");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn replay(answer: KeptAnswer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, answer.body).into_response();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) {
            headers.insert(name, value);
        }
    }
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

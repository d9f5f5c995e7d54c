//! A request's body: read within limits, and as JSON.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use toygres_client::manifest::{Fields, InstanceManifest, ManifestError};

use super::problem::ApiError;

/// Largest body: a create with a password of the greatest length fits many times.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// How long a body may take to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// An instance's document as a JSON body.
pub struct ManifestBody(pub InstanceManifest);

impl<S: Send + Sync> FromRequest<S> for ManifestBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Body(Fields(map)) = Body::from_request(request, state).await?;
        let refuse = |error: ManifestError| ApiError::invalid(error.to_string()).field(&error.field);
        InstanceManifest::from_map(map).map(Self).map_err(refuse)
    }
}

/// A JSON body. The error names the field and never repeats what stood there: it may be a password.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::unsupported_media_type(
                "the body has to be JSON: send the header Content-Type: application/json",
            )
            .field("content-type"));
        }
        let bytes = read_body(request.into_body()).await?;
        // Of an array serde would take the fields in their order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(ApiError::invalid("the body has to be a JSON object"));
        }
        let deserializer = &mut serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut *deserializer).map_err(|error| {
            let path = error.path().to_string();
            let inner = error.into_inner();
            let text = inner.to_string();
            let named = named_field(&text);
            let refused = ApiError::invalid(match inner.classify() {
                // Both texts hold names of fields, not their values.
                serde_json::error::Category::Data if named.is_some() => text,
                serde_json::error::Category::Data => format!("{path}: has the wrong type or is out of range"),
                _ => format!("the body is not JSON (line {}, column {})", inner.line(), inner.column()),
            });
            match named {
                Some(field) => refused.field(&field),
                None if path == "." => refused,
                None => refused.field(&path),
            }
        })?;
        deserializer.end().map_err(|_| ApiError::invalid("the body has more than one JSON value"))?;
        Ok(Self(value))
    }
}

/// The field that serde's "unknown field", "missing field" or "duplicate field" is about.
fn named_field(text: &str) -> Option<String> {
    let rest = ["unknown", "missing", "duplicate"].iter().find_map(|how| text.strip_prefix(how)?.strip_prefix(" field `"))?;
    Some(rest.split('`').next()?.to_owned())
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// A request's whole body.
///
/// # Errors
/// If it is larger or slower than a body may be.
pub async fn read_body(body: axum::body::Body) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::too_large("the body is larger than 64 KiB; nothing was changed");
    // One that says how long it is needn't be read for that.
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    match timeout(BODY_LIMIT, Limited::new(body, MAX_BODY_BYTES).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::invalid("the body could not be read; nothing was changed")),
        Err(_) => Err(ApiError::timed_out("the body took too long to arrive; nothing was changed")),
    }
}

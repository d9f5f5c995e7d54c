//! What requests bring: checked here, before a handler sees it.

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use toygres_models::{InstanceKey, Namespace};

use super::problem::ApiError;

/// A page's length unless another is asked for.
const DEFAULT_LIMIT: i64 = 100;
/// The longest page.
const MAX_LIMIT: i64 = 1000;

/// Query parameters, unknown ones refused by the type's own `deny_unknown_fields`.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(parameters) = Query::from_request_parts(parts, state)
            .await
            .map_err(|rejection: QueryRejection| ApiError::invalid(rejection.body_text()))?;
        Ok(Self(parameters))
    }
}

/// A path's one segment, as text.
pub struct Segment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(segment) = Path::from_request_parts(parts, state)
            .await
            .map_err(|rejection: PathRejection| ApiError::invalid(rejection.body_text()))?;
        Ok(Self(segment))
    }
}

/// A JSON body. The error names the field and never repeats what stood there: it may be a password.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = axum::body::Bytes::from_request(request, state).await.map_err(|rejection: BytesRejection| match rejection
            .status()
        {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large("the body is larger than 64 KiB"),
            _ => ApiError::invalid("the body could not be read"),
        })?;
        let deserializer = &mut serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut *deserializer).map_err(|error| {
            let path = error.path().to_string();
            let inner = error.into_inner();
            let text = inner.to_string();
            ApiError::invalid(match inner.classify() {
                // Both texts hold names of fields, not their values.
                serde_json::error::Category::Data if text.starts_with("missing field") || text.starts_with("unknown field") => {
                    text
                }
                serde_json::error::Category::Data => format!("{path}: has the wrong type or is out of range"),
                _ => format!("the body is not JSON (line {}, column {})", inner.line(), inner.column()),
            })
        })?;
        deserializer.end().map_err(|_| ApiError::invalid("the body has more than one JSON value"))?;
        Ok(Self(value))
    }
}

/// The instance that a path and its query name.
pub fn instance_key(name: &str, namespace: Option<&str>) -> Result<InstanceKey, ApiError> {
    let namespace = namespace.map(str::parse::<Namespace>).transpose()?.unwrap_or_default();
    Ok(InstanceKey { namespace, name: name.parse()? })
}

/// A page's length, within bounds.
pub fn page_limit(limit: Option<i64>) -> Result<i64, ApiError> {
    match limit.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        limit => Err(ApiError::invalid(format!("limit: {limit} is out of range; give 1 to {MAX_LIMIT}"))),
    }
}

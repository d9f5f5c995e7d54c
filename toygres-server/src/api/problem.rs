//! The one error that the API answers with: RFC 9457's problem document.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use toygres_models::store::StoreError;
use toygres_models::{Failure, FailureKind, Invalid};

use super::resources::Problem;

/// An error on its way out.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    detail: String,
    field: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into(), field: None }
    }

    /// The request can't be used.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
    }

    /// What the request is about isn't there.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// What is there stands in the way.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", detail)
    }

    /// No token, or a wrong one.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// The path is known, the method isn't.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path doesn't take that method")
    }

    /// The body is too large.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }

    /// Something that the server needs doesn't work now.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    }

    /// A defect.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server met a defect; its log says more. Nothing more was changed",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: self.kind.to_owned(),
            title: self.kind.replace('_', " "),
            status: self.status.as_u16(),
            detail: self.detail,
            field: self.field,
        };
        let mut response = (self.status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        let field = Some(invalid.field.to_owned());
        Self { field, ..Self::invalid(invalid.to_string()) }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::InstanceNotFound(_) => Self::not_found(format!("{error}; `toygres list` shows what there is")),
            StoreError::IllegalTransition(_) => Self::conflict(error.to_string()),
            StoreError::Refused(failure) => failure.into(),
            StoreError::Database(_) | StoreError::Migration(_) | StoreError::NewerSchema(_) => {
                // The database's words may say more of it than a client should learn.
                tracing::error!(%error, "the metadata store failed");
                Self::unavailable("the metadata store does not answer; nothing was changed. Try again, and see the server's log")
            }
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            FailureKind::InvalidInput => Self::invalid(failure.message),
            FailureKind::NotFound => Self::not_found(failure.message),
            FailureKind::Conflict | FailureKind::Busy | FailureKind::Superseded => Self::conflict(failure.message),
            FailureKind::Store => {
                tracing::error!(error = %failure, "the metadata store failed");
                Self::unavailable("the metadata store does not answer; nothing was changed. Try again, and see the server's log")
            }
            _ => {
                tracing::error!(error = %failure, "a request failed");
                Self::unavailable(failure.message)
            }
        }
    }
}

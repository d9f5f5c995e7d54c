//! The one error that the API answers with: RFC 9457's problem document.

use std::any::Any;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use toygres_client::resources::{PROBLEM_CONTENT_TYPE, PROBLEM_TYPE, Problem};
use toygres_models::store::StoreError;
use toygres_models::{Failure, FailureKind, InstanceState, Invalid};

/// Every problem that a route may answer with, for the API's description.
#[derive(utoipa::IntoResponses)]
#[response(
    status = "default",
    description = "What was wrong, what is unchanged and what to do",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "it stands for the answers in the API's description")]
pub struct Problems(#[to_schema] Problem);

/// What to say and do where a change may have been made or not.
pub const OUTCOME_UNKNOWN: &str = "it isn't known whether anything was changed. Look what became of it, or repeat the request \
    with the same Idempotency-Key";

/// An error on its way out.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    detail: String,
    field: Option<String>,
    retry_after_seconds: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into(), field: None, retry_after_seconds: None }
    }

    /// The same, about one field of the request.
    pub fn field(self, field: &str) -> Self {
        Self { field: Some(field.to_owned()), ..self }
    }

    fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after_seconds: Some(seconds), ..self }
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

    /// Something of an instance that is on record can't be had. That it isn't there is the instance's state, and not a 404.
    pub fn of_recorded(failure: Failure, state: InstanceState) -> Self {
        if failure.kind != FailureKind::NotFound {
            return failure.into();
        }
        let why = match state {
            InstanceState::Creating => "the instance is still being made; try again when that is done",
            InstanceState::Running => "it was lost, or is just being removed; `toygres why` says more",
            InstanceState::Stopped => "it was lost; `toygres start` makes it again where the data is intact",
            InstanceState::Failed => "the instance has failed; `toygres why` says more",
            InstanceState::Deleting | InstanceState::Deleted => "the instance is being deleted",
        };
        Self::conflict(format!("{}: {why}. Nothing was changed", failure.message))
    }

    /// What the request expects of the instance isn't so any more.
    pub fn precondition_failed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", detail)
    }

    /// The instance may not be deleted.
    pub fn protected(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "delete_protected", detail)
    }

    /// The operation has begun what can't be taken back.
    pub fn point_of_no_return(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "point_of_no_return", detail)
    }

    /// A namespace's quota is used up.
    pub fn quota_exceeded(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "quota_exceeded", detail)
    }

    /// Some of the events that a stream should go on with aren't kept any more.
    pub fn events_pruned(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "events_pruned", detail)
    }

    /// The token doesn't let its holder do that.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// More requests at once than the server takes.
    pub fn too_many_requests(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail).retry_after(1)
    }

    /// The request took longer than it may, to arrive or to be carried out.
    pub fn timed_out(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timed_out", detail).retry_after(1)
    }

    /// No token, or a wrong one.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// The path is known, the method isn't.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path doesn't take that method")
    }

    /// The body isn't of a kind that the server reads.
    pub fn unsupported_media_type(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    }

    /// Of an answer that says no more than its status.
    pub fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::not_found("there is nothing at this path"),
            StatusCode::METHOD_NOT_ALLOWED => Self::method_not_allowed(),
            _ if status.is_server_error() => Self::internal(),
            _ => Self { status, ..Self::invalid("the request can't be used; nothing was changed") },
        }
    }

    /// The body is too large.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }

    /// The request's line and headers are too large.
    pub fn head_too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", detail)
    }

    /// Something that the server needs doesn't work now.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).retry_after(2)
    }

    /// The answer in place of one whose making panicked, which is logged.
    pub fn panicked(panic: Box<dyn Any + Send>) -> Response {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(panic = text.unwrap_or("without words"), "a request met a defect: it panicked");
        Self::internal().into_response()
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
            kind: format!("{PROBLEM_TYPE}{}", self.kind),
            title: self.kind.replace('_', " "),
            status: self.status.as_u16(),
            detail: self.detail,
            field: self.field,
        };
        let mut response = (self.status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, seconds.into());
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
            StoreError::OperationNotFound(_) => Self::not_found(format!("{error}; `toygres operations` lists them")),
            StoreError::PointOfNoReturn(_) => Self::point_of_no_return(format!("{error}; nothing was changed")),
            StoreError::Cancelled(_) => Self::conflict(error.to_string()),
            StoreError::NamespaceNotFound(_) => {
                Self::not_found(format!("{error}: no instance is in it, and no quota is set; `toygres namespaces` lists them"))
            }
            StoreError::TokenNotFound(_) => Self::not_found(format!("{error}; `toygres token list` shows what there is")),
            StoreError::TokenExists(_) => {
                Self::conflict(format!("{error}; nothing was changed. Revoke it first, or choose another name")).field("name")
            }
            StoreError::OutlivesMaker(_) => {
                Self::forbidden(format!("{error}; nothing was changed. Give a smaller ttl_seconds")).field("ttl_seconds")
            }
            StoreError::IllegalTransition(_) => Self::conflict(error.to_string()),
            StoreError::GenerationMismatch { .. } | StoreError::RevisionMismatch { .. } => {
                Self::precondition_failed(format!("{error}; nothing was changed. Look at it again, then repeat the change"))
                    .field("if-match")
            }
            StoreError::NotNow(_) => Self::conflict(format!("{error}; nothing was changed")),
            StoreError::Protected(_) => Self::protected(format!(
                "{error}; nothing was changed. Take the protection back first (delete_protection: false), if you mean it"
            )),
            StoreError::QuotaExceeded(_) => Self::quota_exceeded(format!(
                "{error}; nothing was changed. Delete what isn't needed, or ask an admin for a larger quota"
            )),
            StoreError::EventsPruned { oldest, .. } => Self::events_pruned(format!(
                "{error}, so some would be missed. Begin anew, with after={} for all that are kept",
                oldest.saturating_sub(1)
            )),
            StoreError::NoSuchEvent { .. } => {
                Self::invalid(format!("{error}. It may come from another database; begin anew without it")).field("after")
            }
            StoreError::InDoubt(_) => {
                tracing::error!(%error, "the metadata store failed at a commit");
                Self::unavailable(format!("the metadata store's answer was lost, and {OUTCOME_UNKNOWN}"))
            }
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
        let field = failure.field;
        let error = match failure.kind {
            FailureKind::InvalidInput => Self::invalid(failure.message),
            FailureKind::NotFound => Self::not_found(failure.message),
            FailureKind::Conflict | FailureKind::Busy | FailureKind::Superseded | FailureKind::Cancelled => {
                Self::conflict(failure.message)
            }
            FailureKind::Store => {
                tracing::error!(error = failure.message, "the metadata store failed");
                Self::unavailable("the metadata store does not answer; nothing was changed. Try again, and see the server's log")
            }
            _ => {
                tracing::error!(error = failure.message, "a request failed");
                Self::unavailable(failure.message)
            }
        };
        Self { field, ..error }
    }
}

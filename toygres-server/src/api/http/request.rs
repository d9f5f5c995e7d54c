//! What requests bring: checked here, before a handler sees it.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use chrono::{DateTime, Datelike, Utc};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toygres_client::resources::LAST_EVENT_ID;
use toygres_models::store::Instance;
use toygres_models::{InstanceKey, Namespace};
use utoipa::IntoParams;

use super::problem::ApiError;

/// A page's length unless another is asked for.
const DEFAULT_LIMIT: i64 = 100;
/// The longest page.
const MAX_LIMIT: i64 = 1000;

/// The query of whatever is about one instance.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct InNamespace {
    /// The instance's namespace; `default` if left out.
    pub namespace: Option<String>,
}

/// The query of a list that is taken as it is.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageParameters {
    /// How many at most; 100 if left out.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<i64>,
    /// Where to go on: the last page's `next_cursor`.
    pub cursor: Option<String>,
}

impl PageParameters {
    /// The name that the page begins after, where the list is in order of names.
    pub fn after<T: std::str::FromStr>(&self) -> Result<Option<T>, ApiError> {
        let malformed = |_| ApiError::invalid("cursor: is not one that a list gave").field("cursor");
        self.cursor.as_deref().map(str::parse).transpose().map_err(malformed)
    }
}

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

/// A path's segments, as text.
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(segments) = Path::from_request_parts(parts, state)
            .await
            .map_err(|rejection: PathRejection| ApiError::invalid(rejection.body_text()))?;
        Ok(Self(segments))
    }
}

/// The generation that `If-Match` asks for: the ETag of an earlier answer; `*` asks for none.
pub struct IfMatch(pub Option<i64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else { return Ok(Self(None)) };
        let value = value.to_str().unwrap_or_default().trim();
        if value == "*" {
            return Ok(Self(None));
        }
        // Some clients lose the quotes; a number is no other ETag of ours.
        let unquoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
        let generation = decimal(unquoted);
        let refuse = || ApiError::invalid("If-Match: give one ETag as an earlier answer had it, such as \"3\"").field("if-match");
        generation.map(|generation| Self(Some(generation))).ok_or_else(refuse)
    }
}

/// What a request expects of an instance that may or may not be there: `If-Match` or `If-None-Match`.
pub enum Expected {
    /// Nothing.
    Anything,
    /// That there is one (`If-Match: *`).
    Present,
    /// That there is one of this generation (`If-Match` with an ETag).
    Generation(i64),
    /// That there is none (`If-None-Match: *`).
    Absent,
}

impl<S: Send + Sync> FromRequestParts<S> for Expected {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let matched = parts.headers.contains_key(header::IF_MATCH);
        match parts.headers.get(header::IF_NONE_MATCH) {
            None if !matched => Ok(Self::Anything),
            None => Ok(IfMatch::from_request_parts(parts, state).await?.0.map_or(Self::Present, Self::Generation)),
            Some(value) if value == "*" && !matched => Ok(Self::Absent),
            Some(_) => {
                let problem = "If-None-Match: only * is understood, and not together with If-Match";
                Err(ApiError::invalid(problem).field("if-none-match"))
            }
        }
    }
}

impl Expected {
    /// Fails unless the instance is as expected.
    pub fn check(&self, key: &InstanceKey, instance: Option<&Instance>) -> Result<(), ApiError> {
        let refuse = |field, problem: &str| {
            Err(ApiError::precondition_failed(format!("{key} {problem}; nothing was changed")).field(field))
        };
        match (self, instance) {
            (Self::Absent, Some(_)) => refuse("if-none-match", "is there"),
            (Self::Present | Self::Generation(_), None) => refuse("if-match", "isn't there"),
            (Self::Generation(generation), Some(instance)) if *generation != instance.generation => {
                let now = instance.generation;
                let problem = format!("was changed since generation {generation}, and is at {now} now: read it again");
                refuse("if-match", &problem)
            }
            _ => Ok(()),
        }
    }
}

/// An instance's ETag.
pub fn etag(instance: &Instance) -> (HeaderName, String) {
    numbered_etag(instance.generation)
}

/// The ETag of what has that generation or revision.
pub fn numbered_etag(number: i64) -> (HeaderName, String) {
    (header::ETAG, format!("\"{number}\""))
}

/// The instance that a path and its query name.
pub fn instance_key(name: &str, namespace: Option<&str>) -> Result<InstanceKey, ApiError> {
    let namespace = namespace.map(str::parse::<Namespace>).transpose()?.unwrap_or_default();
    Ok(InstanceKey { namespace, name: name.parse()? })
}

/// Whether server-sent events are asked for.
pub fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| kind.trim_start().starts_with("text/event-stream"))
}

/// The id of the last message of a stream that the client goes on with.
pub fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(id) = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) else { return Ok(None) };
    let id = id.to_str().ok().and_then(decimal);
    let refuse = || ApiError::invalid("Last-Event-ID: give the id of a message of this stream").field(LAST_EVENT_ID);
    id.map(Some).ok_or_else(refuse)
}

/// An id or a revision as the API writes them: 1 to 18 digits and nothing else. Rust's own reading of numbers would
/// take `+9` and `-0` as well.
pub fn decimal(text: &str) -> Option<i64> {
    let plain = text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// A time as RFC 3339 has it, whose years have four digits; the store's calendar ends a little later.
pub fn within_calendar(since: DateTime<Utc>) -> Result<DateTime<Utc>, ApiError> {
    let refuse = || ApiError::invalid("since: is out of range; give a time in the years 0 to 9999").field("since");
    (0..=9999).contains(&since.year()).then_some(since).ok_or_else(refuse)
}

/// A page's length, within bounds.
pub fn page_limit(limit: Option<i64>) -> Result<i64, ApiError> {
    match limit.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        limit => Err(ApiError::invalid(format!("limit: {limit} is out of range; give 1 to {MAX_LIMIT}"))),
    }
}

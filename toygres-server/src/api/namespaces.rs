//! `/v1/namespaces`: what each uses, and may use.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use toygres_client::resources::{Page, QuotaManifest};
use toygres_models::Namespace;
use toygres_models::store::{NamespaceRecord, Quota};

use crate::api::auth::caller::Caller;
use crate::api::http::body::Body;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{IfMatch, PageParameters, Parameters, Segment, page_limit, revision_etag};
use crate::api::state::Shared;

/// List namespaces
///
/// In order of their names: those that have instances, or a quota.
#[utoipa::path(get, path = "/namespaces", tag = "namespaces", params(PageParameters),
    responses((status = OK, body = Page<NamespaceRecord>), Problems))]
pub(super) async fn list(
    State(state): Shared,
    caller: Caller,
    Parameters(parameters): Parameters<PageParameters>,
) -> Result<Json<Page<NamespaceRecord>>, ApiError> {
    let limit = page_limit(parameters.limit)?;
    let among = caller.listed_namespaces(None)?;
    let items = state.store.namespaces(among.as_deref(), parameters.after()?.as_ref(), limit + 1).await?;
    Ok(Json(Page::cut(items, limit, |last| last.name.clone())))
}

/// One namespace
#[utoipa::path(get, path = "/namespaces/{name}", tag = "namespaces", params(("name" = String, Path)),
    responses((status = OK, body = NamespaceRecord, headers(("etag" = String))), Problems))]
pub(super) async fn get(State(state): Shared, caller: Caller, Segment(name): Segment) -> Result<impl IntoResponse, ApiError> {
    let name: Namespace = name.parse()?;
    caller.may_view(&name)?;
    let namespace = state.store.namespace(&name).await?;
    Ok(([revision_etag(namespace.revision)], Json(namespace)))
}

/// Set a namespace's quota
///
/// All of it: what is left out has no limit. What the namespace has already stays, even if that is
/// more; the next create is refused. Needs the role admin.
#[utoipa::path(put, path = "/namespaces/{name}", tag = "namespaces", request_body = QuotaManifest,
    params(("name" = String, Path), ("if-match" = Option<String>, Header, description = "The ETag of the quota that is to be changed")),
    responses((status = OK, body = NamespaceRecord, headers(("etag" = String))), Problems))]
pub(super) async fn set_quota(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    IfMatch(expected_revision): IfMatch,
    Body(body): Body<QuotaManifest>,
) -> Result<impl IntoResponse, ApiError> {
    let name: Namespace = name.parse()?;
    caller.may_administer(Some(&name))?;
    let QuotaManifest { max_instances, max_storage_gb } = body;
    let negative =
        |field| ApiError::invalid(format!("{field}: is negative; give 0 or more, or leave it out for no limit")).field(field);
    if max_instances.is_some_and(i32::is_negative) {
        return Err(negative("max_instances"));
    }
    if max_storage_gb.is_some_and(i64::is_negative) {
        return Err(negative("max_storage_gb"));
    }
    let quota = Quota { max_instances, max_storage_gb };
    let namespace = state.store.set_quota(&name, quota, expected_revision, &caller.requested()).await?;
    Ok(([revision_etag(namespace.revision)], Json(namespace)))
}

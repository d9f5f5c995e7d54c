//! `/v1/instances`.

pub(super) mod activity;
mod adopt;
mod apply;
mod comparison;
mod connection;
mod create;
mod drift;
mod explanation;
mod health;
mod logs;
mod manifest;
mod observed;
mod plan;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde::Deserialize;
use toygres_client::resources::{InstanceManifest, Page};
use toygres_models::store::{Instance, InstanceFilter, Operation, OperationRequested};
use toygres_models::{InstanceKey, InstanceState, LabelSelector, Namespace, OperationKind, PlatformName};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{IfMatch, InNamespace, Parameters, Segment, Segments, etag, instance_key, page_limit};
use crate::api::operations::{accepted, begin};
use crate::api::state::{AppState, Shared};
use observed::{mark_stale, observed};

/// What is about instances.
pub(super) fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(create::create, list))
        .routes(routes!(get, delete, apply::put))
        .routes(routes!(verb))
        .routes(routes!(adopt::list))
        .routes(routes!(adopt::adopt))
        .routes(routes!(connection::connection))
        .routes(routes!(connection::superuser))
        .routes(routes!(activity::activity))
        .routes(routes!(activity::end_session))
        .routes(routes!(drift::drift))
        .routes(routes!(explanation::why))
        .routes(routes!(health::health))
        .routes(routes!(logs::logs))
}

/// The schema of instances' documents, which needs no token.
pub(super) fn schema() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(manifest::instance_schema))
}

/// Which instances a list has.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParameters {
    /// Only in this namespace.
    namespace: Option<String>,
    /// Only on this platform.
    #[param(inline)]
    platform: Option<PlatformName>,
    /// Only in this state; deleted instances are in no list.
    #[param(inline)]
    state: Option<InstanceState>,
    /// Only with these labels: `team=a,env=prod,reviewed`; all have to hold.
    #[param(
        pattern = "^ *[a-zA-Z0-9]([-._/a-zA-Z0-9]{0,61}[a-zA-Z0-9])? *(==? *([a-zA-Z0-9]([-._a-zA-Z0-9]{0,61}[a-zA-Z0-9])?)? *)?(, *[a-zA-Z0-9]([-._/a-zA-Z0-9]{0,61}[a-zA-Z0-9])? *(==? *([a-zA-Z0-9]([-._a-zA-Z0-9]{0,61}[a-zA-Z0-9])?)? *)?)*$"
    )]
    label_selector: Option<String>,
    /// How many at most; 100 if left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Where to go on: the last page's `next_cursor`.
    #[param(pattern = "^[a-z]([-a-z0-9]{0,48}[a-z0-9])?/[a-z]([-a-z0-9]{0,48}[a-z0-9])?$")]
    cursor: Option<String>,
}

/// The instance that a document names: its own namespace and the query's may not differ.
pub(super) fn named(body: &InstanceManifest, in_query: Option<&str>) -> Result<InstanceKey, ApiError> {
    match (body.namespace.as_deref(), in_query) {
        (Some(own), Some(other)) if own != other => {
            Err(ApiError::invalid(format!("namespace: the document says {own:?} and the query {other:?}; give one of them"))
                .field("namespace"))
        }
        (own, other) => instance_key(&body.name, own.or(other)),
    }
}

/// Delete an instance and all its data
///
/// Repeating it while it is at work gives the same operation.
#[utoipa::path(delete, path = "/instances/{name}", tag = "instances", params(("name" = String, Path), InNamespace),
    responses((status = ACCEPTED, body = Operation, headers(("location" = String))), Problems))]
pub(super) async fn delete(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
    IfMatch(expected_generation): IfMatch,
) -> Result<Response, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    request_operation(&state, &caller, &key, OperationKind::DELETE, expected_generation).await
}

/// Do something with an instance that is no change of its spec
///
/// `restart` restarts its server, `rotate-password` gives its user a new password. Repeating it while it is at work gives the same operation.
#[utoipa::path(post, path = "/instances/{name}/{verb}", tag = "instances",
    params(("name" = String, Path), ("verb" = String, Path, description = "What is to be done", pattern = "^(restart|rotate-password)$"), InNamespace),
    responses((status = ACCEPTED, body = Operation, headers(("location" = String))), Problems))]
pub(super) async fn verb(
    State(state): Shared,
    caller: Caller,
    Segments((name, verb)): Segments<(String, String)>,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Response, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    let kind = OperationKind::ALL.iter().copied().find(|kind| kind.is_verb && kind.name == verb).ok_or_else(|| {
        let known: Vec<_> = OperationKind::ALL.iter().filter(|kind| kind.is_verb).map(|kind| kind.name).collect();
        ApiError::not_found(format!("verb: {verb:?} is unknown; known are {}", known.join(", ")))
    })?;
    request_operation(&state, &caller, &key, kind, None).await
}

async fn request_operation(
    state: &AppState,
    caller: &Caller,
    key: &InstanceKey,
    kind: OperationKind,
    expected_generation: Option<i64>,
) -> Result<Response, ApiError> {
    caller.may_edit(&key.namespace)?;
    let input = serde_json::json!({});
    match state.store.request_operation(key, kind, input, expected_generation, &caller.requested()).await? {
        OperationRequested::New(operation) => {
            begin(state, &operation).await;
            Ok(accepted(operation))
        }
        OperationRequested::AtWork(operation) => Ok(accepted(operation)),
    }
}

/// List instances
///
/// In order of namespace and name. Deleted ones are in no list.
#[utoipa::path(get, path = "/instances", tag = "instances", params(ListParameters),
    responses((status = OK, body = Page<Instance>), Problems))]
pub(super) async fn list(
    State(state): Shared,
    caller: Caller,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<Page<Instance>>, ApiError> {
    let limit = page_limit(parameters.limit)?;
    let namespace: Option<Namespace> = parameters.namespace.as_deref().map(str::parse).transpose()?;
    let labels: Option<LabelSelector> = parameters.label_selector.as_deref().map(str::parse).transpose()?;
    let malformed = || ApiError::invalid("cursor: is not one that a list gave").field("cursor");
    let after = match parameters.cursor.as_deref() {
        Some(cursor) => {
            let (namespace, name) = cursor.split_once('/').ok_or_else(malformed)?;
            Some(InstanceKey::parse(namespace, name).map_err(|_| malformed())?)
        }
        None => None,
    };
    let namespaces = caller.listed_namespaces(namespace.as_ref())?;
    let filter = InstanceFilter { namespaces, platform: parameters.platform, state: parameters.state, labels, after };
    let mut items = state.store.instances(&filter, limit + 1).await?;
    match state.observations.sweeps(&state.store).await {
        Ok(sweeps) => mark_stale(&mut items, &sweeps, Utc::now()),
        Err(error) => tracing::warn!(%error, "whether somebody looks at the instances can't be found out"),
    }
    Ok(Json(Page::cut(items, limit, |last| format!("{}/{}", last.namespace, last.name))))
}

/// One instance
///
/// Asked about one that runs, the server looks at it, and says what it sees as `health_status`.
#[utoipa::path(get, path = "/instances/{name}", tag = "instances", params(("name" = String, Path), InNamespace),
    responses((status = OK, body = Instance, headers(("etag" = String))), Problems))]
pub(super) async fn get(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<impl IntoResponse, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_view(&key.namespace)?;
    let instance = observed(&state, &key).await?;
    Ok(([etag(&instance)], Json(instance)))
}

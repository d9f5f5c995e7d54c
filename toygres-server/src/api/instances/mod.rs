//! `/v1/instances`: created, listed, looked at, deleted.

mod apply;
mod connection;
mod explanation;
mod logs;
mod manifest;
mod observed;
mod plan;
mod wanted;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use toygres_client::resources::{InstanceManifest, Page};
use toygres_models::store::{
    Created, DeleteRequested, Instance, InstanceFilter, InstanceRow, NewInstance, Operation, StoreError,
};
use toygres_models::{InstanceKey, InstanceState, LabelSelector, Namespace, Password, PlatformName};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::auth::caller::Caller;
use crate::api::http::body::Body;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{IfMatch, InNamespace, Parameters, Segment, etag, instance_key, page_limit};
use crate::api::state::{AppState, Shared};
use apply::{LOOKS, existing, find, keeps_changing};
use observed::observed;

pub use wanted::Wanted;

/// What is about instances.
pub(super) fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, delete, apply::put))
        .routes(routes!(connection::connection))
        .routes(routes!(explanation::why))
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

/// 202, and where to watch the operation.
pub(super) fn accepted(operation: Operation) -> Response {
    let location = format!("/v1/operations/{}", operation.id);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(operation)).into_response()
}

/// Create an instance
///
/// The same create again is the same instance: it answers 200 and the operation that made it. A
/// different one under a live name is a conflict.
#[utoipa::path(post, path = "/instances", tag = "instances", params(InNamespace), request_body = InstanceManifest,
    responses((status = OK, description = "It is there already", body = Operation),
        (status = ACCEPTED, description = "It is being made", body = Operation, headers(("location" = String))), Problems))]
pub(super) async fn create(
    State(state): Shared,
    caller: Caller,
    Parameters(parameters): Parameters<InNamespace>,
    Body(body): Body<InstanceManifest>,
) -> Result<Response, ApiError> {
    let key = named(&body, parameters.namespace.as_deref())?;
    caller.may_edit(&key.namespace)?;
    let wanted = Wanted::check(&body)?;
    // A loop, since another create may come between the look and the write.
    for _ in 0..LOOKS {
        // Looked up first: what is there needs no version to be had any more.
        if let Some(instance) = find(&state, &key).await? {
            return existing(&state, &key, &instance, &wanted).await;
        }
        let Some(new) = prepare(&state, &caller, key.clone(), &wanted).await? else { continue };
        return match make(&state, &new, &wanted).await? {
            Created::New(operation) => Ok(accepted(operation)),
            Created::Existing(instance, _) => existing(&state, &key, &instance, &wanted).await,
        };
    }
    Err(keeps_changing(&key))
}

/// An instance as it will be written down, checked by its platform: nothing is written of one that
/// can't be made. `None` if somebody else has begun to make it meanwhile.
pub(super) async fn prepare(
    state: &AppState,
    caller: &Caller,
    key: InstanceKey,
    wanted: &Wanted,
) -> Result<Option<NewInstance>, ApiError> {
    let platform = wanted.platform.unwrap_or_else(|| state.platforms.default_name());
    let place = state.platforms.get(platform).await?;
    place.platform.check(&key, &wanted.options)?;
    if place.platform.observe(&key).await?.is_some() {
        if find(state, &key).await?.is_some() {
            return Ok(None);
        }
        // Taken over, it would get a new password and certificate, and be deleted with this record.
        return Err(ApiError::conflict(format!(
            "{key} is on the platform {platform} already, and this server has no record of it: another toygres made it, or \
             the record was lost. It was left as it is; choose another name"
        )));
    }
    Ok(Some(NewInstance {
        postgres_version: place.platform.resolve_version(wanted.version).await?,
        storage_size: wanted.storage.unwrap_or_default(),
        platform,
        cluster_id: place.platform.cluster_id().await?,
        options: wanted.options.clone(),
        labels: wanted.labels.clone().unwrap_or_default(),
        delete_protection: wanted.delete_protection.unwrap_or_default(),
        requested: caller.requested(),
        key,
    }))
}

/// Writes it down with its password, and begins its creation, unless the name is taken.
pub(super) async fn make(state: &AppState, new: &NewInstance, wanted: &Wanted) -> Result<Created, ApiError> {
    // The semaphore is never closed. Dropped with its request, a wait gives its place up.
    let _turn = state.creating.acquire().await;
    let place = state.platforms.get(new.platform).await?;
    let password = wanted.password.clone().unwrap_or_else(Password::generate);
    let created = state.store.create_instance(new, async || place.secrets.put(&new.key, &password).await).await;
    let created = created.map_err(|error| match error {
        // On Kubernetes the namespace has to be there before, and to stay.
        StoreError::Refused(failure) if failure.field.as_deref() == Some("namespace") => {
            ApiError::conflict(format!("{}. Nothing was changed", failure.message)).field("namespace")
        }
        error => error.into(),
    })?;
    if let Created::New(operation) = &created {
        begin(state, operation).await;
    }
    Ok(created)
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
    IfMatch(expected_revision): IfMatch,
) -> Result<Response, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_edit(&key.namespace)?;
    match state.store.delete_instance(&key, expected_revision, &caller.requested()).await? {
        DeleteRequested::New(operation) => {
            begin(&state, &operation).await;
            Ok(accepted(operation))
        }
        DeleteRequested::AtWork(operation) => Ok(accepted(operation)),
    }
}

/// Starts the workflow. The operation is written down already: if this fails, the sweep starts it.
pub(super) async fn begin(state: &AppState, operation: &Operation) {
    let begun = async {
        let instance = state.store.instance_by_id(operation.instance_id).await?;
        state.workflows.begin(operation, &instance).await
    };
    if let Err(error) = begun.await {
        tracing::warn!(%error, operation.id = %operation.id, "the operation's workflow will be started by the sweep");
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
) -> Result<Json<Page<InstanceRow>>, ApiError> {
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
    let items = state.store.instance_rows(&filter, limit + 1).await?;
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

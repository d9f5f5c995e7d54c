//! `POST /v1/instances`: an instance is created.

use axum::extract::State;
use axum::response::Response;
use toygres_activities::kill_point::kill_point;
use toygres_client::resources::InstanceManifest;
use toygres_models::store::{Created, NewInstance, Operation, StoreError};
use toygres_models::{InstanceKey, InstanceSpec, Password, PostgresVersion};
use uuid::Uuid;

use super::comparison::{ATTEMPTS, existing, find, keeps_changing};
use super::named;
use super::plan::Request;
use crate::api::auth::caller::Caller;
use crate::api::http::body::ManifestBody;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters};
use crate::api::operations::{accepted, begin};
use crate::api::state::{AppState, Shared};

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
    ManifestBody(body): ManifestBody,
) -> Result<Response, ApiError> {
    let key = named(&body, parameters.namespace.as_deref())?;
    caller.may_edit(&key.namespace)?;
    let request = Request::check(&body)?;
    // A loop, since another create may come between the look and the write.
    for _ in 0..ATTEMPTS {
        // Looked up first: what is there needs no version that is still offered.
        if let Some(instance) = find(&state, &key).await? {
            return existing(&state, &key, &instance, &request).await;
        }
        let Some(new) = prepare(&state, &caller, key.clone(), &request).await? else { continue };
        return match create_instance(&state, &new, &request).await? {
            Created::New(operation) => Ok(accepted(operation)),
            Created::Existing(instance, _) => existing(&state, &key, &instance, &request).await,
        };
    }
    Err(keeps_changing(&key))
}

/// An instance as it will be written, checked by its platform: nothing is written of one that
/// can't be made. `None` if another request has begun to make it meanwhile.
pub(super) async fn prepare(
    state: &AppState,
    caller: &Caller,
    key: InstanceKey,
    request: &Request,
) -> Result<Option<NewInstance>, ApiError> {
    let platform = request.parsed("platform")?.unwrap_or_else(|| state.platforms.default_name());
    let place = state.platforms.get(platform).await?;
    let named = request.parsed("postgres_version")?;
    // Before the version is looked up, which may ask an archive.
    let provisional = InstanceSpec::new(platform, named.unwrap_or(toygres_models::PostgresVersion::OLDEST));
    place.platform.check(&key, &provisional.with(&request.fields)?)?;
    if place.platform.observe(&key).await?.is_some() {
        if find(state, &key).await?.is_some() {
            return Ok(None);
        }
        // Taken over by a create, it would get a new password.
        return Err(ApiError::conflict(format!(
            "{key} is on the platform {platform} already, and this server has no record of it. It was left as it is: \
             `toygres adopt {}` takes it in with its data, or choose another name",
            key.argument()
        )));
    }
    let version = place.platform.resolve_version(named).await?;
    Ok(Some(NewInstance {
        cluster_id: place.platform.cluster_id().await?,
        id: Uuid::now_v7(),
        spec: InstanceSpec::new(platform, version).with(&request.fields)?,
        requested: caller.requested(),
        key,
    }))
}

/// Keeps its password, writes it down and begins its creation, unless the name is taken.
pub(super) async fn create_instance(state: &AppState, new: &NewInstance, request: &Request) -> Result<Created, ApiError> {
    let NewInstance { id, key, .. } = new;
    let place = state.platforms.get(new.spec.platform).await?;
    let password = request.password.clone().unwrap_or_else(Password::generate);
    // Before the instance is on record, so that no instance ever lacks its password.
    place.secrets.put_new(key, *id, &password).await.map_err(|failure| match failure.field.as_deref() {
        // On Kubernetes the namespace has to be there before, and to stay.
        Some("namespace") => ApiError::conflict(format!("{}. Nothing was changed", failure.message)).field("namespace"),
        _ => failure.into(),
    })?;
    kill_point("create-password-kept");
    let created = state.store.create_instance(new).await;
    // Where it isn't known whether the instance is on record, the password stays: old ones are looked through every so often.
    if !matches!(created, Ok(Created::New(_)) | Err(StoreError::InDoubt(_)))
        && let Err(failure) = place.secrets.discard(key, *id).await
    {
        tracing::warn!(instance.name = %key, error = %failure, "a password that nobody needs is kept for up to an hour");
    }
    let created = created?;
    if let Created::New(operation) = &created {
        if request.parsed::<PostgresVersion>("postgres_version")?.is_none() {
            place.platform.keep_default_version(new.spec.postgres_version).await;
        }
        begin(state, operation).await;
    }
    Ok(created)
}

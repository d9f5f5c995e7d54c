//! `/v1/instances`.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use subtle::ConstantTimeEq;
use toygres_models::connection::{DATABASE, USER};
use toygres_models::store::{Created, DeleteRequested, Event, Instance, NewInstance, Operation};
use toygres_models::{InstanceKey, InstanceState, Password, PostgresVersion, StorageSize};

use super::problem::ApiError;
use super::request::{Body, Parameters, Segment, instance_key, page_limit};
use super::resources::{Connection, CreateInstance, Page};
use super::{AppState, Shared};

/// The lines that `logs` gives unless told otherwise, and at most.
const DEFAULT_TAIL_LINES: usize = 100;
const MAX_TAIL_LINES: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InNamespace {
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParameters {
    namespace: Option<String>,
    limit: Option<i64>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogParameters {
    namespace: Option<String>,
    tail_lines: Option<usize>,
}

fn accepted(operation: Operation) -> Response {
    let location = format!("/v1/operations/{}", operation.id);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(operation)).into_response()
}

/// What a create asks for, checked.
struct Wanted {
    version: Option<PostgresVersion>,
    storage: Option<StorageSize>,
    password: Option<SecretString>,
}

/// 202 and the operation; 200 and the earlier operation if the same instance is there already.
pub(super) async fn create(
    State(state): Shared,
    Parameters(parameters): Parameters<InNamespace>,
    Body(body): Body<CreateInstance>,
) -> Result<Response, ApiError> {
    let key = instance_key(&body.name, parameters.namespace.as_deref())?;
    let wanted = Wanted {
        version: body.postgres_version.as_deref().map(str::parse).transpose()?,
        storage: body.storage_size_gb.map(StorageSize::try_from).transpose()?,
        password: body
            .password
            .as_deref()
            .map(|password| Password::check_literal(password).map(|()| password.into()))
            .transpose()?,
    };
    // Looked up first: what is there needs no version to be had any more.
    if let Ok(instance) = state.store.instance(&key).await {
        return existing(&state, &key, &instance, &wanted).await;
    }
    let new = NewInstance {
        postgres_version: state.platform.resolve_version(wanted.version).await?,
        storage_size: wanted.storage.unwrap_or_default(),
        platform: state.platform.name().to_owned(),
        use_load_balancer: false,
        dns_label: None,
        cause: "requested through the API".to_owned(),
        key,
    };
    let password = wanted.password.clone().unwrap_or_else(Password::generate);
    let created = state.store.create_instance(&new, async || state.secrets.put(&new.key, &password).await).await?;
    match created {
        Created::New(operation) => {
            let instance = state.store.instance_by_id(operation.instance_id).await?;
            begin(&state, &operation, &instance).await;
            Ok(accepted(operation))
        }
        Created::Existing(instance, _) => existing(&state, &new.key, &instance, &wanted).await,
    }
}

/// The same create again is the same instance; anything else under a live name is a conflict.
async fn existing(state: &AppState, key: &InstanceKey, instance: &Instance, wanted: &Wanted) -> Result<Response, ApiError> {
    match instance.state {
        InstanceState::Creating | InstanceState::Running => {}
        InstanceState::Failed => {
            return Err(ApiError::conflict(format!(
                "{key} is there, and failed; `toygres get` says why, `toygres delete` clears it away. Nothing was changed"
            )));
        }
        InstanceState::Deleting | InstanceState::Deleted => {
            return Err(ApiError::conflict(format!(
                "{key} is being deleted; its name is free when that is done. Nothing was changed"
            )));
        }
    }
    let refuse = |what: &str, has: &str| {
        Err(ApiError::conflict(format!(
            "{key} is there already, with {what} {has}; choose another name, or delete it first. Nothing was changed"
        )))
    };
    let version: Option<PostgresVersion> = instance.postgres_version.parse().ok();
    if let (Some(wanted), Some(version)) = (wanted.version, version)
        && !wanted.accepts(version)
    {
        return refuse("PostgreSQL", &instance.postgres_version);
    }
    if wanted.storage.is_some_and(|storage| storage.gb() != instance.storage_size_gb) {
        return refuse("a storage_size_gb of", &instance.storage_size_gb.to_string());
    }
    if let Some(password) = &wanted.password {
        let kept = state.secrets.get(key).await?;
        let same: bool = kept.expose_secret().as_bytes().ct_eq(password.expose_secret().as_bytes()).into();
        if !same {
            return refuse("another", "password");
        }
    }
    let filter = toygres_models::store::OperationFilter {
        namespace: Some(instance.namespace.clone()),
        instance_name: Some(instance.name.clone()),
        before: None,
    };
    let operations = state.store.operations(&filter, 100).await?;
    let operation = operations.into_iter().find(|operation| operation.instance_id == instance.id);
    operation
        .map(|operation| Json(operation).into_response())
        .ok_or_else(|| ApiError::conflict(format!("{key} is there already")))
}

/// 202 and the operation; repeating it while it is at work gives the same one.
pub(super) async fn delete(
    State(state): Shared,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Response, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    match state.store.delete_instance(&key, "requested through the API").await? {
        DeleteRequested::New(operation) => {
            let instance = state.store.instance_by_id(operation.instance_id).await?;
            begin(&state, &operation, &instance).await;
            Ok(accepted(operation))
        }
        DeleteRequested::AtWork(operation) => Ok(accepted(operation)),
    }
}

/// Starts the workflow. The operation is written down already: if this fails, the sweep starts it.
async fn begin(state: &AppState, operation: &Operation, instance: &Instance) {
    if let Err(error) = state.workflows.begin(operation, instance).await {
        tracing::warn!(%error, operation.id = %operation.id, "the operation's workflow will be started by the sweep");
    }
}

pub(super) async fn list(
    State(state): Shared,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<Page<Instance>>, ApiError> {
    let limit = page_limit(parameters.limit)?;
    let namespace: Option<toygres_models::Namespace> = parameters.namespace.as_deref().map(str::parse).transpose()?;
    let malformed = || ApiError::invalid("cursor: is not one that a list gave");
    let after = match parameters.cursor.as_deref() {
        Some(cursor) => {
            let (namespace, name) = cursor.split_once('/').ok_or_else(malformed)?;
            Some(InstanceKey::parse(namespace, name).map_err(|_| malformed())?)
        }
        None => None,
    };
    let namespace = namespace.as_ref().map(toygres_models::Namespace::as_str);
    let mut items = state.store.instances(namespace, after.as_ref(), limit + 1).await?;
    let more = i64::try_from(items.len()).is_ok_and(|length| length > limit);
    if more {
        items.pop();
    }
    let next_cursor = items.last().filter(|_| more).map(|last| format!("{}/{}", last.namespace, last.name));
    Ok(Json(Page { items, next_cursor }))
}

pub(super) async fn get(
    State(state): Shared,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Json<Instance>, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    let instance = state.store.instance(&key).await?;
    if instance.state != InstanceState::Running {
        return Ok(Json(instance));
    }
    // Asked about one instance, the server looks, and says what it sees.
    let healthy = state.platform.observe(&key).await?.is_some_and(|seen| seen.ready);
    state.store.record_health(&key, healthy).await?;
    Ok(Json(state.store.instance(&key).await?))
}

pub(super) async fn connection(
    State(state): Shared,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Json<Connection>, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    let instance = state.store.instance(&key).await?;
    match instance.state {
        InstanceState::Running => {}
        InstanceState::Creating => {
            return Err(ApiError::conflict(format!("{key} is still being created; wait for it with `toygres operations`")));
        }
        other => return Err(ApiError::conflict(format!("{key} is {other} and can't be connected to; `toygres get` says more"))),
    }
    let endpoint = state.platform.endpoint(&key).await?;
    let password = state.secrets.get(&key).await?;
    Ok(Json(Connection {
        user: USER.into(),
        database: DATABASE.into(),
        sslmode: if endpoint.uri.ca_certificate_path.is_some() { "verify-full" } else { "require" }.into(),
        uri: endpoint.uri.with_secret(&password).expose_secret().to_owned(),
        password: password.expose_secret().to_owned(),
        host: endpoint.uri.host,
        port: endpoint.uri.port,
        ca_certificate_path: endpoint.uri.ca_certificate_path,
    }))
}

/// Also of an instance that is deleted already: of the last one that had the name.
pub(super) async fn events(
    State(state): Shared,
    Segment(name): Segment,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<Page<Event>>, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    let limit = page_limit(parameters.limit)?;
    let after: i64 = match parameters.cursor.as_deref() {
        Some(cursor) => cursor.parse().map_err(|_| ApiError::invalid("cursor: is not one that a list gave"))?,
        None => 0,
    };
    let instance = state.store.instance_or_last_deleted(&key).await?;
    let items = state.store.events(instance.id, after, limit).await?;
    let full = i64::try_from(items.len()).is_ok_and(|length| length == limit);
    let next_cursor = items.last().filter(|_| full).map(|last| last.id.to_string());
    Ok(Json(Page { items, next_cursor }))
}

/// The end of the server's log, as text.
pub(super) async fn logs(
    State(state): Shared,
    Segment(name): Segment,
    Parameters(parameters): Parameters<LogParameters>,
) -> Result<String, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    let tail_lines = parameters.tail_lines.unwrap_or(DEFAULT_TAIL_LINES);
    if tail_lines > MAX_TAIL_LINES {
        return Err(ApiError::invalid(format!("tail_lines: {tail_lines} is out of range; give 0 to {MAX_TAIL_LINES}")));
    }
    state.store.instance(&key).await?;
    let mut lines = state.platform.logs(&key, tail_lines).await?;
    if let Some(last) = lines.last_mut() {
        last.push('\n');
    }
    Ok(lines.join("\n"))
}

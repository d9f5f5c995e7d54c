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
use toygres_models::{
    Cpu, DnsLabel, InstanceKey, InstanceOptions, InstanceState, Invalid, Memory, Password, PlatformName, PostgresVersion,
    StorageClass, StorageSize,
};

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
    public: Option<bool>,
    platform: Option<PlatformName>,
    version: Option<PostgresVersion>,
    storage: Option<StorageSize>,
    options: InstanceOptions,
    password: Option<SecretString>,
}

impl Wanted {
    fn check(body: &CreateInstance) -> Result<Self, Invalid> {
        let options = InstanceOptions {
            use_load_balancer: body.use_load_balancer.unwrap_or_default(),
            dns_label: body.dns_label.as_deref().map(str::parse).transpose()?,
            cpu: body.cpu.as_deref().map(str::parse).transpose()?,
            memory: body.memory.as_deref().map(str::parse).transpose()?,
            storage_class: body.storage_class.as_deref().map(str::parse).transpose()?,
        };
        if options.dns_label.is_some() && !options.use_load_balancer {
            return Err(Invalid::new("dns_label", "needs use_load_balancer (--public): a private instance has no public name"));
        }
        let password = body.password.as_deref();
        Ok(Self {
            public: body.use_load_balancer,
            platform: body.platform.as_deref().map(str::parse).transpose()?,
            version: body.postgres_version.as_deref().map(str::parse).transpose()?,
            storage: body.storage_size_gb.map(StorageSize::try_from).transpose()?,
            options,
            password: password.map(|password| Password::check_literal(password).map(|()| password.into())).transpose()?,
        })
    }
}

/// 202 and the operation; 200 and the earlier operation if the same instance is there already.
pub(super) async fn create(
    State(state): Shared,
    Parameters(parameters): Parameters<InNamespace>,
    Body(body): Body<CreateInstance>,
) -> Result<Response, ApiError> {
    let key = instance_key(&body.name, parameters.namespace.as_deref())?;
    let wanted = Wanted::check(&body)?;
    // Looked up first: what is there needs no version to be had any more.
    if let Ok(instance) = state.store.instance(&key).await {
        return existing(&state, &key, &instance, &wanted).await;
    }
    let platform = wanted.platform.unwrap_or_else(|| state.platforms.default_name());
    let place = state.platforms.get(platform).await?;
    place.platform.check(&key, &wanted.options)?;
    if place.platform.observe(&key).await?.is_some() {
        // Taken over, it would get a new password and certificate, and be deleted with this record.
        return Err(ApiError::conflict(format!(
            "{key} is on the platform {platform} already, and this server has no record of it: another toygres made it, or \
             the record was lost. It was left as it is; choose another name"
        )));
    }
    let new = NewInstance {
        postgres_version: place.platform.resolve_version(wanted.version).await?,
        storage_size: wanted.storage.unwrap_or_default(),
        platform,
        cluster_id: place.platform.cluster_id().await?,
        options: wanted.options.clone(),
        cause: "requested through the API".to_owned(),
        key,
    };
    let password = wanted.password.clone().unwrap_or_else(Password::generate);
    let created = state.store.create_instance(&new, async || place.secrets.put(&new.key, &password).await).await?;
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
    if let Some((what, has)) = difference(instance, wanted) {
        return Err(refuse_other(key, &what, &has));
    }
    if let Some(password) = &wanted.password {
        let kept = state.platforms.of(instance).await?.secrets.get(key).await?;
        let same: bool = kept.expose_secret().as_bytes().ct_eq(password.expose_secret().as_bytes()).into();
        if !same {
            return Err(refuse_other(key, "another", "password"));
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

fn refuse_other(key: &InstanceKey, what: &str, has: &str) -> ApiError {
    ApiError::conflict(format!(
        "{key} is there already, with {what} {has}; choose another name, or delete it first. Nothing was changed"
    ))
}

/// The first thing in which the instance that is there isn't what is asked for.
fn difference(instance: &Instance, wanted: &Wanted) -> Option<(String, String)> {
    let differs = |what: &str, has: &str| Some((what.to_owned(), has.to_owned()));
    if wanted.platform.is_some_and(|platform| platform != instance.platform) {
        return differs("the platform", instance.platform.as_str());
    }
    let version: Option<PostgresVersion> = instance.postgres_version.parse().ok();
    if let (Some(wanted), Some(version)) = (wanted.version, version)
        && !wanted.accepts(version)
    {
        return differs("PostgreSQL", &instance.postgres_version);
    }
    if wanted.storage.is_some_and(|storage| storage.gb() != instance.storage_size_gb) {
        return differs("a storage_size_gb of", &instance.storage_size_gb.to_string());
    }
    let options = &wanted.options;
    if wanted.public.is_some_and(|public| public != instance.use_load_balancer) {
        return differs(if instance.use_load_balancer { "a public" } else { "no public" }, "address");
    }
    let texts = [
        ("the dns_label", options.dns_label.as_ref().map(DnsLabel::as_str), &instance.dns_label),
        ("a cpu of", options.cpu.as_ref().map(Cpu::as_str), &instance.cpu),
        ("a memory of", options.memory.as_ref().map(Memory::as_str), &instance.memory),
        ("the storage_class", options.storage_class.as_ref().map(StorageClass::as_str), &instance.storage_class),
    ];
    let other = texts.iter().find(|(_, wanted, has)| wanted.is_some() && *wanted != has.as_deref());
    other.and_then(|(what, _, has)| differs(what, has.as_deref().unwrap_or("(the platform's default)")))
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
    let seen = async { state.platforms.of(&instance).await?.platform.observe(&key).await };
    match seen.await {
        Ok(seen) => {
            state.store.record_health(&key, seen.is_some_and(|seen| seen.ready)).await?;
            Ok(Json(state.store.instance(&key).await?))
        }
        // What is on record is worth having without that.
        Err(failure) => {
            tracing::warn!(instance.name = %key, error = %failure, "the instance could not be looked at");
            Ok(Json(Instance { health_status: Some("unknown".into()), ..instance }))
        }
    }
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
    let place = state.platforms.of(&instance).await?;
    let (endpoint, password) = tokio::try_join!(place.platform.endpoint(&key), place.secrets.get(&key))?;
    let ca_certificate = match &endpoint.uri.ca_certificate_path {
        Some(path) => Some(tokio::fs::read_to_string(path).await.map_err(|error| {
            ApiError::unavailable(format!("the CA's certificate {path} can't be read on the server's machine: {error}"))
        })?),
        None => None,
    };
    Ok(Json(Connection {
        internal: instance.platform == PlatformName::Kubernetes && !instance.use_load_balancer,
        platform: instance.platform,
        cluster_id: instance.cluster_id,
        ca_certificate,
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
    let instance = state.store.instance(&key).await?;
    let mut lines = state.platforms.of(&instance).await?.platform.logs(&key, tail_lines).await?;
    if let Some(last) = lines.last_mut() {
        last.push('\n');
    }
    Ok(lines.join("\n"))
}

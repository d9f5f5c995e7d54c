//! Metrics for Prometheus: of the server, of instances, and where to find those.

mod exposition;
mod instance;
pub(super) mod usage;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use chrono::Utc;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use toygres_activities::platform::probe::Checked;
use toygres_models::store::{Instance, InstanceFilter};
use toygres_models::{InstanceKey, InstanceState, Namespace};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters, Segment, instance_key};
use crate::api::state::{AppState, Shared};
use exposition::{CONTENT_TYPE, Page};

/// What the sweep found that long ago will do: a scrape costs no instance anything.
const GOOD_FOR: Duration = Duration::from_secs(15);
/// How long one instance may take. A scrape is given up after 10 s by itself.
const TIME_LIMIT: Duration = Duration::from_secs(7);
/// Instances that are asked at once.
const AT_ONCE: usize = 32;
const PAGE: i64 = 500;

/// What is below `/v1`.
pub(super) fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(of_instance))
        .routes(routes!(of_instances))
        .routes(routes!(targets))
        .routes(routes!(usage::usage))
}

/// The server's own.
pub(super) fn server_routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new().routes(routes!(of_server))
}

fn text(page: String) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], page)
}

/// The server's metrics, in Prometheus's text format
///
/// Requests, operations, sweeps, instances by their state and health. No instance is named. For a token of every namespace.
#[utoipa::path(get, path = "/metrics", tag = "metrics", responses((status = OK, body = String, content_type = "text/plain"), Problems))]
async fn of_server(State(state): Shared, caller: Caller) -> Result<impl IntoResponse, ApiError> {
    if caller.listed_namespaces(None)?.is_some() {
        return Err(ApiError::forbidden(
            "the server's metrics count every namespace's instances; ask with a token of every namespace",
        ));
    }
    let mut page = Page::default();
    page.gauge("toygres_build_info", "Version of the server", &[("version", crate::VERSION)], 1.0);
    for count in state.store.instance_counts().await? {
        let labels = [("platform", &*count.platform), ("state", &*count.state), ("health", &*count.health)];
        page.gauge("toygres_instances", "Instances", &labels, count.instances as f64);
    }
    for count in state.store.operation_counts().await? {
        let labels = [("kind", &*count.kind), ("state", &*count.state)];
        page.gauge("toygres_operations", "Operations that are on record", &labels, count.operations as f64);
    }
    for sweep in state.store.sweeps().await? {
        let shard = sweep.shard.to_string();
        let labels = [("place", &*sweep.place), ("shard", &*shard)];
        let lag = (Utc::now() - sweep.finished_at).as_seconds_f64();
        page.gauge("toygres_sweep_lag_seconds", "Since when a shard's instances weren't looked at", &labels, lag);
        page.gauge("toygres_sweep_duration_seconds", "How long the last look at them took", &labels, sweep.took_seconds);
        page.gauge("toygres_sweep_instances", "How many those were", &labels, sweep.instances);
    }
    let pool = state.store.pool();
    let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX);
    page.gauge("toygres_db_pool_connections", "Connections to the metadata store", &[("state", "idle")], idle);
    let in_use = pool.size().saturating_sub(idle);
    page.gauge("toygres_db_pool_connections", "Connections to the metadata store", &[("state", "in_use")], in_use);
    let is_right = f64::from(u8::from(state.clock.is_right()));
    page.gauge("toygres_clock_is_right", "Whether this server's clock agrees with the database's", &[], is_right);
    Ok(text(state.recorder.render() + &page.render()))
}

/// An instance's metrics, in Prometheus's text format
///
/// By the names of postgres_exporter where it has one. What was seen within 15 seconds will do.
#[utoipa::path(get, path = "/instances/{name}/metrics", tag = "metrics", params(("name" = String, Path), InNamespace),
    responses((status = OK, body = String, content_type = "text/plain"), Problems))]
async fn of_instance(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<impl IntoResponse, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_view(&key.namespace)?;
    let found = state.store.instance(&key).await?;
    let checked = look(&state, &key, &found).await;
    let mut page = Page::default();
    instance::add(&mut page, &[], &found, checked.as_ref());
    Ok(text(page.render()))
}

/// Which part of the instances is wanted.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ShardParameters {
    /// Of so many parts that one, such as `0/4`; all of them without it.
    #[param(pattern = "^(0|[1-9][0-9]{0,3})/[1-9][0-9]{0,3}$")]
    shard: Option<String>,
    /// Only those that this server looks at: of several servers, each has some.
    swept: Option<bool>,
}

fn parse_shard(text: &str) -> Result<(usize, usize), ApiError> {
    let parts = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
    let problem = "shard: has to be a number and how many there are, such as 0/4";
    parts.filter(|(number, of)| number < of && *of <= 10_000).ok_or_else(|| ApiError::invalid(problem).field("shard"))
}

/// The metrics of many instances on one page, with the labels `namespace` and `instance`
#[utoipa::path(get, path = "/metrics", tag = "metrics", params(ShardParameters),
    responses((status = OK, body = String, content_type = "text/plain"), Problems))]
async fn of_instances(
    State(state): Shared,
    caller: Caller,
    Parameters(parameters): Parameters<ShardParameters>,
) -> Result<impl IntoResponse, ApiError> {
    let (number, of) = parameters.shard.as_deref().map_or(Ok((0, 1)), parse_shard)?;
    let is_swept = |instance: &Instance| parameters.swept.is_none_or(|swept| swept == state.swept.has(instance.id));
    let instances = running(&state, &caller, None).await?.into_iter().skip(number).step_by(of);
    let instances: Vec<_> = instances.filter(|(_, instance)| is_swept(instance)).collect();
    let mut looks = Vec::with_capacity(instances.len());
    for (key, instance) in &instances {
        looks.push(look(&state, key, instance));
    }
    let looked: Vec<_> = stream::iter(looks).buffered(AT_ONCE).collect().await;
    let mut page = Page::default();
    for ((key, instance), checked) in instances.iter().zip(looked) {
        let labels = [("namespace", key.namespace.as_str()), ("instance", key.name.as_str())];
        instance::add(&mut page, &labels, instance, checked.as_ref());
    }
    Ok(text(page.render()))
}

/// A group of targets.
#[derive(Serialize, ToSchema)]
struct TargetGroup {
    /// The server's own address, as the scraper gave it.
    targets: Vec<String>,
    /// Its labels.
    labels: TargetLabels,
}

/// The labels of an instance's target.
#[derive(Serialize, ToSchema)]
struct TargetLabels {
    #[serde(rename = "__metrics_path__")]
    metrics_path: String,
    #[serde(rename = "__param_namespace")]
    param_namespace: String,
    /// Namespace and name.
    instance: String,
    /// Its namespace.
    namespace: String,
    /// Where it runs.
    platform: String,
    /// Its version.
    version: String,
}

/// The instances as targets of Prometheus's `http_sd_configs`
#[utoipa::path(get, path = "/prometheus/targets", tag = "metrics", responses((status = OK, body = Vec<TargetGroup>), Problems))]
async fn targets(
    State(state): Shared,
    caller: Caller,
    headers: axum::http::HeaderMap,
) -> Result<Json<Vec<TargetGroup>>, ApiError> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost").to_owned();
    let group = |(key, instance): (InstanceKey, Instance)| TargetGroup {
        targets: vec![host.clone()],
        labels: TargetLabels {
            metrics_path: format!("/v1/instances/{}/metrics", key.name),
            param_namespace: key.namespace.to_string(),
            instance: key.to_string(),
            namespace: key.namespace.to_string(),
            platform: instance.spec.platform.to_string(),
            version: instance.spec.postgres_version.to_string(),
        },
    };
    Ok(Json(running(&state, &caller, None).await?.into_iter().map(group).collect()))
}

/// The instances that are to run, as far as the caller sees them.
async fn running(
    state: &AppState,
    caller: &Caller,
    namespace: Option<&Namespace>,
) -> Result<Vec<(InstanceKey, Instance)>, ApiError> {
    let mut filter = InstanceFilter {
        namespaces: caller.listed_namespaces(namespace)?,
        state: Some(InstanceState::Running),
        ..InstanceFilter::default()
    };
    let mut all = Vec::new();
    loop {
        let page = state.store.instances(&filter, PAGE).await?;
        let full = page.len() as i64 == PAGE;
        for instance in page {
            all.push((InstanceKey::parse(&instance.namespace, &instance.name)?, instance));
        }
        filter.after = all.last().map(|(key, _): &(InstanceKey, Instance)| key.clone());
        if !full {
            return Ok(all);
        }
    }
}

/// How an instance is, and what it says; `None` if that can't be found out now.
async fn look(state: &AppState, key: &InstanceKey, instance: &Instance) -> Option<Checked> {
    if instance.state != InstanceState::Running {
        return None;
    }
    let looking = async {
        let place = state.platforms.of(instance).await.ok()?;
        Some(place.check(key, &instance.spec.owner, GOOD_FOR).await)
    };
    tokio::time::timeout(TIME_LIMIT, looking).await.ok().flatten()
}

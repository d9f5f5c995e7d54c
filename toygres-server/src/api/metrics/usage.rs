//! What instances have to do, for people: `/v1/usage`, `/v1/instances/{name}/activity`, and an end to a session.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use futures::{StreamExt, stream};
use toygres_activities::platform::probe::Checked;
use toygres_client::resources::{InstanceActivity, InstanceUsage, Usage};
use toygres_models::store::Instance;
use toygres_models::{InstanceKey, InstanceState, Namespace, SessionEnd};

use super::{AT_ONCE, GOOD_FOR, look, running};
use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters, Segment, Segments, instance_key};
use crate::api::state::Shared;

/// One instance is asked anew, however many ask.
const FRESH: Duration = Duration::from_secs(1);
const SESSION_CANCELLED: &str = "session_cancelled";
const SESSION_TERMINATED: &str = "session_terminated";

/// What the instances have to do
///
/// As last seen: the server looks at each every ten seconds. Rates are differences of two answers.
#[utoipa::path(get, path = "/usage", tag = "metrics", params(InNamespace), responses((status = OK, body = Usage), Problems))]
pub(super) async fn usage(
    State(state): Shared,
    caller: Caller,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Json<Usage>, ApiError> {
    let namespace: Option<Namespace> = parameters.namespace.as_deref().map(str::parse).transpose()?;
    let instances = running(&state, &caller, namespace.as_ref()).await?;
    let mut looks = Vec::with_capacity(instances.len());
    for (key, instance) in &instances {
        looks.push(look(&state, key, instance, GOOD_FOR));
    }
    let looked: Vec<_> = stream::iter(looks).buffered(AT_ONCE).collect().await;
    let items = instances.iter().zip(looked).map(|((key, instance), checked)| usage_of(key, instance, checked.as_ref()));
    Ok(Json(Usage { items: items.collect() }))
}

/// What an instance has to do, and what its clients do
///
/// Their statements are told to editors alone.
#[utoipa::path(get, path = "/instances/{name}/activity", tag = "instances", params(("name" = String, Path), InNamespace),
    responses((status = OK, body = InstanceActivity), Problems))]
pub(super) async fn activity(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Json<InstanceActivity>, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_view(&key.namespace)?;
    let instance = state.store.instance(&key).await?;
    expect_running(&key, &instance)?;
    let checked = look(&state, &key, &instance, FRESH).await;
    let mut sessions = state.platforms.of(&instance).await?.platform.sessions(&key).await?;
    if caller.may_edit(&key.namespace).is_err() {
        sessions.iter_mut().for_each(|session| session.statement = None);
    }
    Ok(Json(InstanceActivity { usage: usage_of(&key, &instance, checked.as_ref()), sessions }))
}

/// Cancel a session's statement, or end the session
///
/// `cancel` ends the statement that it runs, `terminate` the session. It is an event.
#[utoipa::path(post, path = "/instances/{name}/sessions/{pid}/{end}", tag = "instances",
    params(("name" = String, Path), ("pid" = i32, Path, description = "The session's process", minimum = 1),
        ("end" = String, Path, description = "What is to be done", pattern = "^(cancel|terminate)$"), InNamespace),
    responses((status = NO_CONTENT), Problems))]
pub(super) async fn end_session(
    State(state): Shared,
    caller: Caller,
    Segments((name, pid, end)): Segments<(String, String, String)>,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<StatusCode, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_edit(&key.namespace)?;
    let no_session = || ApiError::not_found(format!("{key} has no session of a client in the process {pid}; nothing was done"));
    let number: i32 = pid.parse().ok().filter(|pid| *pid > 0).ok_or_else(no_session)?;
    let (end, kind, done) = match end.as_str() {
        "cancel" => (SessionEnd::Cancel, SESSION_CANCELLED, "the statement was cancelled"),
        "terminate" => (SessionEnd::Terminate, SESSION_TERMINATED, "the session was ended"),
        other => return Err(ApiError::not_found(format!("end: {other:?} is unknown; known are cancel, terminate"))),
    };
    let instance = state.store.instance(&key).await?;
    expect_running(&key, &instance)?;
    if !state.platforms.of(&instance).await?.platform.end_session(&key, number, end).await? {
        return Err(no_session());
    }
    state.store.record_request(&instance, kind, &format!("process {number}: {done}"), &caller.requested()).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn expect_running(key: &InstanceKey, instance: &Instance) -> Result<(), ApiError> {
    if instance.state == InstanceState::Running {
        return Ok(());
    }
    Err(ApiError::conflict(format!("{key} is {} and has no sessions", instance.state)))
}

fn usage_of(key: &InstanceKey, instance: &Instance, checked: Option<&Checked>) -> InstanceUsage {
    let probe = checked.and_then(|checked| checked.probe.as_ref());
    let sample = probe.map(|probe| &probe.probed.sample);
    let volume = probe.and_then(|probe| probe.volume);
    let sum = |of: fn(&toygres_activities::platform::probe::Database) -> i64| {
        sample.map(|sample| sample.databases.iter().map(of).fold(0, i64::saturating_add))
    };
    let lags = sample.map(|sample| sample.standbys.iter().filter_map(|standby| standby.lag_seconds));
    InstanceUsage {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        health_status: checked.map_or(instance.status.health_status, |checked| Some(checked.health.status)),
        at: probe.map(|probe| probe.probed.at),
        connections: sample.map(|sample| sample.activity.total),
        max_connections: sample.map(|sample| sample.max_connections.saturating_sub(sample.reserved_connections)),
        active: sample.map(|sample| sample.activity.active),
        waiting_for_lock: sample.map(|sample| sample.activity.waiting_for_lock),
        transactions: sum(|database| database.xact_commit.saturating_add(database.xact_rollback)),
        blocks_hit: sum(|database| database.blks_hit),
        blocks_read: sum(|database| database.blks_read),
        longest_transaction_seconds: sample.map(|sample| sample.activity.longest_transaction_seconds),
        databases_bytes: sample
            .filter(|sample| !sample.slow.database_sizes.is_empty())
            .map(|sample| sample.slow.database_sizes.iter().map(|size| size.bytes).sum::<f64>() as i64),
        volume_used_bytes: volume.map(|volume| volume.used_bytes),
        volume_size_bytes: volume.map(|volume| volume.size_bytes),
        replication_lag_seconds: lags.and_then(|lags| lags.max_by(f64::total_cmp)),
    }
}

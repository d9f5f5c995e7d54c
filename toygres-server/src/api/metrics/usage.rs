//! The load of instances, for people: `/v1/usage`, `/v1/instances/{name}/activity`, and an end to a session.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use serde::Deserialize;
use toygres_activities::platform::probe::{Checked, Database, Sample};
use toygres_client::resources::{InstanceActivity, InstanceUsage, Usage};
use toygres_models::store::Instance;
use toygres_models::{ClientSession, Failure, InstanceKey, InstanceState, Namespace, SessionEnd};
use utoipa::IntoParams;
use uuid::Uuid;

use super::{AT_ONCE, GOOD_FOR, TIME_LIMIT, look, running};
use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters, Segment, Segments, instance_key};
use crate::api::state::Shared;

/// One instance is asked anew, however many ask.
const FRESH: Duration = Duration::from_secs(1);
const SESSION_CANCELLED: &str = "session_cancelled";
const SESSION_TERMINATED: &str = "session_terminated";

/// Whose usage.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageParameters {
    /// Only this namespace's; without it, that of every instance that the token sees.
    #[param(pattern = "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")]
    namespace: Option<String>,
}

/// The load of the instances
///
/// As last seen, at most 15 seconds ago.
#[utoipa::path(get, path = "/usage", tag = "metrics", params(UsageParameters), responses((status = OK, body = Usage), Problems))]
pub(super) async fn usage(
    State(state): Shared,
    caller: Caller,
    Parameters(parameters): Parameters<UsageParameters>,
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

/// The load of an instance, and what its clients do
///
/// Only editors see their statements.
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
    let platform = state.platforms.of(&instance).await?.platform;
    let asked = tokio::time::timeout(TIME_LIMIT, state.session_looks.of(instance.id, platform.sessions(&key)));
    let (checked, asked) = tokio::join!(look(&state, &key, &instance, FRESH), asked);
    let (mut sessions, problem) = match asked {
        Ok(Ok(sessions)) => (Some(sessions), None),
        Ok(Err(failure)) => (None, Some(failure.message)),
        Err(_) => (None, Some("there was no answer in time".to_owned())),
    };
    if caller.may_edit(&key.namespace).is_err() {
        sessions.iter_mut().flatten().for_each(|session| session.statement = None);
    }
    Ok(Json(InstanceActivity { usage: usage_of(&key, &instance, checked.as_ref()), sessions, problem }))
}

/// Which session of a process is meant.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EndParameters {
    /// The instance's namespace, `default` if left out.
    namespace: Option<String>,
    /// When it began, as the list of sessions has it: the process may have another by now.
    started_at: DateTime<Utc>,
}

/// Cancel a session's statement, or end the session
///
/// `cancel` ends the statement that it runs, `terminate` the session. A superuser's is for admins. It is an event.
#[utoipa::path(post, path = "/instances/{name}/sessions/{pid}/{end}", tag = "instances",
    params(("name" = String, Path), ("pid" = i32, Path, description = "The session's process", minimum = 1),
        ("end" = String, Path, description = "What is to be done", pattern = "^(cancel|terminate)$"), EndParameters),
    responses((status = NO_CONTENT), Problems))]
pub(super) async fn end_session(
    State(state): Shared,
    caller: Caller,
    Segments((name, pid, end)): Segments<(String, String, String)>,
    Parameters(parameters): Parameters<EndParameters>,
) -> Result<StatusCode, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_edit(&key.namespace)?;
    let (end, kind, doing) = match end.as_str() {
        "cancel" => (SessionEnd::Cancel, SESSION_CANCELLED, "cancelling the statement of"),
        "terminate" => (SessionEnd::Terminate, SESSION_TERMINATED, "ending"),
        other => return Err(ApiError::not_found(format!("end: {other:?} is unknown; known are cancel, terminate"))),
    };
    let instance = state.store.instance(&key).await?;
    expect_running(&key, &instance)?;
    let platform = state.platforms.of(&instance).await?.platform;
    let is_meant = |session: &ClientSession| session.pid.to_string() == pid && session.started_at == parameters.started_at;
    let Some(session) = platform.sessions(&key).await?.into_iter().find(is_meant) else {
        return Err(ApiError::not_found(format!(
            "{key} has no such session of a client in the process {pid} any more; nothing was done"
        )));
    };
    if session.is_superuser {
        caller.may_administer(Some(&key.namespace))?;
    }
    let nothing_runs = || ApiError::conflict(format!("the session in the process {pid} runs no statement; nothing was done"));
    if end == SessionEnd::Cancel && session.state.as_deref() == Some("idle") {
        return Err(nothing_runs());
    }
    // Before it is done: nobody's work is ended without that being known.
    let message = format!(
        "{doing} the session of {} in the database {} (process {pid})",
        session.role.as_deref().unwrap_or_default(),
        session.database.as_deref().unwrap_or_default()
    );
    state.store.record_request(&instance, kind, &message, &caller.requested()).await?;
    match platform.end_session(&key, &session, end).await? {
        true => Ok(StatusCode::NO_CONTENT),
        // It ended by itself meanwhile, or doesn't heed the signal yet.
        false if end == SessionEnd::Cancel => Err(nothing_runs()),
        false => Err(ApiError::conflict(format!("the session in the process {pid} was told to end, and hasn't within 5 s"))),
    }
}

/// What was last found out about instances' sessions: each log-in takes a connection, so that all who ask at once share one.
#[derive(Default)]
pub struct SessionLooks(Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<LastLook>>>>);

type LastLook = Option<(Instant, Vec<ClientSession>)>;

impl SessionLooks {
    async fn of(
        &self,
        id: Uuid,
        ask: impl Future<Output = Result<Vec<ClientSession>, Failure>>,
    ) -> Result<Vec<ClientSession>, Failure> {
        let slot = {
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds, and that are old.
            let is_fresh = |last: &LastLook| last.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH);
            slots.retain(|_, slot| slot.try_lock().map_or(true, |last| is_fresh(&last)));
            slots.entry(id).or_default().clone()
        };
        let mut last = slot.lock().await;
        if let Some((at, sessions)) = &*last
            && at.elapsed() < FRESH
        {
            return Ok(sessions.clone());
        }
        let sessions = ask.await?;
        *last = Some((Instant::now(), sessions.clone()));
        Ok(sessions)
    }
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
    let sum = |of: fn(&Database) -> i64| sample.map(|sample| sample.databases.iter().map(of).fold(0, i64::saturating_add));
    let lags = sample.map(|sample| sample.standbys.iter().filter_map(|standby| standby.lag_seconds));
    InstanceUsage {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        health_status: checked.map_or(instance.status.health_status, |checked| Some(checked.health.status)),
        at: probe.map(|probe| probe.probed.at),
        connections: sample.map(|sample| sample.activity.total),
        max_connections: sample.map(Sample::ordinary_connections),
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

//! `/v1/instances/{name}/activity`, and an end to a session.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use toygres_client::resources::InstanceActivity;
use toygres_models::{ClientSession, Failure, SessionEnd};
use utoipa::IntoParams;
use uuid::Uuid;

use super::connection::running;
use super::observed::look;
use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters, Segment, Segments, instance_key};
use crate::api::metrics::usage::usage_of;
use crate::api::state::Shared;

/// How long a log-in with its question may take.
const TIME_LIMIT: Duration = Duration::from_secs(7);
/// An answer that new is given to others as well.
const FRESH: Duration = Duration::from_secs(1);
const SESSION_CANCELLED: &str = "session_cancelled";
const SESSION_TERMINATED: &str = "session_terminated";

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
    let (instance, place) = running(&state, &key).await?;
    let ask = async { place.platform.session(&key).await?.client_sessions().await };
    let asked = tokio::time::timeout(TIME_LIMIT, state.session_looks.of(instance.id, ask));
    let (looked, asked) = tokio::join!(look(&state, &key), asked);
    let (instance, checked) = looked?;
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
    let (instance, place) = running(&state, &key).await?;
    let session = async || place.platform.session(&key).await;
    let is_meant = |session: &ClientSession| session.pid.to_string() == pid && session.started_at == parameters.started_at;
    let Some(client) = session().await?.client_sessions().await?.into_iter().find(is_meant) else {
        return Err(ApiError::not_found(format!(
            "{key} has no such session of a client in the process {pid} any more; nothing was done"
        )));
    };
    if client.is_superuser {
        caller.may_administer(Some(&key.namespace))?;
    }
    let nothing_runs = || ApiError::conflict(format!("the session in the process {pid} runs no statement; nothing was done"));
    if end == SessionEnd::Cancel && client.state.as_deref() == Some("idle") {
        return Err(nothing_runs());
    }
    // Before it is done: nobody's work is ended without that being known.
    let message = format!(
        "{doing} the session of {} in the database {} (process {pid})",
        client.role.as_deref().unwrap_or_default(),
        client.database.as_deref().unwrap_or_default()
    );
    state.store.record_request(&instance, kind, &message, &caller.requested()).await?;
    match session().await?.end(&client, end).await? {
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

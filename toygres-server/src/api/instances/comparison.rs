//! An instance that is there, held against what a request asks for.

use axum::Json;
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use toygres_client::resources::PlanAction;
use toygres_models::store::{Instance, Operation, StoreError};
use toygres_models::{Drift, InstanceKey, InstanceState, OperationKind};

use super::plan::{Known, Planned, Request, plan, taken};
use crate::api::http::problem::ApiError;
use crate::api::state::AppState;

/// How often an instance is compared again that was changed meanwhile.
pub(super) const ATTEMPTS: usize = 5;

/// The conflict of a request whose instance was changed again and again before it could be written.
pub(super) fn keeps_changing(key: &InstanceKey) -> ApiError {
    ApiError::conflict(format!("{key} keeps being changed by others; nothing was changed. Try again"))
}

/// The live instance of that name, if there is one.
pub(super) async fn find(state: &AppState, key: &InstanceKey) -> Result<Option<Instance>, ApiError> {
    match state.store.instance(key).await {
        Ok(instance) => Ok(Some(instance)),
        Err(StoreError::InstanceNotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The answer to a create whose name is taken: the same create again is the same instance; anything
/// else under a live name is a conflict.
pub(super) async fn existing(
    state: &AppState,
    key: &InstanceKey,
    instance: &Instance,
    request: &Request,
) -> Result<Response, ApiError> {
    let at_work = state.store.operation_at_work(instance.id).await?;
    let Planned { plan, .. } = compare(state, key, instance, at_work.as_ref(), request).await?;
    if instance.state == InstanceState::Failed && plan.refused.is_empty() && plan.changes.is_empty() {
        return Err(ApiError::conflict(format!(
            "{key} is there already, and failed; `toygres why {}` says why, `toygres start {}` tries it again. Nothing was changed",
            key.argument(),
            key.argument()
        )));
    }
    if !plan.refused.is_empty() || !plan.changes.is_empty() || instance.state == InstanceState::Deleting {
        return Err(taken(key, &plan));
    }
    let operation = state.store.last_operation(instance.id, OperationKind::CREATE).await?;
    operation
        .map(|operation| Json(operation).into_response())
        .ok_or_else(|| ApiError::conflict(format!("{key} is there already")))
}

/// The plan, with what only the secret store and the platform know.
pub(super) async fn compare(
    state: &AppState,
    key: &InstanceKey,
    instance: &Instance,
    at_work: Option<&Operation>,
    request: &Request,
) -> Result<Planned, ApiError> {
    let same_password = match &request.password {
        Some(password) => is_password_of(state, key, instance, password).await?,
        None => true,
    };
    let has_drifted = has_drifted(state, key, instance, at_work).await;
    let planned = plan(&Known { instance, at_work, same_password, has_drifted }, request)?;
    if planned.plan.action == PlanAction::Update && !planned.plan.changes.is_empty() {
        state.platforms.of(instance).await?.platform.check(key, &planned.spec)?;
    }
    Ok(planned)
}

/// Whether others changed something of the instance that can be put right. Where that can't be learned now, nothing is.
async fn has_drifted(state: &AppState, key: &InstanceKey, instance: &Instance, at_work: Option<&Operation>) -> bool {
    if at_work.is_some() || !matches!(instance.state, InstanceState::Running | InstanceState::Stopped) {
        return false;
    }
    let compared = async { state.platforms.of(instance).await?.platform.drift(key, &instance.spec).await };
    let drift = compared.await.unwrap_or_else(|failure| {
        tracing::warn!(instance.name = %key, error = %failure, "the instance could not be compared with its platform");
        Vec::new()
    });
    drift.iter().any(Drift::is_mended)
}

/// Whether it is the instance's password. Of one that is being deleted, or failed, nothing is compared: its password may
/// be gone.
async fn is_password_of(
    state: &AppState,
    key: &InstanceKey,
    instance: &Instance,
    password: &SecretString,
) -> Result<bool, ApiError> {
    if !matches!(instance.state, InstanceState::Creating | InstanceState::Running | InstanceState::Stopped) {
        return Ok(true);
    }
    let secrets = state.platforms.of(instance).await?.secrets;
    if instance.state == InstanceState::Creating {
        // Its creation may not have come to it.
        secrets.settle(key, instance.id).await?;
    }
    let kept = secrets.get(key).await;
    let kept = kept.map_err(|failure| ApiError::of_recorded(failure, instance.state))?;
    Ok(kept.expose_secret().as_bytes().ct_eq(password.expose_secret().as_bytes()).into())
}

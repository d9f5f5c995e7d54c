//! `PUT /v1/instances/{name}`: an instance is made, or made to be, what a document says.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use toygres_client::resources::{Plan, PlanAction};
use toygres_models::store::{ChangeRequested, Created, Instance, Operation, StoreError};
use toygres_models::{InstanceKey, InstanceState, OperationKind};
use utoipa::{IntoParams, ToSchema};

use super::create::{create_instance, prepare};
use super::named;
use super::plan::{Known, Planned, Request, plan, plan_creation, refusal, taken};
use crate::api::auth::caller::Caller;
use crate::api::http::body::ManifestBody;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{Expected, Parameters, Segment, etag};
use crate::api::operations::{accepted, begin};
use crate::api::state::{AppState, Shared};

/// How often an instance is compared again that was changed meanwhile.
pub(super) const ATTEMPTS: usize = 5;

/// Of which namespace, and whether it is meant.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PutParameters {
    /// The instance's namespace; the document's, or else `default`, if left out.
    namespace: Option<String>,
    /// Only tell what would be done: the answer is a plan.
    dry_run: Option<bool>,
}

/// What is there now, or, of a dry run, what would be done.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it stands for the answers in the API's description")]
pub(super) enum PutAnswer {
    Instance(Box<Instance>),
    Plan(Plan),
}

/// Make an instance what a document says
///
/// One that is missing is made. One that is there is changed to what the document names; the rest is left as it is. The
/// plan of a dry run says for each field what its change does. What can't be changed is
/// refused, every field by name, and nothing is changed then. Where the platform isn't what the spec says, it is brought
/// to it. `If-Match` with an ETag changes only
/// a spec that has not changed since; `If-None-Match: *` only makes new ones.
#[utoipa::path(put, path = "/instances/{name}", tag = "instances",
    params(("name" = String, Path), PutParameters,
        ("if-match" = Option<String>, Header, description = "The ETag of the instance that is to be changed, or `*` for any"),
        ("if-none-match" = Option<String>, Header, description = "`*`, if there may be no such instance")),
    request_body = toygres_client::resources::InstanceManifest,
    responses((status = OK, description = "The instance, as it is on record now; of a dry run, the plan", body = inline(PutAnswer),
            headers(("etag" = String))),
        (status = ACCEPTED, description = "It is being made or changed", body = Operation, headers(("location" = String))),
        Problems))]
pub(super) async fn put(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<PutParameters>,
    expected: Expected,
    ManifestBody(body): ManifestBody,
) -> Result<Response, ApiError> {
    let key = named(&body, parameters.namespace.as_deref())?;
    if body.name != name {
        let problem = "name: the document's and the path's are not the same; give the same name in both";
        return Err(ApiError::invalid(problem).field("name"));
    }
    let dry_run = parameters.dry_run.unwrap_or_default();
    if dry_run && body.password.is_none() {
        caller.may_view(&key.namespace)?;
    } else {
        // A client that learns whether a password is the right one has to be one that may read it.
        caller.may_edit(&key.namespace)?;
    }
    let request = Request::check(&body)?;
    // A loop, since the instance may come, change or go between the look and the write.
    for _ in 0..ATTEMPTS {
        let Some(instance) = find(&state, &key).await? else {
            expected.check(&key, None)?;
            let Some(new) = prepare(&state, &caller, key.clone(), &request).await? else { continue };
            if dry_run {
                state.store.expect_room(&new).await?;
                return Ok(Json(plan_creation(&request)).into_response());
            }
            match create_instance(&state, &new, &request).await? {
                Created::New(operation) => return Ok(accepted(operation)),
                Created::Existing(..) => continue,
            }
        };
        let at_work = state.store.operation_at_work(instance.id).await?;
        let Planned { mut plan, spec, repair } = compare(&state, &key, &instance, at_work.as_ref(), &request).await?;
        // A change that was made already is answered as one, also to a repeat that names the generation from before
        // (RFC 9110, 13.1.1).
        let is_made = plan.action == PlanAction::None && matches!(expected, Expected::Generation(_));
        if !is_made {
            expected.check(&key, Some(&instance))?;
        }
        if dry_run {
            if plan.action == PlanAction::Update {
                plan.expected_seconds = state.store.expected_seconds_of_change(&instance, &spec).await?;
            }
            return Ok(Json(plan).into_response());
        }
        match plan.action {
            PlanAction::Refuse => return Err(refusal(&key, &plan)),
            PlanAction::None | PlanAction::Create => {
                // What was compared may have been made, or be on its way out, by now.
                let is_as_compared = |now: Instance| (now.id, now.generation) == (instance.id, instance.generation);
                if find(&state, &key).await?.is_some_and(is_as_compared) {
                    // 202 while an operation is still bringing it there, else 200.
                    return Ok(at_work.map_or_else(|| on_record(instance), accepted));
                }
                continue;
            }
            PlanAction::Update => {}
        }
        let changed = state.store.change_instance(&key, Some(instance.generation), &spec, repair, &caller.requested()).await;
        match changed {
            Ok(ChangeRequested::New(operation)) => {
                begin(&state, &operation).await;
                return Ok(accepted(*operation));
            }
            Ok(ChangeRequested::Unchanged(instance) | ChangeRequested::Done(instance)) => return Ok(on_record(*instance)),
            Err(StoreError::GenerationMismatch { .. } | StoreError::InstanceNotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(keeps_changing(&key))
}

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
            key.name, key.name
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
async fn compare(
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
    let missing = missing_parts(state, key, instance, at_work).await;
    let planned = plan(&Known { instance, at_work, same_password, missing: &missing }, request)?;
    if planned.plan.action == PlanAction::Update && !planned.plan.changes.is_empty() {
        state.platforms.of(instance).await?.platform.check(key, &planned.spec)?;
    }
    Ok(planned)
}

/// Which parts of an instance are gone from its platform. Where that can't be learned now, none are said to be.
async fn missing_parts(state: &AppState, key: &InstanceKey, instance: &Instance, at_work: Option<&Operation>) -> Vec<String> {
    if at_work.is_some() || !matches!(instance.state, InstanceState::Running | InstanceState::Stopped) {
        return Vec::new();
    }
    let compared = async { state.platforms.of(instance).await?.platform.missing_parts(key).await };
    compared.await.unwrap_or_else(|failure| {
        tracing::warn!(instance.name = %key, error = %failure, "the instance could not be compared with its platform");
        Vec::new()
    })
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
    let kept = state.platforms.of(instance).await?.secrets.get(key).await;
    let kept = kept.map_err(|failure| ApiError::of_recorded(failure, instance.state))?;
    Ok(kept.expose_secret().as_bytes().ct_eq(password.expose_secret().as_bytes()).into())
}

fn on_record(instance: Instance) -> Response {
    ([etag(&instance)], Json(instance)).into_response()
}

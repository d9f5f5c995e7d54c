//! `PUT /v1/instances/{name}`: an instance is made, or made to be, what a document says.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use toygres_client::resources::{InstanceManifest, Plan, PlanAction};
use toygres_models::store::{Created, Instance, InstanceChange, Operation, StoreError, UpdateRequested};
use toygres_models::{InstanceKey, InstanceOptions, InstanceState, OperationKind};
use utoipa::{IntoParams, ToSchema};

use super::plan::{failed, plan, refusal, taken};
use super::wanted::Wanted;
use super::{accepted, begin, make, named, prepare};
use crate::api::auth::caller::Caller;
use crate::api::http::body::Body;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{Expected, Parameters, Segment, etag};
use crate::api::state::{AppState, Shared};

/// How often an instance is looked at that keeps changing meanwhile.
pub(super) const LOOKS: usize = 5;

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
/// One that is missing is made. One that is there gets the document's labels, delete protection, and
/// whether it is public; what the document doesn't name is left as it is. What can't be changed yet is
/// refused, every field by name, and nothing is changed then. `If-Match` with an ETag changes only
/// what is still as it was looked at; `If-None-Match: *` only makes new ones.
#[utoipa::path(put, path = "/instances/{name}", tag = "instances",
    params(("name" = String, Path), PutParameters,
        ("if-match" = Option<String>, Header, description = "The ETag of the instance that is to be changed, or `*` for any"),
        ("if-none-match" = Option<String>, Header, description = "`*`, if there may be no such instance")),
    request_body = InstanceManifest,
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
    Body(body): Body<InstanceManifest>,
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
        // Whoever learns whether a password is the right one has to be one who may read it.
        caller.may_edit(&key.namespace)?;
    }
    let wanted = Wanted::check(&body)?;
    // A loop, since the instance may come, change or go between the look and the write.
    for _ in 0..LOOKS {
        let instance = find(&state, &key).await?;
        let exposure_in_doubt = match &instance {
            Some(instance) => state.store.is_exposure_in_doubt(instance.id).await?,
            None => false,
        };
        let plan = compare(&state, &key, instance.as_ref(), &wanted, exposure_in_doubt).await?;
        // A change that was made already is answered as one, also to a repeat that names the revision from before
        // (RFC 9110, 13.1.1).
        let is_made = plan.action == PlanAction::None && matches!(expected, Expected::Revision(_));
        if !is_made {
            expected.check(&key, instance.as_ref())?;
        }
        let Some(instance) = instance else {
            let Some(new) = prepare(&state, &caller, key.clone(), &wanted).await? else { continue };
            if dry_run {
                state.store.expect_room(&new).await?;
                return Ok(Json(plan).into_response());
            }
            match make(&state, &new, &wanted).await? {
                Created::New(operation) => return Ok(accepted(operation)),
                Created::Existing(..) => continue,
            }
        };
        if dry_run {
            return Ok(Json(plan).into_response());
        }
        match plan.action {
            PlanAction::Refuse => return Err(refusal(&key, &plan)),
            PlanAction::None | PlanAction::Create => {
                let at_work = state.store.operation_at_work(instance.id).await?;
                // What was compared may have been made, or be on its way out, by now.
                let is_as_compared = |now: Instance| (now.id, now.revision) == (instance.id, instance.revision);
                if find(&state, &key).await?.is_some_and(is_as_compared) {
                    // 202 while an operation is still bringing it there, else 200.
                    return Ok(at_work.map_or_else(|| on_record(instance), accepted));
                }
                continue;
            }
            PlanAction::Update => {}
        }
        let updated = state.store.update_instance(&key, Some(instance.revision), &change(&wanted), &caller.requested()).await;
        match updated {
            Ok(UpdateRequested::New(operation)) => {
                begin(&state, &operation).await;
                return Ok(accepted(*operation));
            }
            Ok(UpdateRequested::Unchanged(instance) | UpdateRequested::Done(instance)) => return Ok(on_record(*instance)),
            Err(StoreError::RevisionMismatch { .. } | StoreError::InstanceNotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(keeps_changing(&key))
}

/// Others are always a step ahead.
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
    wanted: &Wanted,
) -> Result<Response, ApiError> {
    // Whether it is the same create doesn't depend on how a later change ended.
    let plan = compare(state, key, Some(instance), wanted, false).await?;
    if instance.state == InstanceState::Failed && plan.refused.is_empty() {
        return Err(ApiError::conflict(format!("{key} {}. Nothing was changed", failed(instance))));
    }
    if plan.action != PlanAction::None {
        return Err(taken(key, &plan));
    }
    let operation = state.store.last_operation(instance.id, OperationKind::Create).await?;
    operation
        .map(|operation| Json(operation).into_response())
        .ok_or_else(|| ApiError::conflict(format!("{key} is there already")))
}

/// The plan, with what only the secret store and the platform know.
async fn compare(
    state: &AppState,
    key: &InstanceKey,
    instance: Option<&Instance>,
    wanted: &Wanted,
    exposure_in_doubt: bool,
) -> Result<Plan, ApiError> {
    let Some(instance) = instance else { return Ok(plan(None, wanted, true, false)) };
    let same_password = match &wanted.password {
        Some(password) => is_password_of(state, key, instance, password).await?,
        None => true,
    };
    let plan = plan(Some(instance), wanted, same_password, exposure_in_doubt);
    if plan.action == PlanAction::Update && wanted.options.use_load_balancer && !instance.use_load_balancer {
        let public = InstanceOptions {
            use_load_balancer: true,
            dns_label: wanted.options.dns_label.clone(),
            ..InstanceOptions::default()
        };
        state.platforms.of(instance).await?.platform.check(key, &public)?;
    }
    Ok(plan)
}

/// Whether it is the instance's password. Of one that is on its way out, or failed, nothing is compared: a plan that names a
/// password is a refusal then, and the instance's may be gone.
async fn is_password_of(
    state: &AppState,
    key: &InstanceKey,
    instance: &Instance,
    password: &SecretString,
) -> Result<bool, ApiError> {
    if !matches!(instance.state, InstanceState::Creating | InstanceState::Running) {
        return Ok(true);
    }
    let kept = state.platforms.of(instance).await?.secrets.get(key).await;
    let kept = kept.map_err(|failure| ApiError::of_recorded(failure, instance.state))?;
    Ok(kept.expose_secret().as_bytes().ct_eq(password.expose_secret().as_bytes()).into())
}

fn change(wanted: &Wanted) -> InstanceChange {
    InstanceChange {
        labels: wanted.labels.clone(),
        delete_protection: wanted.delete_protection,
        use_load_balancer: wanted.named.contains_key("use_load_balancer").then_some(wanted.options.use_load_balancer),
        dns_label: wanted.options.dns_label.clone().map(Some),
    }
}

fn on_record(instance: Instance) -> Response {
    ([etag(&instance)], Json(instance)).into_response()
}

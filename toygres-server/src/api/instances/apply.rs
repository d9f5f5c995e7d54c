//! `PUT /v1/instances/{name}`: an instance is made, or made to be, what a document says.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use toygres_client::resources::{Plan, PlanAction};
use toygres_models::store::{ChangeRequested, Created, Instance, Operation, StoreError};
use utoipa::{IntoParams, ToSchema};

use super::comparison::{ATTEMPTS, compare, find, keeps_changing};
use super::create::{create_instance, prepare};
use super::named;
use super::plan::{Planned, Request, plan_creation, refusal};
use crate::api::auth::caller::Caller;
use crate::api::http::body::ManifestBody;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{Expected, Parameters, Segment, etag};
use crate::api::operations::{accepted, begin};
use crate::api::state::Shared;

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

fn on_record(instance: Instance) -> Response {
    ([etag(&instance)], Json(instance)).into_response()
}

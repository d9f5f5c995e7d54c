//! `/v1/instances/{name}/drift`.

use axum::Json;
use axum::extract::State;
use toygres_client::resources::InstanceDrift;
use toygres_models::InstanceState;

use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters, Segment, instance_key};
use crate::api::state::Shared;

/// What others changed of an instance
///
/// What is there is held against the spec, now. What needs no person is put right by the server within a minute or so.
#[utoipa::path(get, path = "/instances/{name}/drift", tag = "instances", params(("name" = String, Path), InNamespace),
    responses((status = OK, body = InstanceDrift), Problems))]
pub(super) async fn drift(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Json<InstanceDrift>, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_view(&key.namespace)?;
    let instance = state.store.instance(&key).await?;
    let mut told = InstanceDrift { items: Vec::new(), not_compared: None };
    match instance.state {
        InstanceState::Running | InstanceState::Stopped => {}
        other => {
            told.not_compared = Some(format!("it is {other}: until that is over nothing is compared"));
            return Ok(Json(told));
        }
    }
    let platform = state.platforms.of(&instance).await?.platform;
    told.items = platform.drift(&key, &instance.spec).await?;
    if instance.state == InstanceState::Running {
        let overridden = async { platform.session(&key).await?.overridden_parameters().await };
        match overridden.await {
            Ok(overridden) => told.items.extend(overridden),
            Err(failure) => told.not_compared = Some(format!("its parameters could not be compared: {}", failure.message)),
        }
    }
    Ok(Json(told))
}

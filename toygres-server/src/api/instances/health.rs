//! `/v1/instances/{name}/health`.

use axum::Json;
use axum::extract::State;
use toygres_client::resources::InstanceHealth;

use super::observed::look;
use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters, Segment, instance_key};
use crate::api::state::Shared;

/// Changes that are told.
const CHANGES: i64 = 50;

/// How an instance is, and was
///
/// The server looks at it: whether it takes a write, and what has to be seen to. The latest changes are told, the newest first.
#[utoipa::path(get, path = "/instances/{name}/health", tag = "instances", params(("name" = String, Path), InNamespace),
    responses((status = OK, body = InstanceHealth), Problems))]
pub(super) async fn health(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Json<InstanceHealth>, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_view(&key.namespace)?;
    let (instance, checked) = look(&state, &key).await?;
    let probed = checked.and_then(|checked| checked.probe).map(|probe| probe.probed);
    let changes = state.store.health_changes(instance.id, CHANGES).await?;
    Ok(Json(InstanceHealth {
        latency_milliseconds: probed.as_ref().map(|probed| probed.latency.as_secs_f64() * 1000.0),
        answered_at: probed.map(|probed| probed.at),
        changes,
        ..InstanceHealth::from(&instance)
    }))
}

//! `/v1/adoptable`: instances that are on a platform and not on record, say since the metadata store was lost.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use toygres_activities::Place;
use toygres_activities::platform::InstanceRecord;
use toygres_client::resources::{AdoptableInstance, Page};
use toygres_models::store::AdoptedInstance;
use toygres_models::{Failure, FailureKind};

use super::comparison::find;
use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters, Segment, instance_key};
use crate::api::operations::{accepted, begin};
use crate::api::state::{AppState, Shared};

/// List instances that are on a platform and not on record
///
/// Each carries its spec beside its data. A platform that can't be reached now is left out. Needs the role admin in every
/// namespace.
#[utoipa::path(get, path = "/adoptable", tag = "instances",
    responses((status = OK, body = Page<AdoptableInstance>), Problems))]
pub(super) async fn list(State(state): Shared, caller: Caller) -> Result<Json<Page<AdoptableInstance>>, ApiError> {
    caller.may_administer(None)?;
    let mut items = Vec::new();
    for name in state.platforms.names() {
        let records = async { state.platforms.get(name).await?.platform.records().await };
        match records.await {
            Ok(records) => {
                for InstanceRecord { key, instance_id, spec } in records {
                    if find(&state, &key).await?.is_none() {
                        let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
                        items.push(AdoptableInstance { namespace, name, instance_id, spec });
                    }
                }
            }
            Err(failure) => tracing::warn!(platform = %name, error = %failure, "a platform's instances could not be listed"),
        }
    }
    Ok(Json(Page { items, next_cursor: None }))
}

/// Take an instance that is on a platform on record
///
/// With its data, address and password. Needs the role admin in every namespace.
#[utoipa::path(post, path = "/adoptable/{name}", tag = "instances", params(("name" = String, Path), InNamespace),
    responses((status = ACCEPTED, body = toygres_models::store::Operation, headers(("location" = String))), Problems))]
pub(super) async fn adopt(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Response, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_administer(None)?;
    for platform in state.platforms.names() {
        let found = async {
            let place = state.platforms.get(platform).await?;
            let record = place.platform.records().await?.into_iter().find(|record| record.key == key);
            Ok::<_, Failure>(record.map(|record| (place, record)))
        };
        let (place, record) = match found.await {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(failure) => {
                tracing::warn!(platform = %platform, error = %failure, "a platform's instances could not be listed");
                continue;
            }
        };
        let adopted = described(&state, &caller, &place, record).await?;
        let operation = state.store.adopt_instance(&adopted).await?;
        begin(&state, &operation).await;
        return Ok(accepted(operation));
    }
    let message =
        format!("no platform that can be reached from here has an instance {key} with its data; `toygres adopt` lists them");
    Err(Failure::permanent(FailureKind::NotFound, message).into())
}

/// An instance as it is taken on record.
async fn described(
    state: &AppState,
    caller: &Caller,
    place: &Place,
    record: InstanceRecord,
) -> Result<AdoptedInstance, ApiError> {
    if find(state, &record.key).await?.is_some() {
        return Err(ApiError::conflict(format!("{} is on record already; nothing was changed", record.key)));
    }
    let seen = place.platform.observe(&record.key).await?;
    Ok(AdoptedInstance {
        cluster_id: place.platform.cluster_id().await?,
        members: seen.iter().map(toygres_activities::platform::Observation::member).collect(),
        key: record.key,
        id: record.instance_id,
        spec: record.spec,
        requested: caller.requested(),
    })
}

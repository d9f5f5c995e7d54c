//! `/v1/usage`: the load of instances, for people.

use axum::Json;
use axum::extract::State;
use futures::{StreamExt, stream};
use serde::Deserialize;
use toygres_activities::platform::probe::{Checked, Database, Sample};
use toygres_client::resources::{InstanceUsage, Usage};
use toygres_models::store::Instance;
use toygres_models::{InstanceKey, Namespace};
use utoipa::IntoParams;

use super::{AT_ONCE, look, running};
use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::Parameters;
use crate::api::state::Shared;

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
        looks.push(look(&state, key, instance));
    }
    let looked: Vec<_> = stream::iter(looks).buffered(AT_ONCE).collect().await;
    let items = instances.iter().zip(looked).map(|((key, instance), checked)| usage_of(key, instance, checked.as_ref()));
    Ok(Json(Usage { items: items.collect() }))
}

/// What an instance says of its load.
pub(in crate::api) fn usage_of(key: &InstanceKey, instance: &Instance, checked: Option<&Checked>) -> InstanceUsage {
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

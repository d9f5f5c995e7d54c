//! `/v1/instances/{name}/connection`.

use axum::Json;
use axum::extract::State;
use secrecy::ExposeSecret;
use toygres_client::resources::Connection;
use toygres_models::connection::{DATABASE, USER};
use toygres_models::{InstanceState, PlatformName};

use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters, Segment, instance_key};
use crate::api::state::Shared;

/// How to reach an instance
///
/// Holds the password: a viewer may not ask for it.
#[utoipa::path(get, path = "/instances/{name}/connection", tag = "instances", params(("name" = String, Path), InNamespace),
    responses((status = OK, body = Connection), Problems))]
pub(super) async fn connection(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Json<Connection>, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_edit(&key.namespace)?;
    let instance = state.store.instance(&key).await?;
    match instance.state {
        InstanceState::Running => {}
        InstanceState::Creating => {
            return Err(ApiError::conflict(format!("{key} is still being created; wait for it with `toygres operations`")));
        }
        other => return Err(ApiError::conflict(format!("{key} is {other} and can't be connected to; `toygres get` says more"))),
    }
    let place = state.platforms.of(&instance).await?;
    let (endpoint, password) = tokio::try_join!(place.platform.endpoint(&key), place.secrets.get(&key))
        .map_err(|failure| ApiError::of_recorded(failure, instance.state))?;
    let ca_certificate = match &endpoint.uri.ca_certificate_path {
        Some(path) => Some(tokio::fs::read_to_string(path).await.map_err(|error| {
            ApiError::unavailable(format!("the CA's certificate {path} can't be read on the server's machine: {error}"))
        })?),
        None => None,
    };
    Ok(Json(Connection {
        internal: instance.platform == PlatformName::Kubernetes && !instance.use_load_balancer,
        platform: instance.platform,
        cluster_id: instance.cluster_id,
        ca_certificate,
        user: USER.into(),
        database: DATABASE.into(),
        sslmode: if endpoint.uri.ca_certificate_path.is_some() { "verify-full" } else { "require" }.into(),
        uri: endpoint.uri.with_secret(&password).expose_secret().to_owned(),
        password: password.expose_secret().to_owned(),
        host: endpoint.uri.host,
        port: endpoint.uri.port,
        ca_certificate_path: endpoint.uri.ca_certificate_path,
    }))
}

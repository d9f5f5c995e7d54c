//! `/v1/instances/{name}/connection` and `/v1/instances/{name}/superuser`.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use toygres_activities::Place;
use toygres_activities::platform::Endpoint;
use toygres_client::resources::Connection;
use toygres_models::connection::{MAINTENANCE_DATABASE, SUPERUSER};
use toygres_models::store::Instance;
use toygres_models::{InstanceKey, InstanceState, Password, PlatformName};

use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters, Segment, instance_key};
use crate::api::state::{AppState, Shared};

/// How long a superuser's password lets in. Sessions that it opened go on.
const SUPERUSER_VALID_FOR: TimeDelta = TimeDelta::hours(1);
/// The event of an admin's request for a superuser's password.
const SUPERUSER_REQUESTED: &str = "superuser_requested";

/// How to reach an instance
///
/// As its owner. Holds the password: a viewer may not ask for it.
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
    let (instance, place) = running(&state, &key).await?;
    let (endpoint, password) = tokio::try_join!(place.platform.endpoint(&key), place.secrets.get(&key))
        .map_err(|failure| ApiError::of_recorded(failure, instance.state))?;
    let (user, database) = (instance.spec.owner.to_string(), instance.spec.database.to_string());
    describe(&instance, endpoint, Login { user, database, password, valid_until: None }).await
}

/// Log in to an instance as its superuser
///
/// Sets a new password of the superuser `postgres` that lets in for an hour, and writes an event. A password that was asked
/// for before ends with that. For admins; a server can be told to refuse it (`superuser = "never"`).
#[utoipa::path(post, path = "/instances/{name}/superuser", tag = "instances", params(("name" = String, Path), InNamespace),
    responses((status = OK, body = Connection), Problems))]
pub(super) async fn superuser(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Json<Connection>, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_administer(Some(&key.namespace))?;
    if !state.hands_out_superuser {
        return Err(ApiError::forbidden(
            "this server lets nobody log in as superuser: its setting `superuser` is \"never\"; nothing was done",
        ));
    }
    let (instance, place) = running(&state, &key).await?;
    let of_recorded = |failure| ApiError::of_recorded(failure, instance.state);
    let endpoint = place.platform.endpoint(&key).await.map_err(of_recorded)?;
    let (password, until) = (Password::generate(), Utc::now() + SUPERUSER_VALID_FOR);
    let message =
        format!("a password of the superuser {SUPERUSER} was asked for; it lets in until {}", until.format("%F %T UTC"));
    // Before it is done: nobody gets one without that being known.
    state.store.record_request(&instance, SUPERUSER_REQUESTED, &message, &caller.requested()).await?;
    place.platform.open_superuser(&key, &password, until).await.map_err(of_recorded)?;
    let login = Login { user: SUPERUSER.into(), database: MAINTENANCE_DATABASE.into(), password, valid_until: Some(until) };
    describe(&instance, endpoint, login).await
}

/// An instance that can be connected to, and where it is.
pub(super) async fn running(state: &AppState, key: &InstanceKey) -> Result<(Instance, Place), ApiError> {
    let instance = state.store.instance(key).await?;
    match instance.state {
        InstanceState::Running => {}
        InstanceState::Creating => {
            return Err(ApiError::conflict(format!("{key} is still being created; wait for it with `toygres operations`")));
        }
        InstanceState::Stopped => {
            return Err(ApiError::conflict(format!("{key} is stopped; `toygres start {}` starts it", key.argument())));
        }
        other => return Err(ApiError::conflict(format!("{key} is {other} and can't be connected to; `toygres get` says more"))),
    }
    let place = state.platforms.of(&instance).await?;
    Ok((instance, place))
}

/// As whom somebody logs in.
struct Login {
    user: String,
    database: String,
    password: SecretString,
    valid_until: Option<DateTime<Utc>>,
}

async fn describe(instance: &Instance, endpoint: Endpoint, login: Login) -> Result<Json<Connection>, ApiError> {
    let address = endpoint.address;
    let ca_certificate = match &address.ca_certificate_path {
        Some(path) => Some(tokio::fs::read_to_string(path).await.map_err(|error| {
            ApiError::unavailable(format!("the CA's certificate {path} can't be read on the server's machine: {error}"))
        })?),
        None => None,
    };
    Ok(Json(Connection {
        internal: instance.spec.platform == PlatformName::Kubernetes && !instance.spec.use_load_balancer,
        platform: instance.spec.platform,
        cluster_id: instance.cluster_id.clone(),
        ca_certificate,
        sslmode: if address.ca_certificate_path.is_some() { "verify-full" } else { "require" }.into(),
        uri: address.uri(&login.user, &login.database).with_secret(&login.password).expose_secret().to_owned(),
        user: login.user,
        database: login.database,
        password: login.password.expose_secret().to_owned(),
        valid_until: login.valid_until,
        host: address.host,
        port: address.port,
        ca_certificate_path: address.ca_certificate_path,
    }))
}

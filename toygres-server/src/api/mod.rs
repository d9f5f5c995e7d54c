//! HTTP: `/v1`, with a bearer token.

mod instances;
mod operations;
mod problem;
mod request;
pub mod resources;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use toygres_activities::Platforms;
use toygres_activities::platform::OfferedVersion;
use toygres_activities::platform::local::LocalHost;
use toygres_models::store::OperationChanges;
use toygres_models::{PlatformName, Store};

use crate::server::workflows::Workflows;
use problem::ApiError;
use request::Parameters;
use resources::{Health, KUBE_CONTEXT, Page};

/// Largest body: a create with a password of the greatest length fits many times.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What the handlers work with.
pub struct AppState {
    /// The metadata store.
    pub store: Store,
    /// Where instances run, and their passwords rest.
    pub platforms: Platforms,
    /// This machine, for what it is busy with, where it has instances.
    pub host: Option<Arc<LocalHost>>,
    /// The context of the kubeconfig that the server was started with, where one was named.
    pub kube_context: Option<String>,
    /// The workflow engine.
    pub workflows: Arc<Workflows>,
    /// Wakes those who wait for an operation.
    pub changes: OperationChanges,
    /// What a client has to know.
    pub token: SecretString,
    /// Cancelled when the server stops: who waits is answered at once.
    pub stopping: CancellationToken,
}

type Shared = State<Arc<AppState>>;

/// All routes.
pub fn router(state: Arc<AppState>) -> Router {
    let v1 = Router::new()
        .route("/instances", post(instances::create).get(instances::list))
        .route("/instances/{name}", get(instances::get).merge(delete(instances::delete)))
        .route("/instances/{name}/connection", get(instances::connection))
        .route("/instances/{name}/events", get(instances::events))
        .route("/instances/{name}/logs", get(instances::logs))
        .route("/operations", get(operations::list))
        .route("/operations/{id}", get(operations::get))
        .route("/versions", get(versions))
        .layer(middleware::from_fn_with_state(state.clone(), check_context))
        .layer(middleware::from_fn_with_state(state.clone(), authorize));
    Router::new()
        .nest("/v1", v1)
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async { ApiError::not_found("there is nothing at this path; the API is below /v1") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(CatchPanicLayer::custom(|_| ApiError::internal().into_response()))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(TraceLayer::new_for_http())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .with_state(state)
}

/// Lets in who knows the token.
async fn authorize(State(state): Shared, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).map(axum::http::HeaderValue::as_bytes);
    let token = given.and_then(|value| value.strip_prefix(b"Bearer ").or_else(|| value.strip_prefix(b"bearer ")));
    match token {
        Some(token) if token.ct_eq(state.token.expose_secret().as_bytes()).into() => next.run(request).await,
        Some(_) => {
            ApiError::unauthorized("the token is wrong; the right one is in the file `token` of the server's state directory")
                .into_response()
        }
        None => ApiError::unauthorized("a token is needed: send the header Authorization: Bearer TOKEN").into_response(),
    }
}

/// Whoever names a cluster gets that one or none.
async fn check_context(State(state): Shared, request: Request, next: Next) -> Response {
    let wanted = request.headers().get(KUBE_CONTEXT).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match (wanted, state.kube_context.as_deref()) {
        (Some(wanted), served) if served != Some(&wanted) => {
            let served = served.map_or_else(|| "no context named".to_owned(), |served| format!("the context {served}"));
            let problem = format!(
                "kube_context: the server was started with {served}, not with {wanted:?}; nothing was changed. After \
                 `toygres server stop` the next command starts one with the context that it names"
            );
            ApiError::conflict(problem).into_response()
        }
        _ => next.run(request).await,
    }
}

/// Whether the process lives: no more than that.
async fn healthz() -> Json<Health> {
    Json(Health { status: "ok".into(), version: crate::VERSION.into() })
}

/// Whether requests can be served: the metadata store answers, and the server isn't stopping.
async fn readyz(State(state): Shared) -> Result<Json<Health>, ApiError> {
    if state.stopping.is_cancelled() {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    state.store.ping().await?;
    Ok(healthz().await)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct OnPlatform {
    platform: Option<String>,
}

/// The versions that one platform offers.
async fn versions(
    State(state): Shared,
    Parameters(parameters): Parameters<OnPlatform>,
) -> Result<Json<Page<OfferedVersion>>, ApiError> {
    let name = parameters.platform.as_deref().map(str::parse::<PlatformName>).transpose()?;
    let place = state.platforms.get(name.unwrap_or_else(|| state.platforms.default_name())).await?;
    Ok(Json(Page { items: place.platform.versions().await?, next_cursor: None }))
}

//! HTTP: `/v1`, with a bearer token.

mod apply;
mod caller;
mod connection;
mod conventions;
mod envelope;
mod event_stream;
mod events;
pub mod explanation;
mod idempotency;
mod instances;
mod limits;
mod logs;
pub(crate) mod manifest;
mod namespaces;
mod observations;
mod openapi;
mod operation_watch;
mod operations;
mod plan;
mod problem;
mod request;
pub mod resources;
mod tokens;
pub mod traffic;
mod versions;
pub(crate) mod wanted;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use secrecy::SecretString;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use toygres_activities::Platforms;
use toygres_activities::platform::local::LocalHost;
use toygres_models::Store;
use toygres_models::store::Changes;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::server::clock::{Clock, ClockError};
use crate::server::event_feed::EventFeed;
use crate::server::workflows::Workflows;
pub use idempotency::KEPT_FOR as IDEMPOTENCY_KEPT_FOR;
pub use limits::ANSWER_LIMIT;
use limits::Limits;
pub use observations::Observations;
pub(crate) use problem::PROBLEM_CONTENT_TYPE;
use problem::{ApiError, Problems};
use resources::{Health, KUBE_CONTEXT};
use traffic::Traffic;

/// How long the metadata store may take to answer before the server counts as not ready.
const READINESS_LIMIT: Duration = Duration::from_secs(2);

/// What the handlers work with.
pub struct AppState {
    /// The metadata store.
    pub store: Store,
    /// This machine's clock, held against the metadata store's.
    pub clock: Arc<Clock>,
    /// Where instances run, and their passwords rest.
    pub platforms: Platforms,
    /// This machine, for what it is busy with, where it has instances.
    pub host: Option<Arc<LocalHost>>,
    /// The context of the kubeconfig that the server was started with, where one was named.
    pub kube_context: Option<String>,
    /// When instances were last looked at.
    pub observations: Observations,
    /// The workflow engine.
    pub workflows: Arc<Workflows>,
    /// Wakes those who wait for a change.
    pub changes: Changes,
    /// Tells the streams what happens.
    pub feed: Arc<EventFeed>,
    /// One for each instance that may be being written down: meanwhile it has one of the store's connections, and its
    /// platform is asked to keep a password, which may take seconds.
    pub creating: Semaphore,
    /// The server's own token: its holder may do everything.
    pub token: SecretString,
    /// Cancelled when the server stops: who waits is answered at once.
    pub stopping: CancellationToken,
    /// What requests come.
    pub traffic: Traffic,
}

type Shared = State<Arc<AppState>>;

/// What needs a token.
fn v1() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(instances::create, instances::list))
        .routes(routes!(instances::get, instances::delete, apply::put))
        .routes(routes!(connection::connection))
        .routes(routes!(events::list))
        .routes(routes!(events::of_instance))
        .routes(routes!(explanation::why))
        .routes(routes!(logs::logs))
        .routes(routes!(operations::list))
        .routes(routes!(operations::get))
        .routes(routes!(operations::cancel))
        .routes(routes!(operations::retry))
        .routes(routes!(versions::list))
        .routes(routes!(namespaces::list))
        .routes(routes!(namespaces::get, namespaces::set_quota))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::get, tokens::revoke))
        .routes(routes!(tokens::whoami))
}

/// All routes, with the document that describes them.
fn described(v1: OpenApiRouter<Arc<AppState>>) -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::with_openapi(openapi::frame())
        .nest("/v1", v1)
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(manifest::instance_schema))
}

/// The API's description.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    conventions::describe(described(v1()).into_openapi())
}

/// The whole server.
pub fn router(state: Arc<AppState>) -> Router {
    let v1 = v1()
        // From the last to the first: whether there is room for it, who it is, then whether it was asked
        // before.
        .layer(middleware::from_fn_with_state(state.clone(), idempotency::once))
        .layer(middleware::from_fn_with_state(state.clone(), check_context))
        .layer(middleware::from_fn_with_state(state.clone(), caller::authorize))
        .layer(middleware::from_fn_with_state(Limits::default(), limits::bound));
    let (routes, document) = described(v1).split_for_parts();
    routes
        .merge(openapi::pages(conventions::describe(document)))
        .fallback(|| async {
            ApiError::not_found("there is nothing at this path; the API is below /v1, its description at /docs")
        })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(CatchPanicLayer::custom(ApiError::panicked))
        .layer(middleware::from_fn(envelope::complete))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(TraceLayer::new_for_http().make_span_with(envelope::span))
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(middleware::from_fn(envelope::check_request_id))
        .layer(middleware::from_fn_with_state(state.clone(), traffic::count))
        .with_state(state)
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

/// Whether the process lives
///
/// No more than that.
#[utoipa::path(get, path = "/healthz", tag = "server", security(()), responses((status = OK, body = Health)))]
async fn healthz() -> Json<Health> {
    Json(Health { status: "ok".into(), version: crate::VERSION.into() })
}

/// Whether requests can be served
///
/// The metadata store answers, its clock and this server's agree, and the server isn't stopping.
#[utoipa::path(get, path = "/readyz", tag = "server", security(()), responses((status = OK, body = Health), Problems))]
async fn readyz(State(state): Shared) -> Result<Json<Health>, ApiError> {
    if state.stopping.is_cancelled() {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    match tokio::time::timeout(READINESS_LIMIT, state.clock.compare()).await {
        Ok(Ok(())) => Ok(healthz().await),
        Ok(Err(ClockError::Database(error))) => {
            tracing::warn!(%error, "not ready: the metadata store failed");
            Err(ApiError::unavailable("the metadata store can't be used"))
        }
        Ok(Err(error)) => Err(ApiError::unavailable(format!("{error}. Until then no work is taken up"))),
        Err(_) => Err(ApiError::unavailable("the metadata store does not answer")),
    }
}

//! HTTP: `/v1`, with a bearer token.

pub mod auth;
mod events;
pub mod http;
mod idempotency;
pub mod instances;
mod metrics;
mod namespaces;
pub mod observations;
mod operations;
pub mod state;
mod versions;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use toygres_client::resources::{Health, KUBE_CONTEXT};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::workers::clock::ClockError;
use auth::caller;
use http::limits::{self, Limits};
use http::problem::{ApiError, Problems};
use http::store_probe::{self, StoreProbe};
use http::{conventions, envelope, openapi, traffic};
use state::{AppState, Shared};

/// How long the metadata store may take to answer before the server counts as not ready.
const READINESS_LIMIT: Duration = Duration::from_secs(2);

/// What needs a token.
fn v1() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .merge(instances::routes())
        .merge(operations::routes())
        .merge(events::routes())
        .merge(auth::routes())
        .merge(metrics::routes())
        .routes(routes!(versions::list))
        .routes(routes!(namespaces::list))
        .routes(routes!(namespaces::get, namespaces::set_quota))
}

/// All routes, with the document that describes them.
fn described(v1: OpenApiRouter<Arc<AppState>>, server_metrics: OpenApiRouter<Arc<AppState>>) -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::with_openapi(openapi::frame())
        .nest("/v1", v1)
        .merge(server_metrics)
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .merge(instances::schema())
}

/// The API's description.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    conventions::describe(described(v1(), metrics::server_routes()).into_openapi())
}

/// The whole server.
pub fn router(state: Arc<AppState>) -> Router {
    let room = Limits::default();
    let probe = Arc::new(StoreProbe::new(state.store.clone()));
    let v1 = v1()
        // From the last to the first: whether there is room for it, who it is, whether he has his share, then whether
        // it was asked before.
        .layer(middleware::from_fn_with_state(state.clone(), idempotency::once))
        .layer(middleware::from_fn_with_state(state.clone(), check_context))
        .layer(middleware::from_fn_with_state(room.clone(), limits::share))
        .layer(middleware::from_fn_with_state(state.clone(), caller::authorize))
        .layer(middleware::from_fn_with_state(probe.clone(), store_probe::fail_fast))
        .layer(middleware::from_fn_with_state(room.clone(), limits::bound));
    let server_metrics = metrics::server_routes()
        .layer(middleware::from_fn_with_state(state.clone(), caller::authorize))
        .layer(middleware::from_fn_with_state(probe.clone(), store_probe::fail_fast))
        .layer(middleware::from_fn_with_state(room.clone(), limits::bound));
    let (routes, document) = described(v1, server_metrics).split_for_parts();
    routes
        .merge(openapi::pages(conventions::describe(document)))
        .fallback(|| async {
            ApiError::not_found("there is nothing at this path; the API is below /v1, its description at /docs")
        })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(middleware::from_fn(limits::bound_head))
        .layer(CatchPanicLayer::custom(ApiError::panicked))
        .layer(middleware::from_fn(envelope::complete))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(TraceLayer::new_for_http().make_span_with(envelope::span))
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(middleware::from_fn(envelope::check_request_id))
        .layer(middleware::from_fn_with_state(state.traffic.clone(), traffic::count))
        .layer(middleware::from_fn(limits::measure_head))
        .with_state(state)
}

/// A caller that names a cluster gets that one or none.
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
        Ok(Err(error)) => Err(ApiError::unavailable(format!("{error}. Until then no work is begun"))),
        Err(_) => Err(ApiError::unavailable("the metadata store does not answer")),
    }
}

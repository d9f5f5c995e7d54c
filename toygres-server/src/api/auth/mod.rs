//! Who sends a request, and what that token lets its holder do.

pub mod caller;
mod tokens;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::state::AppState;

/// `/v1/tokens` and `/v1/whoami`.
pub fn routes() -> OpenApiRouter<Arc<AppState>> {
    OpenApiRouter::new()
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::get, tokens::revoke))
        .routes(routes!(tokens::whoami))
}

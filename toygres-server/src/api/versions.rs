//! `/v1/versions`.

use axum::Json;
use axum::extract::State;
use toygres_client::resources::Page;
use toygres_models::{OfferedVersion, PlatformName};
use utoipa::IntoParams;

use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::Parameters;
use crate::api::state::Shared;

#[derive(serde::Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OnPlatform {
    /// Where; the server's default platform if left out.
    #[param(inline)]
    platform: Option<PlatformName>,
}

/// The PostgreSQL versions that a platform offers
///
/// Newest first.
#[utoipa::path(get, path = "/versions", tag = "versions", params(OnPlatform),
    responses((status = OK, body = Page<OfferedVersion>), Problems))]
pub(super) async fn list(
    State(state): Shared,
    Parameters(parameters): Parameters<OnPlatform>,
) -> Result<Json<Page<OfferedVersion>>, ApiError> {
    let place = state.platforms.get(parameters.platform.unwrap_or_else(|| state.platforms.default_name())).await?;
    Ok(Json(Page { items: place.platform.versions().await?, next_cursor: None }))
}

//! `/v1/schemas/instance.json`.

use axum::http::header;
use axum::response::IntoResponse;
use toygres_client::manifest::schema;

/// The JSON Schema of instances' documents
///
/// For editors: it holds no secret, and needs no token.
#[utoipa::path(get, path = "/v1/schemas/instance.json", tag = "server", security(()),
    responses((status = OK, body = serde_json::Value, content_type = "application/schema+json")))]
pub(super) async fn instance_schema() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/schema+json")], serde_json::to_string_pretty(&schema()).unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests;

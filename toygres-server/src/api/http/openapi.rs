//! The API's own description: an OpenAPI 3.1 document made from the handlers, and a page to browse it.

use axum::Router;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Components, OpenApi};
use utoipa::{Modify, OpenApi as _};
use utoipa_swagger_ui::{Config, SwaggerUi};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "toygres",
        description = "PostgreSQL instances as a service. Every change of an instance is an operation: it is answered with \
            202 and the operation's address, which can be waited for.\n\nSend `Authorization: Bearer TOKEN`. A token has a role \
            (viewer, editor, admin), and may be limited to some namespaces: what it doesn't allow is answered with 403, and what \
            has an id in another namespace isn't there for it (404). A change may carry an \
            `Idempotency-Key`: sent again with it, the same request is carried out once and answered the same way, for a day. \
            Errors are problem documents (RFC 9457) with a stable `type`. Each answer has an `x-request-id`, which is also in the \
            server's log.",
        license(name = "MIT", identifier = "MIT")
    ),
    security(("token" = [])),
    modifiers(&Token)
)]
struct Document;

/// The bearer token.
struct Token;

impl Modify for Token {
    fn modify(&self, openapi: &mut OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_with(Components::new).add_security_scheme("token", scheme);
    }
}

/// The document's frame: the handlers are added to it.
pub fn frame() -> OpenApi {
    Document::openapi()
}

/// `/openapi.json`, and `/docs` to browse it. Nothing of it comes from elsewhere.
pub fn pages<S: Clone + Send + Sync + 'static>(document: OpenApi) -> Router<S> {
    let config = Config::new(["/openapi.json"])
        .try_it_out_enabled(true)
        .persist_authorization(false)
        .validator_url("none")
        .use_base_layout();
    SwaggerUi::new("/docs").url("/openapi.json", document).config(config).into()
}

#[cfg(test)]
mod tests {
    /// A change of the API shows here, to be looked at: `cargo insta review`, or the file itself.
    #[test]
    fn the_api_is_as_it_was_reviewed() {
        let document = serde_json::to_string_pretty(&crate::api::document()).unwrap();
        insta::assert_snapshot!("openapi", document);
    }
}

//! `/v1/tokens` and `/v1/whoami`.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use toygres_client::resources::{MintedToken, Page, TokenManifest, WhoAmI};
use toygres_models::store::{NewToken, Token};
use toygres_models::{Invalid, Namespace, TokenName};

use super::caller::Caller;
use crate::api::http::body::Body;
use crate::api::http::idempotency_key::without_secret;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{PageParameters, Parameters, Segment, page_limit};
use crate::api::state::Shared;

/// Ten years.
const MAX_TTL_SECONDS: i64 = 315_360_000;
/// More would be a list that nobody reads.
const MAX_NAMESPACES: usize = 100;

/// Create a token
///
/// Its secret is in this answer and nowhere else. Needs the role admin in every namespace; the token
/// may not outlive the one that it is asked for with.
#[utoipa::path(post, path = "/tokens", tag = "tokens", request_body = TokenManifest,
    responses((status = CREATED, body = MintedToken, headers(("location" = String))), Problems))]
pub(super) async fn create(State(state): Shared, caller: Caller, Body(body): Body<TokenManifest>) -> Result<Response, ApiError> {
    caller.may_administer(None)?;
    let new = NewToken { at_most_until: caller.expires_at, ..wanted(&body)? };
    let (bearer, token) = state.store.create_token(&new, &caller.requested()).await?;
    let location = [(header::LOCATION, format!("/v1/tokens/{}", token.name))];
    let kept = MintedToken { token, secret: None, secret_was_shown: true };
    let secret = secrecy::ExposeSecret::expose_secret(&bearer.expose()).to_owned();
    let shown = MintedToken { secret: Some(secret), secret_was_shown: false, ..kept.clone() };
    Ok(without_secret((StatusCode::CREATED, location, Json(shown)).into_response(), &kept))
}

/// What a request asks for, checked.
fn wanted(body: &TokenManifest) -> Result<NewToken, Invalid> {
    let namespaces = match body.namespaces.as_deref() {
        None => None,
        Some([]) => return Err(Invalid::new("namespaces", "is empty; leave it out for every namespace")),
        Some(many) if many.len() > MAX_NAMESPACES => {
            return Err(Invalid::new("namespaces", format!("are {}; at most {MAX_NAMESPACES} are allowed", many.len())));
        }
        Some(some) => {
            let renamed = |invalid: Invalid| Invalid { field: "namespaces", ..invalid };
            let some: Result<BTreeSet<Namespace>, _> = some.iter().map(|namespace| namespace.parse().map_err(renamed)).collect();
            Some(some?.into_iter().collect())
        }
    };
    let lasts = match body.ttl_seconds {
        None => None,
        Some(seconds @ 1..=MAX_TTL_SECONDS) => Some(Duration::from_secs(seconds.unsigned_abs())),
        Some(seconds) => {
            return Err(Invalid::new("ttl_seconds", format!("{seconds} is out of range; give 1 to {MAX_TTL_SECONDS}")));
        }
    };
    Ok(NewToken { name: body.name.parse()?, role: body.role.parse()?, namespaces, lasts, at_most_until: None })
}

/// List tokens
///
/// In order of their names, without their secrets; those that have expired too, until they are revoked.
#[utoipa::path(get, path = "/tokens", tag = "tokens", params(PageParameters),
    responses((status = OK, body = Page<Token>), Problems))]
pub(super) async fn list(
    State(state): Shared,
    caller: Caller,
    Parameters(parameters): Parameters<PageParameters>,
) -> Result<Json<Page<Token>>, ApiError> {
    caller.may_administer(None)?;
    let limit = page_limit(parameters.limit)?;
    let items = state.store.tokens(parameters.after()?.as_ref(), limit + 1).await?;
    Ok(Json(Page::cut(items, limit, |last| last.name.clone())))
}

/// One token
#[utoipa::path(get, path = "/tokens/{name}", tag = "tokens", params(("name" = String, Path)),
    responses((status = OK, body = Token), Problems))]
pub(super) async fn get(State(state): Shared, caller: Caller, Segment(name): Segment) -> Result<Json<Token>, ApiError> {
    caller.may_administer(None)?;
    Ok(Json(state.store.token(&name.parse::<TokenName>()?).await?))
}

/// Revoke a token
///
/// From then on its holder is refused, by every server.
#[utoipa::path(delete, path = "/tokens/{name}", tag = "tokens", params(("name" = String, Path)),
    responses((status = OK, body = Token), Problems))]
pub(super) async fn revoke(State(state): Shared, caller: Caller, Segment(name): Segment) -> Result<Json<Token>, ApiError> {
    caller.may_administer(None)?;
    Ok(Json(state.store.revoke_token(&name.parse::<TokenName>()?, &caller.requested()).await?))
}

/// Whose the request's token is, and what it lets its holder do
#[utoipa::path(get, path = "/whoami", tag = "tokens", responses((status = OK, body = WhoAmI), Problems))]
pub(super) async fn whoami(caller: Caller) -> Json<WhoAmI> {
    let Caller { name, role, namespaces, expires_at, .. } = caller;
    Json(WhoAmI { name, role, namespaces, expires_at })
}

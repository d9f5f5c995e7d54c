//! Who sends a request, and what they may do.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use toygres_models::store::{IdempotencyKey, Requested, TokenCheck};
use toygres_models::{BearerToken, Namespace, Role, Store};

use crate::api::http::problem::ApiError;
use crate::api::http::waits::asks_to_wait;
use crate::api::state::Shared;

/// How often the token of an answer that goes on, or is waited for, is checked again.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The holder of the token that a request carries.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The token's id; `root` for the one that the server was given or made.
    pub token_id: String,
    /// The token's name.
    pub name: String,
    /// What it lets its holder do.
    pub role: Role,
    /// Where; everywhere if there are none.
    pub namespaces: Option<Vec<String>>,
    /// When it ends by itself; never if there is no time.
    pub expires_at: Option<DateTime<Utc>>,
    /// Names the request, where its sender did so.
    idempotency_key: Option<IdempotencyKey>,
}

impl Caller {
    /// The holder of the server's own token.
    fn root() -> Self {
        Self {
            token_id: "root".into(),
            name: "root".into(),
            role: Role::Admin,
            namespaces: None,
            expires_at: None,
            idempotency_key: None,
        }
    }

    /// The holder of a token that was made for somebody, if it is valid.
    fn of(check: TokenCheck) -> Result<Self, ApiError> {
        match check {
            TokenCheck::Valid(token) => Ok(Self {
                token_id: token.id.to_string(),
                name: token.name,
                role: token.role,
                namespaces: token.namespaces,
                expires_at: token.expires_at,
                idempotency_key: None,
            }),
            TokenCheck::Unknown => Err(unknown_token()),
            TokenCheck::Expired(at) => {
                let at = at.format("%F %T UTC");
                Err(ApiError::unauthorized(format!("the token expired at {at}; ask an admin for a new one")))
            }
            TokenCheck::Revoked => Err(ApiError::unauthorized("the token was revoked; ask an admin for a new one")),
        }
    }

    /// Fails unless the caller may look at what is in the namespace.
    pub fn may_view(&self, namespace: &Namespace) -> Result<(), ApiError> {
        self.must(Role::Viewer, Some(namespace))
    }

    /// Fails unless the caller may change what is in the namespace, and read its passwords.
    pub fn may_edit(&self, namespace: &Namespace) -> Result<(), ApiError> {
        self.must(Role::Editor, Some(namespace))
    }

    /// Fails unless the caller may set quotas of the namespace; for `None`, manage tokens.
    pub fn may_administer(&self, namespace: Option<&Namespace>) -> Result<(), ApiError> {
        self.must(Role::Admin, namespace)
    }

    /// Whether what is in the namespace is there at all for the caller.
    pub fn sees(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|own| own.iter().any(|own| own == namespace))
    }

    /// The namespaces that a list is of: the one that was asked for, else the caller's; `None` is all.
    pub fn listed_namespaces(&self, asked: Option<&Namespace>) -> Result<Option<Vec<String>>, ApiError> {
        if let Some(asked) = asked {
            self.may_view(asked)?;
            return Ok(Some(vec![asked.to_string()]));
        }
        Ok(self.namespaces.clone())
    }

    /// The request, as the store writes it down.
    pub fn requested(&self) -> Requested {
        let idempotency_key = self.idempotency_key.clone();
        Requested { idempotency_key, ..Requested::by(&self.name) }
    }

    fn must(&self, needed: Role, namespace: Option<&Namespace>) -> Result<(), ApiError> {
        let inside = match (namespace, &self.namespaces) {
            (_, None) => true,
            (Some(namespace), Some(_)) => self.sees(namespace.as_str()),
            (None, Some(_)) => false,
        };
        if !inside {
            let own = self.namespaces.as_deref().unwrap_or_default().join(", ");
            return Err(ApiError::forbidden(format!(
                "the token {} is limited to the namespaces {own}; nothing was done. Ask an admin for a wider one",
                self.name
            )));
        }
        if !self.role.includes(needed) {
            return Err(ApiError::forbidden(format!(
                "the token {} has the role {}, and this needs {needed}; nothing was done. Ask an admin for one that has it",
                self.name, self.role
            )));
        }
        Ok(())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut caller = parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::internal)?;
        caller.idempotency_key = parts.extensions.get::<IdempotencyKey>().cloned();
        Ok(caller)
    }
}

/// What is answered to a token that isn't known, whatever is wrong with it.
fn unknown_token() -> ApiError {
    ApiError::unauthorized(
        "the token is wrong; `toygres login` stores the right one, and on the server's machine one is in the file `token` of \
         the state directory",
    )
}

/// Returns when the token isn't valid any more, with the answer to its holder.
async fn until_refused(store: &Store, sent: &BearerToken) -> ApiError {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        // While the store doesn't answer, nobody can tell: the answer goes on.
        if let Ok(check) = store.check_token(sent).await
            && let Err(refused) = Caller::of(check)
        {
            return refused;
        }
    }
}

/// Lets in the holder of a valid token, as long as it is valid: an answer that goes on and on ends with it.
pub async fn authorize(State(state): Shared, mut request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).map(axum::http::HeaderValue::as_bytes);
    let sent = given.and_then(|value| value.strip_prefix(b"Bearer ").or_else(|| value.strip_prefix(b"bearer ")));
    let Some(sent) = sent else {
        return ApiError::unauthorized("a token is needed: send the header Authorization: Bearer TOKEN").into_response();
    };
    if sent.ct_eq(state.token.expose_secret().as_bytes()).into() {
        request.extensions_mut().insert(Caller::root());
        return next.run(request).await;
    }
    let Some(bearer) = BearerToken::parse(sent) else { return unknown_token().into_response() };
    let caller = async || Caller::of(state.store.check_token(&bearer).await?);
    match caller().await {
        Ok(caller) => request.extensions_mut().insert(caller),
        Err(error) => return error.into_response(),
    };
    let waits = asks_to_wait(&request);
    let answer = tokio::select! {
        answer = next.run(request) => answer,
        // What happens while it waits isn't for a token that was refused meanwhile.
        refused = until_refused(&state.store, &bearer), if waits => return refused.into_response(),
    };
    // The token may have ended since the last check.
    if waits && let Err(error) = caller().await {
        return error.into_response();
    }
    let (parts, body) = answer.into_parts();
    if body.size_hint().exact().is_some() {
        return Response::from_parts(parts, body);
    }
    let store = state.store.clone();
    let refused = Box::pin(async move { until_refused(&store, &bearer).await });
    Response::from_parts(parts, Body::from_stream(body.into_data_stream().take_until(refused)))
}

//! Tokens: whom the API lets in, and as what.
//!
//! Of a token's secret only its SHA-256 is here. When one ends is up to the database's clock alone:
//! the servers' own may be apart.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;
use uuid::Uuid;

use super::events::{NewEvent, insert_event};
use super::{Requested, Store, StoreError, commit};
use crate::{BearerToken, Namespace, Role, TokenName};

/// The columns of a [`Token`].
const COLUMNS: &str = "id, name, role, namespaces, created_by, created_at, expires_at, revoked_by, revoked_at, last_used_at";

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx_macros::FromRow, ToSchema)]
pub struct Token {
    /// Its id, never used again. It is part of the token that its holder sends, and no secret.
    pub id: Uuid,
    /// Whose it is; unique among those that aren't revoked. Events name it as the actor.
    pub name: String,
    /// What it lets its holder do.
    pub role: Role,
    /// Where; in every namespace if there are none.
    pub namespaces: Option<Vec<String>>,
    /// Which token's holder made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends by itself; never if there is no time.
    pub expires_at: Option<DateTime<Utc>>,
    /// Which token's holder revoked it.
    pub revoked_by: Option<String>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Whose it is.
    pub name: TokenName,
    /// What it lets its holder do.
    pub role: Role,
    /// Where; everywhere if `None`.
    pub namespaces: Option<Vec<Namespace>>,
    /// How long it lasts; until it is revoked if `None`.
    pub lasts: Option<Duration>,
    /// It may not outlive this: its maker's own end.
    pub at_most_until: Option<DateTime<Utc>>,
}

/// What became of a token that was sent.
#[derive(Debug)]
pub enum TokenCheck {
    /// It is valid: the request is its holder's.
    Valid(Token),
    /// There is no such token, or its secret is another: nobody learns which.
    Unknown,
    /// It was valid until then.
    Expired(DateTime<Utc>),
    /// It was valid until it was revoked.
    Revoked,
}

impl Store {
    /// Makes a token. Only its hash is kept: the caller shows it once.
    ///
    /// # Errors
    /// [`StoreError::TokenExists`] if the name is taken; [`StoreError::OutlivesMaker`]. Nothing is
    /// written then.
    pub async fn create_token(&self, new: &NewToken, requested: &Requested) -> Result<(BearerToken, Token), StoreError> {
        let bearer = BearerToken::generate();
        let namespaces: Option<Vec<&str>> =
            new.namespaces.as_ref().map(|namespaces| namespaces.iter().map(Namespace::as_str).collect());
        let mut tx = self.pool.begin().await?;
        let token: Option<Token> = sqlx::query_as(&format!(
            "INSERT INTO tokens (id, name, role, namespaces, secret_sha256, created_by, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7))
             ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING RETURNING {COLUMNS}"
        ))
        .bind(bearer.id)
        .bind(new.name.as_str())
        .bind(new.role)
        .bind(&namespaces)
        .bind(bearer.secret_sha256())
        .bind(&requested.actor)
        .bind(new.lasts.map(|lasts| lasts.as_secs_f64()))
        .fetch_optional(&mut *tx)
        .await?;
        let token = token.ok_or_else(|| StoreError::TokenExists(new.name.to_string()))?;
        if let Some(end) = new.at_most_until
            && token.expires_at.is_none_or(|expires_at| expires_at > end)
        {
            return Err(StoreError::OutlivesMaker(end));
        }
        let place = match &new.namespaces {
            Some(_) => format!("in {}", namespaces.unwrap_or_default().join(", ")),
            None => "in every namespace".to_owned(),
        };
        let until = token.expires_at.map(|at| format!(", until {}", at.format("%F %T UTC"))).unwrap_or_default();
        let message = format!("{} is {} {place}{until}", token.name, token.role);
        insert_event(&mut tx, &NewEvent::elsewhere("token_created", &message).asked_by(requested)).await?;
        commit(tx).await?;
        Ok((bearer, token))
    }

    /// Takes the right away that the live token of that name gives: from then on no server lets its holder in.
    ///
    /// # Errors
    /// [`StoreError::TokenNotFound`].
    pub async fn revoke_token(&self, name: &TokenName, requested: &Requested) -> Result<Token, StoreError> {
        let mut tx = self.pool.begin().await?;
        let token: Option<Token> = sqlx::query_as(&format!(
            "UPDATE tokens SET revoked_at = now(), revoked_by = $2 WHERE name = $1 AND revoked_at IS NULL RETURNING {COLUMNS}"
        ))
        .bind(name.as_str())
        .bind(&requested.actor)
        .fetch_optional(&mut *tx)
        .await?;
        let token = token.ok_or_else(|| StoreError::TokenNotFound(name.to_string()))?;
        let message = format!("{} was {}", token.name, token.role);
        insert_event(&mut tx, &NewEvent::elsewhere("token_revoked", &message).asked_by(requested)).await?;
        commit(tx).await?;
        Ok(token)
    }

    /// The token of that name that isn't revoked; it may have expired.
    ///
    /// # Errors
    /// [`StoreError::TokenNotFound`].
    pub async fn token(&self, name: &TokenName) -> Result<Token, StoreError> {
        sqlx::query_as(&format!("SELECT {COLUMNS} FROM tokens WHERE name = $1 AND revoked_at IS NULL"))
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| StoreError::TokenNotFound(name.to_string()))
    }

    /// The tokens that aren't revoked, by name, after that one; expired ones are among them.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn tokens(&self, after: Option<&TokenName>, limit: i64) -> Result<Vec<Token>, StoreError> {
        Ok(sqlx::query_as(&format!(
            "SELECT {COLUMNS} FROM tokens WHERE revoked_at IS NULL AND ($1::text IS NULL OR name > $1) ORDER BY name LIMIT $2"
        ))
        .bind(after.map(TokenName::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Checks a token that was sent, and notes once a minute at most that it is in use.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn check_token(&self, sent: &BearerToken) -> Result<TokenCheck, StoreError> {
        #[derive(sqlx_macros::FromRow)]
        struct Row {
            #[sqlx(flatten)]
            token: Token,
            secret_sha256: Vec<u8>,
            is_expired: bool,
            use_is_noted: bool,
        }
        let row: Option<Row> = sqlx::query_as(&format!(
            "SELECT {COLUMNS}, secret_sha256, coalesce(expires_at <= now(), false) AS is_expired,
                coalesce(last_used_at > now() - interval '1 minute', false) AS use_is_noted
             FROM tokens WHERE id = $1"
        ))
        .bind(sent.id)
        .fetch_optional(&self.pool)
        .await?;
        // As much work where there is no such token.
        let secret_sha256 = row.as_ref().map_or(&[0; 32][..], |row| &row.secret_sha256);
        let is_right: bool = sent.secret_sha256().ct_eq(secret_sha256).into();
        let Some(Row { token, is_expired, use_is_noted, .. }) = row.filter(|_| is_right) else {
            return Ok(TokenCheck::Unknown);
        };
        match token.expires_at {
            _ if token.revoked_at.is_some() => return Ok(TokenCheck::Revoked),
            Some(at) if is_expired => return Ok(TokenCheck::Expired(at)),
            _ => {}
        }
        if !use_is_noted {
            // Requests that come at once write once.
            sqlx::query(
                "UPDATE tokens SET last_used_at = now()
                 WHERE id = $1 AND (last_used_at IS NULL OR last_used_at <= now() - interval '1 minute')",
            )
            .bind(token.id)
            .execute(&self.pool)
            .await?;
        }
        Ok(TokenCheck::Valid(token))
    }
}

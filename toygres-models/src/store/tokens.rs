//! Tokens: whom the API lets in, and as what.
//!
//! Of a token's secret only its SHA-256 is here. When one ends is up to the database's clock alone:
//! the servers' own may be apart.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgListener;
use subtle::ConstantTimeEq;
use utoipa::ToSchema;
use uuid::Uuid;

use super::events::{NewEvent, insert_event};
use super::{Requested, Store, StoreError, commit};
use crate::{BearerToken, Namespace, Role, TokenName};

const CHANNEL: &str = "toygres_tokens";
/// The columns of a [`Token`].
const COLUMNS: &str = "id, name, role, namespaces, created_by, created_at, expires_at, revoked_by, revoked_at, last_used_at";

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow, ToSchema)]
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

/// A token as it is kept: what is needed to tell whether one that was sent is good.
#[derive(Debug)]
pub struct KeptToken {
    token: Token,
    secret_sha256: Vec<u8>,
    /// Its own end, by this process's steady clock.
    ends_at: Option<Instant>,
    use_is_noted: bool,
}

/// What became of a token that was sent.
#[derive(Debug)]
pub enum Presented<'a> {
    /// Its holder is let in.
    Good(&'a Token),
    /// There is no such token, or its secret is another: nobody learns which.
    Unknown,
    /// It was right, until then.
    Expired(DateTime<Utc>),
    /// It was right, until it was revoked.
    Revoked,
}

impl KeptToken {
    /// Whether a token that was sent is this one, and good now. It takes as long if there is none.
    #[must_use]
    pub fn judge<'a>(kept: Option<&'a Self>, sent: &BearerToken) -> Presented<'a> {
        let secret_sha256 = kept.map_or(&[0; 32][..], |kept| &kept.secret_sha256);
        let is_right: bool = sent.secret_sha256().ct_eq(secret_sha256).into();
        match kept.filter(|_| is_right) {
            None => Presented::Unknown,
            Some(Self { token, .. }) if token.revoked_at.is_some() => Presented::Revoked,
            Some(Self { token, ends_at, .. }) => match (ends_at, token.expires_at) {
                (Some(end), Some(at)) if *end <= Instant::now() => Presented::Expired(at),
                _ => Presented::Good(token),
            },
        }
    }

    /// When it ends by itself; never if there is no time.
    #[must_use]
    pub fn ends_at(&self) -> Option<Instant> {
        self.ends_at
    }

    /// Whether a use of it within the last minute is noted.
    #[must_use]
    pub fn use_is_noted(&self) -> bool {
        self.use_is_noted
    }
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

    /// Takes the right away that the live token of that name gives; no server lets its holder in any
    /// more, those that have it in memory as soon as they hear of it.
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

    /// The token of that id, as it is now; a revoked or expired one too.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn kept_token(&self, id: Uuid) -> Result<Option<KeptToken>, StoreError> {
        #[derive(sqlx::FromRow)]
        struct Row {
            #[sqlx(flatten)]
            token: Token,
            secret_sha256: Vec<u8>,
            lasts_seconds: Option<f64>,
            use_is_noted: bool,
        }
        let asked_at = Instant::now();
        let row: Option<Row> = sqlx::query_as(&format!(
            "SELECT {COLUMNS}, secret_sha256, extract(epoch FROM expires_at - now())::float8 AS lasts_seconds,
                coalesce(last_used_at > now() - interval '1 minute', false) AS use_is_noted
             FROM tokens WHERE id = $1"
        ))
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|Row { token, secret_sha256, lasts_seconds, use_is_noted }| {
            // The difference is by the database's clock alone.
            let lasts = lasts_seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
            KeptToken { token, secret_sha256, ends_at: lasts.map(|lasts| asked_at + lasts), use_is_noted }
        }))
    }

    /// Notes that a token is used, unless that was noted within the last minute.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn note_token_use(&self, id: Uuid) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE tokens SET last_used_at = now()
             WHERE id = $1 AND (last_used_at IS NULL OR last_used_at <= now() - interval '1 minute')",
        )
        .bind(id)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A connection that hears of each token that is revoked or changed from now on.
    ///
    /// # Errors
    /// If it can't be made.
    pub async fn listen_to_tokens(&self) -> Result<TokenChanges, StoreError> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        // So that a connection that broke is heard of at once, and not when there is another.
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(TokenChanges { listener })
    }
}

/// Hears of tokens that change.
#[derive(Debug)]
pub struct TokenChanges {
    listener: PgListener,
}

impl TokenChanges {
    /// Waits for the next change; `None` when the connection broke, and some may have been missed.
    pub async fn next(&mut self) -> Option<()> {
        match self.listener.try_recv().await {
            Ok(Some(_)) => Some(()),
            Ok(None) | Err(_) => None,
        }
    }
}

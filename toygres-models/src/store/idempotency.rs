//! Answers to requests that carry an Idempotency-Key, kept for the requests' repeats.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::types::Json;

use super::{Operation, Store, StoreError};

/// An answer as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptAnswer {
    /// The HTTP status.
    pub status: u16,
    /// Those headers that belong to the answer rather than to its transport.
    pub headers: BTreeMap<String, String>,
    /// The body. Never holds a secret.
    pub body: Vec<u8>,
}

/// A key that was taken for a request. Once it has run out another server may take the key, and this one neither
/// answers for it nor frees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    key: String,
    /// Tells it from a later one of the same key.
    until: DateTime<Utc>,
}

/// What is known of a request that carries a key.
#[derive(Debug)]
pub enum Reservation {
    /// Nobody has asked for it; the caller is to do it now.
    Ours(Hold),
    /// It was answered.
    Answered(KeptAnswer),
    /// A server is at work on it, or was killed at it a moment ago.
    AtWork,
    /// The key was used for another request.
    OtherRequest,
}

impl Store {
    /// Takes a key for a request, for `hold` at most, unless it is taken.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn reserve_idempotency_key(
        &self,
        key: &str,
        request_sha256: &[u8],
        hold: Duration,
    ) -> Result<Reservation, StoreError> {
        // One whose server was killed is taken over once its hold is past.
        let taken: Option<(DateTime<Utc>,)> = sqlx::query_as(
            "INSERT INTO idempotency_keys AS kept (key, request_sha256, held_until)
             VALUES ($1, $2, now() + make_interval(secs => $3))
             ON CONFLICT (key) DO UPDATE SET held_until = EXCLUDED.held_until
                WHERE kept.status IS NULL AND kept.held_until < now() AND kept.request_sha256 = EXCLUDED.request_sha256
             RETURNING held_until",
        )
        .bind(key)
        .bind(request_sha256)
        .bind(hold.as_secs_f64())
        .fetch_optional(&self.pool)
        .await?;
        if let Some((until,)) = taken {
            return Ok(Reservation::Ours(Hold { key: key.to_owned(), until }));
        }
        type Row = (Vec<u8>, Option<i16>, Option<Json<BTreeMap<String, String>>>, Option<Vec<u8>>);
        let row: Option<Row> =
            sqlx::query_as("SELECT request_sha256, status, headers, body FROM idempotency_keys WHERE key = $1")
                .bind(key)
                .fetch_optional(&self.pool)
                .await?;
        Ok(match row {
            Some((sha256, ..)) if sha256 != request_sha256 => Reservation::OtherRequest,
            Some((_, Some(status), headers, body)) => Reservation::Answered(KeptAnswer {
                status: u16::try_from(status).unwrap_or(500),
                headers: headers.map(|headers| headers.0).unwrap_or_default(),
                body: body.unwrap_or_default(),
            }),
            // Given up between the two looks, or still at work.
            _ => Reservation::AtWork,
        })
    }

    /// Keeps the answer to the request that a key is held for, unless another server has taken it over.
    ///
    /// # Errors
    /// If the database fails; the key is free again when its hold is past.
    pub async fn keep_answer(&self, hold: &Hold, answer: &KeptAnswer) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE idempotency_keys SET status = $3, headers = $4, body = $5
             WHERE key = $1 AND held_until = $2 AND status IS NULL",
        )
        .bind(&hold.key)
        .bind(hold.until)
        .bind(i16::try_from(answer.status).unwrap_or(500))
        .bind(Json(&answer.headers))
        .bind(&answer.body)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Frees a key whose request wasn't carried out, so that its repeat is, unless another server has taken it over.
    ///
    /// # Errors
    /// If the database fails; the key is free again when its hold is past.
    pub async fn release_idempotency_key(&self, hold: &Hold) -> Result<(), StoreError> {
        // Where an operation was begun after all, the key stays its own.
        sqlx::query(
            "DELETE FROM idempotency_keys
             WHERE key = $1 AND held_until = $2 AND status IS NULL
                AND NOT EXISTS (SELECT FROM operations WHERE idempotency_key = $1)",
        )
        .bind(&hold.key)
        .bind(hold.until)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The operation that a request with that key began.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn operation_by_idempotency_key(&self, key: &str) -> Result<Option<Operation>, StoreError> {
        let id: Option<(uuid::Uuid,)> =
            sqlx::query_as("SELECT id FROM operations WHERE idempotency_key = $1").bind(key).fetch_optional(&self.pool).await?;
        match id {
            Some((id,)) => self.operation(id).await,
            None => Ok(None),
        }
    }

    /// Forgets the answers that are older than `kept_for`, and whose operations they were: the key is free then.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn forget_answers(&self, kept_for: Duration) -> Result<u64, StoreError> {
        sqlx::query(
            "UPDATE operations SET idempotency_key = NULL
             WHERE idempotency_key IS NOT NULL AND created_at < now() - make_interval(secs => $1)",
        )
        .bind(kept_for.as_secs_f64())
        .execute(&self.pool)
        .await?;
        let gone = sqlx::query("DELETE FROM idempotency_keys WHERE created_at < now() - make_interval(secs => $1)")
            .bind(kept_for.as_secs_f64())
            .execute(&self.pool)
            .await?;
        Ok(gone.rows_affected())
    }
}

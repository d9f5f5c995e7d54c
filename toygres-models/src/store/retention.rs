//! Forgetting what is old, so that no table grows for ever. Each verb takes a small part at a time, may be
//! repeated, and may be done by several servers.

use std::time::Duration;

use uuid::Uuid;

use super::{Store, StoreError, commit};

/// Held by the one transaction that prunes events.
const PRUNING_LOCK: i64 = 7_846_919;

impl Store {
    /// Removes the oldest events, at most `limit` of those that are older than `kept_for`, and notes up to
    /// where that went in the same transaction. How many were removed; none while another server is at
    /// it.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn prune_events(&self, kept_for: Duration, limit: i64) -> Result<u64, StoreError> {
        let mut tx = self.pool.begin().await?;
        let (ours,): (bool,) =
            sqlx::query_as("SELECT pg_try_advisory_xact_lock($1)").bind(PRUNING_LOCK).fetch_one(&mut *tx).await?;
        if !ours {
            return Ok(0);
        }
        // From the front and without a gap: a time may be earlier than that of an event with a smaller id,
        // as it is the transaction's beginning.
        let (boundary,): (Option<i64>,) = sqlx::query_as(
            "WITH oldest AS (
                SELECT id, created_at < now() - make_interval(secs => $1) AS is_old FROM events ORDER BY id LIMIT $2)
             SELECT max(id) FROM oldest WHERE id < coalesce((SELECT min(id) FROM oldest WHERE NOT is_old), 9223372036854775807)",
        )
        .bind(kept_for.as_secs_f64())
        .bind(limit)
        .fetch_one(&mut *tx)
        .await?;
        let Some(boundary) = boundary else { return Ok(0) };
        let gone = sqlx::query("DELETE FROM events WHERE id <= $1").bind(boundary).execute(&mut *tx).await?;
        sqlx::query("UPDATE event_horizon SET pruned_through = greatest(pruned_through, $1)")
            .bind(boundary)
            .execute(&mut *tx)
            .await?;
        commit(tx).await?;
        Ok(gone.rows_affected())
    }

    /// At most `limit` operations that ended longer than `kept_for` ago and that nothing on record refers
    /// to. Of an instance that lives, the last one of each kind stays, and the last that succeeded or failed:
    /// they tell how the instance came to be what it is.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn old_operations(&self, kept_for: Duration, limit: i64) -> Result<Vec<Uuid>, StoreError> {
        let rows: Vec<(Uuid,)> = sqlx::query_as(
            "SELECT o.id FROM operations o JOIN instances i ON i.id = o.instance_id
             WHERE o.state NOT IN ('pending', 'running') AND o.finished_at < now() - make_interval(secs => $1)
                AND NOT EXISTS (SELECT FROM events e WHERE e.operation_id = o.id)
                AND NOT EXISTS (SELECT FROM operations r WHERE r.retry_of = o.id)
                AND (i.state = 'deleted' OR EXISTS (
                    SELECT FROM operations n WHERE n.instance_id = o.instance_id AND n.kind = o.kind AND n.id > o.id
                        AND (n.state IN ('succeeded', 'failed') OR o.state = 'cancelled')))
             ORDER BY o.created_at LIMIT $2",
        )
        .bind(kept_for.as_secs_f64())
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// Removes operations that [`old_operations`](Self::old_operations) gave, with their steps.
    ///
    /// # Errors
    /// If the database fails; if something refers to one of them now, none is removed.
    pub async fn forget_operations(&self, ids: &[Uuid]) -> Result<u64, StoreError> {
        let gone = sqlx::query("DELETE FROM operations WHERE id = ANY($1)").bind(ids).execute(&self.pool).await?;
        Ok(gone.rows_affected())
    }

    /// Removes the records of at most `limit` instances that were deleted longer than `kept_for` ago, and
    /// of which no event and no operation is left.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn forget_deleted_instances(&self, kept_for: Duration, limit: i64) -> Result<u64, StoreError> {
        let gone = sqlx::query(
            "DELETE FROM instances WHERE id IN (
                SELECT id FROM instances i
                WHERE state = 'deleted' AND deleted_at < now() - make_interval(secs => $1)
                    AND NOT EXISTS (SELECT FROM events e WHERE e.instance_id = i.id)
                    AND NOT EXISTS (SELECT FROM operations o WHERE o.instance_id = i.id)
                LIMIT $2)",
        )
        .bind(kept_for.as_secs_f64())
        .bind(limit)
        .execute(&self.pool)
        .await?;
        Ok(gone.rows_affected())
    }
}

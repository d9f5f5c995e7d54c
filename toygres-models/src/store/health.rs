//! Instances' health: which of them a sweep looks at, what was found, and how it was before.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::events::{NewEvent, insert_event};
use super::instances::lock_instance;
use super::{Instance, Store, StoreError, commit};
use crate::{Health, HealthReason, HealthReasonKind, HealthStatus, InstanceKey, InstanceState, OperationKind, PlatformName};

/// How many changes of an instance's health are kept.
const CHANGES_KEPT: i64 = 200;
/// What changes that often within ten minutes is told once, not each time.
const FLAPPING_FROM: i64 = 10;

/// Kinds of events that tell of an instance's health alone.
const HEALTHY: &str = "instance_healthy";
const DEGRADED: &str = "instance_degraded";
const UNHEALTHY: &str = "instance_unhealthy";
const UNREACHABLE: &str = "platform_unreachable";
/// That of a platform whose server has ended, and will be started again.
const SERVER_EXITED: &str = "server_exited";
pub(super) const FLAPPING: &str = "instance_flapping";

/// A part of a place's instances, which one workflow looks at again and again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shard {
    /// The id of a machine or a cluster, or the platform's name.
    pub place: String,
    /// Its number, from 0.
    pub number: i32,
    /// How many there are.
    pub of: i32,
}

impl Shard {
    /// The id of the workflow that sweeps it.
    #[must_use]
    pub fn workflow_id(&self) -> String {
        format!("health-{}-{}-of-{}", self.place, self.number, self.of)
    }
}

/// When a shard was last looked at as a whole.
#[derive(Debug, Clone, PartialEq, sqlx_macros::FromRow)]
pub struct Sweep {
    /// The shard's place.
    pub place: String,
    /// The shard's number.
    pub shard: i32,
    /// How often it is looked at.
    pub interval_seconds: f64,
    /// How long the last look took.
    pub took_seconds: f64,
    /// How many instances it looked at.
    pub instances: i32,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
}

/// How many instances are like that.
#[derive(Debug, Clone, PartialEq, Eq, sqlx_macros::FromRow)]
pub struct InstanceCount {
    /// Where they run.
    pub platform: String,
    /// Where they are in their lives.
    pub state: String,
    /// How they are; `none` where they have no health.
    pub health: String,
    /// How many.
    pub instances: i64,
}

/// How many operations are like that.
#[derive(Debug, Clone, PartialEq, Eq, sqlx_macros::FromRow)]
pub struct OperationCount {
    /// What they do.
    pub kind: String,
    /// Where they are.
    pub state: String,
    /// How many.
    pub operations: i64,
}

/// A change of an instance's health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, sqlx_macros::FromRow, ToSchema)]
pub struct HealthChange {
    /// When it was seen.
    pub at: DateTime<Utc>,
    /// How the instance was from then on.
    pub status: HealthStatus,
    /// Why it wasn't healthy.
    #[schema(value_type = Vec<HealthReason>)]
    pub reasons: Json<Vec<HealthReason>>,
}

impl HealthChange {
    fn is(&self, health: &Health) -> bool {
        self.status == health.status && self.reasons.iter().map(|reason| reason.kind).eq(health.kinds())
    }
}

impl Store {
    /// The instances of a shard that are to run and that no operation is changing, in order of namespace and name.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn instances_to_probe(
        &self,
        shard: &Shard,
        after: Option<&InstanceKey>,
        limit: i64,
    ) -> Result<Vec<Instance>, StoreError> {
        let (namespace, name) = after.map_or(("", ""), |key| (key.namespace.as_str(), key.name.as_str()));
        Ok(sqlx::query_as(&format!(
            "SELECT {} FROM instances i
             WHERE state = 'running' AND coalesce(cluster_id, platform) = $1 AND abs(hashtext(id::text) % $3) = $2
                AND (namespace, name) > ($4, $5)
                AND NOT EXISTS (SELECT FROM operations o WHERE o.instance_id = i.id AND o.state IN ('pending', 'running'))
             ORDER BY namespace, name LIMIT $6",
            Instance::COLUMNS
        ))
        .bind(&shard.place)
        .bind(shard.number)
        .bind(shard.of)
        .bind(namespace)
        .bind(name)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Notes an instance's health as it was seen by a look that began then, by that sweep or by somebody who asked. A change is an
    /// event, but for one to or from `unknown`: that is a matter of the platform. `false` if the look tells nothing: something
    /// happened to the server meanwhile, or an operation ends it.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn record_health(
        &self,
        id: Uuid,
        seen: &Health,
        looked_at: DateTime<Utc>,
        sweep_id: Option<&str>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Some(instance) = lock_instance(&mut tx, id).await? else { return Ok(false) };
        let is_outdated = instance.status.health_since.is_some_and(|since| since > looked_at);
        if is_outdated || (seen.status != HealthStatus::Healthy && ends_by_operation(&mut tx, &instance, looked_at).await?) {
            return Ok(false);
        }
        if let Some((kind, message)) = set_health(&mut tx, &instance, seen, sweep_id).await? {
            let event = NewEvent::of(&instance, kind, &message).because("seen when it was looked at");
            insert_event(&mut tx, &event).await?;
        }
        commit(tx).await?;
        Ok(true)
    }

    /// Notes that a shard was looked at as a whole.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn finish_sweep(
        &self,
        shard: &Shard,
        interval_seconds: f64,
        took_seconds: f64,
        instances: i32,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO sweeps (place, shard, interval_seconds, took_seconds, instances, finished_at)
             VALUES ($1, $2, $3, $4, $5, clock_timestamp())
             ON CONFLICT (place, shard) DO UPDATE SET interval_seconds = $3, took_seconds = $4, instances = $5,
                finished_at = clock_timestamp()",
        )
        .bind(&shard.place)
        .bind(shard.number)
        .bind(interval_seconds)
        .bind(took_seconds)
        .bind(instances)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// When each shard was last looked at.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn sweeps(&self) -> Result<Vec<Sweep>, StoreError> {
        let sweeps =
            "SELECT place, shard, interval_seconds, took_seconds, instances, finished_at FROM sweeps ORDER BY place, shard";
        Ok(sqlx::query_as(sweeps).fetch_all(&self.pool).await?)
    }

    /// How many instances there are of each kind.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn instance_counts(&self) -> Result<Vec<InstanceCount>, StoreError> {
        let counts = "SELECT platform, state, coalesce(status ->> 'health_status', 'none') AS health, count(*) AS instances
                      FROM instances WHERE state <> 'deleted' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3";
        Ok(sqlx::query_as(counts).fetch_all(&self.pool).await?)
    }

    /// How many operations of each kind are on record.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn operation_counts(&self) -> Result<Vec<OperationCount>, StoreError> {
        let counts = "SELECT kind, state, count(*) AS operations FROM operations GROUP BY 1, 2 ORDER BY 1, 2";
        Ok(sqlx::query_as(counts).fetch_all(&self.pool).await?)
    }

    /// The latest changes of an instance's health, the newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn health_changes(&self, id: Uuid, limit: i64) -> Result<Vec<HealthChange>, StoreError> {
        let changes = "SELECT at, status, reasons FROM health_changes WHERE instance_id = $1 ORDER BY at DESC LIMIT $2";
        Ok(sqlx::query_as(changes).bind(id).bind(limit).fetch_all(&self.pool).await?)
    }

    /// Tells that a platform can't be asked, or can again, unless that was told already. Not of an instance, nor by each shard:
    /// one cause is one event.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn record_platform_reached(
        &self,
        platform: PlatformName,
        place: &str,
        failure: Option<&str>,
    ) -> Result<(), StoreError> {
        let cause = format!("a sweep of the {platform} platform, {place}");
        let mut tx = self.pool.begin().await?;
        // Of several shards' one at a time.
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))").bind(&cause).execute(&mut *tx).await?;
        let last = "SELECT kind FROM events WHERE instance_id IS NULL AND kind LIKE 'platform%' AND cause = $1
                    ORDER BY id DESC LIMIT 1";
        let last: Option<(String,)> = sqlx::query_as(last).bind(&cause).fetch_optional(&mut *tx).await?;
        let was_reached = last.is_none_or(|(kind,)| kind != UNREACHABLE);
        if was_reached == failure.is_none() {
            return Ok(());
        }
        let event = match failure {
            Some(words) => NewEvent::elsewhere(UNREACHABLE, words),
            None => NewEvent::elsewhere("platform_reached", "its instances can be looked at again"),
        };
        insert_event(&mut tx, &event.because(&cause)).await?;
        commit(tx).await
    }
}

/// Whether an operation at work, or one that has ended a moment ago or since then, ends the instance's server: what happens to it
/// meanwhile is told by the operation.
pub(super) async fn ends_by_operation(
    connection: &mut PgConnection,
    instance: &Instance,
    since: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let ends: Vec<_> = OperationKind::ALL.iter().filter(|kind| kind.ends_server).map(|kind| kind.name).collect();
    let (ends,): (bool,) = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM operations WHERE instance_id = $1 AND kind = ANY($2)
            AND (state IN ('pending', 'running') OR finished_at > least(now() - interval '2 s', $3)))",
    )
    .bind(instance.id)
    .bind(ends)
    .bind(since)
    .fetch_one(connection)
    .await?;
    Ok(ends)
}

/// Notes an instance's health; the kind and the words of the event that it is, where it is one. Only an instance that is to run
/// has a health. The caller holds its row.
pub(super) async fn set_health(
    connection: &mut PgConnection,
    instance: &Instance,
    seen: &Health,
    sweep_id: Option<&str>,
) -> Result<Option<(&'static str, String)>, StoreError> {
    if instance.state != InstanceState::Running {
        return Ok(None);
    }
    let before = last_changes(connection, instance.id).await?;
    if !before.last.as_ref().is_some_and(|last| last.is(seen)) {
        add_change(connection, instance.id, seen).await?;
    }
    let (times,): (i64,) = sqlx::query_as(
        "SELECT count(*) FROM health_changes
         WHERE instance_id = $1 AND status <> 'unknown' AND at > now() - interval '10 min'",
    )
    .bind(instance.id)
    .fetch_one(&mut *connection)
    .await?;
    let is_flapping = times >= FLAPPING_FROM;
    let mut shown = seen.clone();
    if is_flapping {
        if shown.status == HealthStatus::Healthy {
            shown.status = HealthStatus::Degraded;
        }
        let message = format!("its health changes again and again; `toygres health {}` has when", instance.name);
        shown.reasons.push(HealthReason { kind: HealthReasonKind::Flapping, message });
    }

    let known = instance.status.health();
    let is_swept = sweep_id.is_none() || instance.status.health_check_orchestration_id.as_deref() == sweep_id;
    if known.as_ref() == Some(&shown) && is_swept {
        return Ok(None);
    }
    let mut status = instance.status.0.clone();
    status.set_health(Some(shown.clone()));
    if let Some(sweep_id) = sweep_id {
        status.health_check_orchestration_id = Some(sweep_id.to_owned());
    }
    sqlx::query("UPDATE instances SET status = $2 WHERE id = $1")
        .bind(instance.id)
        .bind(Json(status))
        .execute(&mut *connection)
        .await?;

    // Its platform tells of the server's return as it told of its end.
    let last_event = "SELECT kind FROM events WHERE instance_id = $1 ORDER BY id DESC LIMIT 1";
    let last_event: Option<(String,)> = sqlx::query_as(last_event).bind(instance.id).fetch_optional(connection).await?;
    let is_returning = last_event.is_some_and(|(kind,)| kind == SERVER_EXITED);
    let was_flapping = known.is_some_and(|known| known.kinds().any(|kind| kind == HealthReasonKind::Flapping));
    let is_as_before = match &before.last_known {
        Some(last) => last.is(seen),
        // Its operation told of the first.
        None => seen.status == HealthStatus::Healthy,
    };
    Ok(match (is_flapping, was_flapping, seen.status) {
        (true, false, _) => Some((FLAPPING, shown.words())),
        (true, true, _) | (false, _, HealthStatus::Unknown) => None,
        (false, false, _) if is_as_before => None,
        (false, false, HealthStatus::Healthy) if is_returning => None,
        (false, _, HealthStatus::Healthy) => Some((HEALTHY, "it answers SQL".to_owned())),
        (false, _, HealthStatus::Degraded) => Some((DEGRADED, shown.words())),
        (false, _, HealthStatus::Unhealthy) => Some((UNHEALTHY, shown.words())),
    })
}

struct LastChanges {
    last: Option<HealthChange>,
    /// The last one that isn't `unknown`.
    last_known: Option<HealthChange>,
}

async fn last_changes(connection: &mut PgConnection, id: Uuid) -> Result<LastChanges, StoreError> {
    let changes = "SELECT at, status, reasons FROM health_changes WHERE instance_id = $1";
    let newest = format!("{changes} ORDER BY at DESC LIMIT 1");
    let newest_known = format!("{changes} AND status <> 'unknown' ORDER BY at DESC LIMIT 1");
    Ok(LastChanges {
        last: sqlx::query_as(&newest).bind(id).fetch_optional(&mut *connection).await?,
        last_known: sqlx::query_as(&newest_known).bind(id).fetch_optional(connection).await?,
    })
}

async fn add_change(connection: &mut PgConnection, id: Uuid, seen: &Health) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO health_changes (instance_id, at, status, reasons) VALUES ($1, clock_timestamp(), $2, $3)")
        .bind(id)
        .bind(seen.status)
        .bind(Json(&seen.reasons))
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "DELETE FROM health_changes WHERE instance_id = $1 AND at <= (
            SELECT at FROM health_changes WHERE instance_id = $1 ORDER BY at DESC OFFSET $2 LIMIT 1)",
    )
    .bind(id)
    .bind(CHANGES_KEPT)
    .execute(connection)
    .await?;
    Ok(())
}

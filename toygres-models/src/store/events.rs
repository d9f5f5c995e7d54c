//! Events: what happened to instances, and why.

use chrono::{DateTime, Utc};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::health::{FLAPPING, ends_by_operation, set_health};
use super::instances::lock_live_instance;
use super::{Event, Instance, Operation, Requested, Store, StoreError, commit};
use crate::{Health, HealthReasonKind, HealthStatus, InstanceKey, InstanceState, Power};

/// Who did what nobody asked for.
const ACTOR: &str = "toygres";

/// Which events are wanted; everything that is left out lets all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// In one of these namespaces.
    pub namespaces: Option<Vec<String>>,
    /// Those that belong to no namespace as well, where no namespaces are named.
    pub without_namespace: bool,
    /// Of this instance.
    pub instance_id: Option<Uuid>,
    /// Of instances of this name.
    pub instance_name: Option<String>,
    /// Of one of these kinds.
    pub kinds: Option<Vec<String>>,
}

impl EventFilter {
    /// What happened to one instance.
    #[must_use]
    pub fn of_instance(id: Uuid) -> Self {
        Self { instance_id: Some(id), ..Self::default() }
    }

    /// All that happened.
    #[must_use]
    pub fn everything() -> Self {
        Self { without_namespace: true, ..Self::default() }
    }

    /// Whether it lets an event through: the same as in SQL below.
    #[must_use]
    pub fn lets_through(&self, event: &Event) -> bool {
        let in_namespace = match (&self.namespaces, &event.namespace) {
            (Some(wanted), Some(namespace)) => wanted.contains(namespace),
            (Some(_), None) => false,
            (None, Some(_)) => true,
            (None, None) => self.without_namespace,
        };
        in_namespace
            && (self.instance_id.is_none() || self.instance_id == event.instance_id)
            && (self.instance_name.is_none() || self.instance_name == event.instance_name)
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&event.kind))
    }

    fn push_to<'a>(&'a self, query: &mut QueryBuilder<'a, Postgres>) {
        if let Some(namespaces) = &self.namespaces {
            query.push(" AND namespace = ANY(").push_bind(namespaces).push(")");
        } else if !self.without_namespace {
            query.push(" AND namespace IS NOT NULL");
        }
        if let Some(id) = self.instance_id {
            query.push(" AND instance_id = ").push_bind(id);
        }
        if let Some(name) = &self.instance_name {
            query.push(" AND instance_name = ").push_bind(name);
        }
        if let Some(kinds) = &self.kinds {
            query.push(" AND kind = ANY(").push_bind(kinds).push(")");
        }
    }
}

/// Where a list or a stream of events begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventStart {
    /// After the newest one.
    Now,
    /// After the one of that id; after 0 are all that are kept.
    After(i64),
    /// With the first one of that time or later.
    Since(DateTime<Utc>),
    /// With so many of the latest that the filter lets through.
    Last(i64),
}

impl Store {
    /// An instance's events in order, after the one of that number.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn events(&self, instance_id: Uuid, after: i64, limit: i64) -> Result<Vec<Event>, StoreError> {
        self.events_matching(&EventFilter::of_instance(instance_id), after, limit).await
    }

    /// Events in order, after the one of that number. A reader that goes on after the last of them misses none:
    /// ids are in the order in which events become visible.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn events_matching(&self, filter: &EventFilter, after: i64, limit: i64) -> Result<Vec<Event>, StoreError> {
        let mut query = QueryBuilder::new(
            "SELECT id, instance_id, namespace, instance_name, kind, message, cause, actor, operation_id, created_at FROM events WHERE id > ",
        );
        query.push_bind(after);
        filter.push_to(&mut query);
        query.push(" ORDER BY id LIMIT ").push_bind(limit);
        Ok(query.build_query_as().fetch_all(&self.pool).await?)
    }

    /// After which id a list or a stream that begins there goes on.
    ///
    /// # Errors
    /// [`StoreError::EventsPruned`] and [`StoreError::NoSuchEvent`] for an id that nothing can be told to
    /// have come after.
    pub async fn event_position(&self, filter: &EventFilter, start: EventStart) -> Result<i64, StoreError> {
        let (pruned_through, oldest, newest): (i64, i64, i64) = sqlx::query_as(
            "SELECT pruned_through, coalesce((SELECT min(id) FROM events), pruned_through + 1),
                greatest(pruned_through, (SELECT max(id) FROM events)) FROM event_horizon",
        )
        .fetch_one(&self.pool)
        .await?;
        let before: Option<(i64,)> = match start {
            EventStart::Now => return Ok(newest),
            EventStart::After(id) if id > newest => return Err(StoreError::NoSuchEvent { id }),
            EventStart::After(after) if after > 0 && after < pruned_through => {
                return Err(StoreError::EventsPruned { after, oldest });
            }
            EventStart::After(id) => return Ok(id.max(pruned_through)),
            EventStart::Since(time) => {
                let first = "SELECT id - 1 FROM events WHERE created_at >= $1 ORDER BY id LIMIT 1";
                let first = sqlx::query_as(first).bind(time).fetch_optional(&self.pool).await?;
                return Ok(first.map_or(newest, |(id,)| id));
            }
            EventStart::Last(count) => {
                let mut query = QueryBuilder::new("SELECT id FROM events WHERE true");
                filter.push_to(&mut query);
                query.push(" ORDER BY id DESC LIMIT 1 OFFSET ").push_bind(count);
                query.build_query_as().fetch_optional(&self.pool).await?
            }
        };
        Ok(before.map_or(pruned_through, |(id,)| id))
    }

    /// Up to which id events were pruned.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn events_pruned_through(&self) -> Result<i64, StoreError> {
        let (id,) = sqlx::query_as("SELECT pruned_through FROM event_horizon").fetch_one(&self.pool).await?;
        Ok(id)
    }

    /// Writes down what the platform saw happen to a live instance, and its health after it. An
    /// instance that isn't there (any more), is being deleted, or runs on another cluster than
    /// `cluster_id` is no error: events and deletions may cross, and names are the same elsewhere.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn record_platform_event(
        &self,
        key: &InstanceKey,
        cluster_id: Option<&str>,
        kind: &str,
        message: &str,
        cause: &str,
        healthy: bool,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let instance = match lock_live_instance(&mut tx, key).await {
            Ok(instance) => instance,
            Err(StoreError::InstanceNotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        if instance.state == InstanceState::Deleting || instance.cluster_id.as_deref() != cluster_id {
            return Ok(());
        }
        if !healthy && (instance.spec.power == Power::Stopped || ends_by_operation(&mut tx, &instance, Utc::now()).await?) {
            return Ok(());
        }
        let health = match healthy {
            true => Health::healthy(),
            false => Health::of(HealthStatus::Unhealthy, HealthReasonKind::NotReady, message),
        };
        if let Some((FLAPPING, words)) = set_health(&mut tx, &instance, &health, None).await? {
            insert_event(&mut tx, &NewEvent { cause, ..NewEvent::of(&instance, FLAPPING, &words) }).await?;
        }
        insert_event(&mut tx, &NewEvent { cause, ..NewEvent::of(&instance, kind, message) }).await?;
        commit(tx).await
    }

    /// Whether an event of that kind happened to an instance since then.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn has_event_since(&self, instance_id: Uuid, kind: &str, since: DateTime<Utc>) -> Result<bool, StoreError> {
        let (has,) =
            sqlx::query_as("SELECT EXISTS (SELECT FROM events WHERE instance_id = $1 AND kind = $2 AND created_at > $3)")
                .bind(instance_id)
                .bind(kind)
                .bind(since)
                .fetch_one(&self.pool)
                .await?;
        Ok(has)
    }

    /// Writes down what somebody asked for that is no operation, before it is done.
    ///
    /// # Errors
    /// If the database fails. Nothing is written then.
    pub async fn record_request(
        &self,
        instance: &Instance,
        kind: &str,
        message: &str,
        requested: &Requested,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        insert_event(&mut tx, &NewEvent::of(instance, kind, message).asked_by(requested)).await?;
        commit(tx).await
    }
}

/// An event to be written.
pub(super) struct NewEvent<'a> {
    instance: Option<&'a Instance>,
    namespace: Option<&'a str>,
    kind: &'a str,
    message: &'a str,
    cause: &'a str,
    actor: &'a str,
    operation_id: Option<Uuid>,
}

impl<'a> NewEvent<'a> {
    /// To an instance, by itself.
    pub(super) fn of(instance: &'a Instance, kind: &'a str, message: &'a str) -> Self {
        Self { instance: Some(instance), namespace: Some(&instance.namespace), ..Self::elsewhere(kind, message) }
    }

    /// To a namespace as a whole.
    pub(super) fn in_namespace(namespace: &'a str, kind: &'a str, message: &'a str) -> Self {
        Self { namespace: Some(namespace), ..Self::elsewhere(kind, message) }
    }

    /// To what is in no namespace.
    pub(super) fn elsewhere(kind: &'a str, message: &'a str) -> Self {
        Self { instance: None, namespace: None, kind, message, cause: "", actor: ACTOR, operation_id: None }
    }

    /// For that reason.
    pub(super) fn because(self, cause: &'a str) -> Self {
        Self { cause, ..self }
    }

    /// Because somebody asked for it.
    pub(super) fn asked_by(self, requested: &'a Requested) -> Self {
        Self { cause: &requested.cause, actor: &requested.actor, ..self }
    }

    /// Because somebody asked for that operation.
    pub(super) fn requested(self, requested: &'a Requested, operation_id: Uuid) -> Self {
        Self { operation_id: Some(operation_id), ..self.asked_by(requested) }
    }

    /// In that operation, for the caller that asked for it.
    pub(super) fn in_operation(self, operation: &'a Operation) -> Self {
        Self { actor: &operation.actor, cause: &operation.cause, operation_id: Some(operation.id), ..self }
    }
}

/// Writes an event. It is the last thing that a transaction does: another transaction that writes one waits for
/// the transaction's end, so that events become visible in the order of their ids.
pub(super) async fn insert_event(connection: &mut sqlx::PgConnection, event: &NewEvent<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO events (instance_id, namespace, instance_name, kind, message, cause, actor, operation_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(event.instance.map(|instance| instance.id))
    .bind(event.namespace)
    .bind(event.instance.map(|instance| &instance.name))
    .bind(event.kind)
    .bind(event.message)
    .bind(event.cause)
    .bind(event.actor)
    .bind(event.operation_id)
    .execute(connection)
    .await?;
    Ok(())
}

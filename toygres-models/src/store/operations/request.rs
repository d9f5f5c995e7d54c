//! Requests that change an instance: the new spec and the operation that applies it, written together or not at all. One path for every kind.

use serde_json::{Value, json};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use crate::instance::{Effect, field};
use crate::store::events::{NewEvent, insert_event};
use crate::store::instances::lock_live_instance;
use crate::store::{Instance, Operation, Requested, Store, StoreError, commit};
use crate::{InstanceKey, InstanceSpec, InstanceState, Namespace, OperationKind};

/// What became of a request to change an instance's spec.
#[derive(Debug)]
pub enum ChangeRequested {
    /// The spec is like that already, and the platform was brought to it.
    Unchanged(Box<Instance>),
    /// Done: what changed is only on record.
    Done(Box<Instance>),
    /// This operation brings the platform to it.
    New(Box<Operation>),
}

/// What became of a request for an operation.
#[derive(Debug)]
pub enum OperationRequested {
    /// This operation does it.
    New(Operation),
    /// This operation does it already.
    AtWork(Operation),
}

/// An operation to be written.
pub(in crate::store) struct NewOperation<'a> {
    pub instance: &'a Instance,
    pub kind: OperationKind,
    pub input: Value,
    pub spec: &'a InstanceSpec,
    pub retry_of: Option<Uuid>,
}

impl<'a> NewOperation<'a> {
    /// One that leaves the spec as it is.
    pub fn on(instance: &'a Instance, kind: OperationKind) -> Self {
        Self { instance, kind, input: json!({}), spec: &instance.spec, retry_of: None }
    }

    /// What it does, for a person: what changes, or else the kind.
    pub fn summary(&self) -> String {
        let differences = self.instance.spec.differences(self.spec);
        let changes: Vec<_> = differences
            .iter()
            .filter_map(|difference| field(difference.field).map(|field| field.summary(&difference.to)))
            .collect();
        if changes.is_empty() { self.kind.to_string() } else { changes.join(", ") }
    }
}

impl Store {
    /// Changes an instance's spec to what `change` makes of it. Fields that only the record has are changed with that;
    /// for the rest, and where the platform is behind the spec or `repair` is asked for, an operation is written.
    ///
    /// # Errors
    /// [`StoreError::InstanceNotFound`]; [`StoreError::GenerationMismatch`] if the spec was changed
    /// since `expected_generation`; [`StoreError::NotNow`] if it is in a state, or has an operation at
    /// work, that the change can't go with. Nothing is written then.
    pub async fn change_instance(
        &self,
        key: &InstanceKey,
        expected_generation: Option<i64>,
        spec: &InstanceSpec,
        repair: bool,
        requested: &Requested,
    ) -> Result<ChangeRequested, StoreError> {
        let mut tx = self.pool.begin().await?;
        let before = lock_live_instance(&mut tx, key).await?;
        before.expect_generation(expected_generation)?;
        let differences = before.spec.differences(spec);
        let on_record_only = differences
            .iter()
            .all(|difference| field(difference.field).is_some_and(|field| field.effect(&difference.to) == Effect::Record));
        if differences.is_empty() && !before.is_behind() && !repair {
            return Ok(ChangeRequested::Unchanged(Box::new(before)));
        }
        if before.state == InstanceState::Deleting {
            return Err(StoreError::NotNow(format!("{key} is being deleted")));
        }
        let operation = NewOperation { spec, ..NewOperation::on(&before, OperationKind::UPDATE) };
        let summary = operation.summary();
        if !differences.is_empty() && on_record_only {
            let after = write_spec(&mut tx, &before, spec, true).await?;
            insert_event(&mut tx, &NewEvent::of(&after, "instance_updated", &summary).asked_by(requested)).await?;
            commit(tx).await?;
            return Ok(ChangeRequested::Done(Box::new(after)));
        }
        expect_can_begin(&mut tx, &before, OperationKind::UPDATE).await?;
        let operation = insert_operation(&mut tx, &operation, requested).await?;
        write_spec(&mut tx, &before, spec, false).await?;
        let event = NewEvent::of(&before, "update_requested", &summary).requested(requested, operation.id);
        insert_event(&mut tx, &event).await?;
        commit(tx).await?;
        Ok(ChangeRequested::New(Box::new(operation)))
    }

    /// Writes an operation that leaves the spec as it is: a verb, or a delete.
    ///
    /// # Errors
    /// [`StoreError::InstanceNotFound`]; [`StoreError::GenerationMismatch`]; [`StoreError::Protected`] if it removes
    /// data of an instance whose deletion is refused; [`StoreError::NotNow`] as with a change. Nothing is written then.
    pub async fn request_operation(
        &self,
        key: &InstanceKey,
        kind: OperationKind,
        input: Value,
        expected_generation: Option<i64>,
        requested: &Requested,
    ) -> Result<OperationRequested, StoreError> {
        let mut tx = self.pool.begin().await?;
        let instance = lock_live_instance(&mut tx, key).await?;
        if kind.joins
            && let Some((id, _)) = at_work(&mut tx, instance.id).await?.into_iter().find(|(_, other)| *other == kind)
        {
            drop(tx);
            let operation = self.operation(id).await?;
            return operation.map(OperationRequested::AtWork).ok_or_else(|| StoreError::InstanceNotFound(key.to_string()));
        }
        instance.expect_generation(expected_generation)?;
        if kind.removes_data && instance.spec.delete_protection {
            return Err(StoreError::Protected(key.to_string()));
        }
        expect_can_begin(&mut tx, &instance, kind).await?;
        set_state_at_work(&mut tx, &instance, kind).await?;
        let operation = NewOperation { input, ..NewOperation::on(&instance, kind) };
        let operation = insert_operation(&mut tx, &operation, requested).await?;
        let (event, message) = (format!("{}_requested", kind.name.replace('-', "_")), format!("it was {}", instance.state));
        insert_event(&mut tx, &NewEvent::of(&instance, &event, &message).requested(requested, operation.id)).await?;
        commit(tx).await?;
        Ok(OperationRequested::New(operation))
    }

    /// The operation that a request with this key wrote, and the digest of that request.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn operation_by_idempotency_key(&self, key: &str) -> Result<Option<(Operation, Vec<u8>)>, StoreError> {
        let found: Option<(Uuid, Vec<u8>)> =
            sqlx::query_as("SELECT id, request_sha256 FROM operations WHERE idempotency_key = $1")
                .bind(key)
                .fetch_optional(&self.pool)
                .await?;
        let Some((id, digest)) = found else { return Ok(None) };
        Ok(self.operation(id).await?.map(|operation| (operation, digest)))
    }
}

/// Writes a spec and counts the change. Where only the record changed, the platform stays as near to it as it was.
pub(in crate::store) async fn write_spec(
    tx: &mut PgConnection,
    instance: &Instance,
    spec: &InstanceSpec,
    is_observed: bool,
) -> Result<Instance, StoreError> {
    Ok(sqlx::query_as(&format!(
        "UPDATE instances SET spec = $2,
            generation = generation + CASE WHEN spec = $2 THEN 0 ELSE 1 END,
            observed_generation = observed_generation
                + CASE WHEN $3 AND spec <> $2 AND observed_generation = generation THEN 1 ELSE 0 END
         WHERE id = $1 RETURNING {}",
        Instance::COLUMNS
    ))
    .bind(instance.id)
    .bind(Json(spec))
    .bind(is_observed)
    .fetch_one(tx)
    .await?)
}

/// Fails unless an operation of that kind may begin on the instance now.
pub(in crate::store) async fn expect_can_begin(
    tx: &mut PgConnection,
    instance: &Instance,
    kind: OperationKind,
) -> Result<(), StoreError> {
    let (key, state) = (instance.key(), instance.state);
    if !kind.overtakes
        && let Some((id, other)) = at_work(tx, instance.id).await?.into_iter().next()
    {
        return Err(StoreError::NotNow(format!("the {other} operation {id} is at work on {key}; wait for its end")));
    }
    if kind.may_begin_in(state) {
        return Ok(());
    }
    let only = kind.begins_in_words();
    let start = match state {
        InstanceState::Stopped => {
            format!("; start it first (`toygres start {}{}`)", instance.name, Namespace::flag(&instance.namespace))
        }
        _ => String::new(),
    };
    let participle = kind.participle;
    Err(StoreError::NotNow(format!("{key} is {state}, and only an instance that is {only} can be {participle}{start}")))
}

/// The operations at work on an instance.
async fn at_work(tx: &mut PgConnection, instance_id: Uuid) -> Result<Vec<(Uuid, OperationKind)>, StoreError> {
    Ok(sqlx::query_as("SELECT id, kind FROM operations WHERE instance_id = $1 AND state IN ('pending', 'running') ORDER BY id")
        .bind(instance_id)
        .fetch_all(tx)
        .await?)
}

/// Gives the instance the state that it has while an operation of that kind is at work.
pub(in crate::store) async fn set_state_at_work(
    tx: &mut PgConnection,
    instance: &Instance,
    kind: OperationKind,
) -> Result<(), StoreError> {
    if let Some(state) = kind.state_at_work {
        sqlx::query("UPDATE instances SET state = $2 WHERE id = $1").bind(instance.id).bind(state).execute(tx).await?;
    }
    Ok(())
}

pub(in crate::store) async fn insert_operation(
    tx: &mut PgConnection,
    new: &NewOperation<'_>,
    requested: &Requested,
) -> Result<Operation, StoreError> {
    let instance = new.instance;
    let generation = instance.generation + i64::from(*new.spec != instance.spec.0);
    Ok(sqlx::query_as(&format!(
        "INSERT INTO operations (id, kind, instance_id, namespace, instance_name, place, summary, input, spec_before, spec,
            generation, state_before, cause, actor, idempotency_key, request_sha256, retry_of)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) RETURNING {}",
        Operation::COLUMNS
    ))
    .bind(Uuid::now_v7())
    .bind(new.kind)
    .bind(instance.id)
    .bind(&instance.namespace)
    .bind(&instance.name)
    .bind(instance.place())
    .bind(new.summary())
    .bind(Json(&new.input))
    .bind(&instance.spec)
    .bind(Json(new.spec))
    .bind(generation)
    .bind(instance.state)
    .bind(&requested.cause)
    .bind(&requested.actor)
    .bind(requested.idempotency_key.as_ref().map(|key| &key.key))
    .bind(requested.idempotency_key.as_ref().map(|key| key.request_sha256.as_slice()))
    .bind(new.retry_of)
    .fetch_one(tx)
    .await?)
}

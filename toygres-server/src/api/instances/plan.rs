//! What becomes of an instance when a document is applied to it: the one comparison of the two.

use secrecy::SecretString;
use serde_json::{Map, Value};
use toygres_client::resources::{FieldChange, InstanceManifest, Plan, PlanAction};
use toygres_models::instance::{Effect, field};
use toygres_models::store::{Instance, Operation};
use toygres_models::{InstanceKey, InstanceSpec, InstanceState, Invalid};

use crate::api::http::problem::ApiError;

/// Stands for passwords.
const HIDDEN: &str = "(hidden)";

/// What a document asks for, each field checked by itself.
pub(super) struct Request {
    /// The named fields of the spec.
    pub(super) fields: Map<String, Value>,
    pub(super) password: Option<SecretString>,
}

impl Request {
    /// Checks a document.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub(super) fn check(manifest: &InstanceManifest) -> Result<Self, Invalid> {
        manifest.check()?;
        Ok(Self { fields: manifest.fields.clone(), password: manifest.password.clone().map(Into::into) })
    }

    /// The value of a field that has no default of its own, if the document names it.
    pub(super) fn parsed<T: std::str::FromStr<Err = Invalid>>(&self, field: &str) -> Result<Option<T>, Invalid> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        self.fields.get(field).map(|value| text(value).parse()).transpose()
    }
}

/// What is known of an instance that a document is compared with.
pub(super) struct Known<'a> {
    pub(super) instance: &'a Instance,
    /// The operation that is at work on it.
    pub(super) at_work: Option<&'a Operation>,
    /// Whether its password is the one that is asked for, or none is.
    pub(super) same_password: bool,
    /// Whether others changed something of it on its platform that can be put right.
    pub(super) has_drifted: bool,
}

/// A plan, and the spec that it leads to.
pub(super) struct Planned {
    pub(super) plan: Plan,
    pub(super) spec: InstanceSpec,
    /// Whether the platform is brought to the spec, though that doesn't change.
    pub(super) repair: bool,
}

/// The plan of a document for an instance that isn't there.
pub(super) fn plan_creation(request: &Request) -> Plan {
    let mut changes: Vec<_> = request.fields.iter().map(|(field, to)| change(field, Value::Null, to.clone())).collect();
    changes.extend(request.password.iter().map(|_| change("password", Value::Null, HIDDEN.into())));
    Plan {
        action: PlanAction::Create,
        changes,
        refused: Vec::new(),
        reason: None,
        generation: None,
        unavailable: None,
        expected_seconds: None,
    }
}

/// Compares. What the document doesn't name is left as it is.
pub(super) fn plan(known: &Known<'_>, request: &Request) -> Result<Planned, Invalid> {
    let Known { instance, at_work, same_password, has_drifted } = known;
    let spec = instance.spec.with(&request.fields)?;
    let differences = instance.spec.differences(&spec);
    let all = differences.into_iter().map(|difference| change(difference.field, difference.from, difference.to));
    let (mut refused, changes): (Vec<_>, Vec<_>) = all.partition(|change| change.effect == Effect::Never);
    if !same_password {
        refused.push(change("password", HIDDEN.into(), "(another)".into()));
    }
    let on_record_only = changes.iter().all(|change| change.effect == Effect::Record);
    let is_behind = at_work.is_none() && (instance.is_behind() || *has_drifted);
    let needs_platform = !on_record_only || (changes.is_empty() && is_behind);
    let reason = match (instance.state, at_work) {
        (InstanceState::Deleting | InstanceState::Deleted, _) => {
            Some("is being deleted; its name is free when that is done".to_owned())
        }
        (_, Some(operation)) if needs_platform => {
            Some(format!("has the {} operation {} at work; wait for its end", operation.kind, operation.id))
        }
        _ => None,
    };
    let action = match () {
        () if reason.is_some() || !refused.is_empty() => PlanAction::Refuse,
        () if changes.is_empty() && !needs_platform => PlanAction::None,
        () => PlanAction::Update,
    };
    let unavailable = changes.iter().max_by_key(|change| change.effect).and_then(|change| change.effect.unavailable());
    let plan = Plan {
        action,
        unavailable: unavailable.map(ToOwned::to_owned),
        changes,
        refused,
        reason,
        generation: Some(instance.generation),
        expected_seconds: None,
    };
    Ok(Planned { plan, spec, repair: needs_platform })
}

fn change(name: &str, from: Value, to: Value) -> FieldChange {
    let effect = field(name).map_or(Effect::Never, |field| field.effect(&to));
    FieldChange { field: name.to_owned(), from, to, effect, can_revert: effect != Effect::Never }
}

/// A refused plan's conflict: every field, and why.
pub(super) fn refusal(key: &InstanceKey, plan: &Plan) -> ApiError {
    if let Some(reason) = &plan.reason {
        return ApiError::conflict(format!("{key} {reason}. Nothing was changed"));
    }
    let error = ApiError::conflict(format!(
        "{key} is there already, and what is asked for can't be changed: {}. Nothing was changed; leave that as it is, or choose \
         another name",
        describe(&plan.refused)
    ));
    plan.refused.first().map_or_else(ApiError::internal, |first| error.field(&first.field))
}

/// The conflict of a create whose name is taken by an instance that isn't the one that is asked for.
pub(super) fn taken(key: &InstanceKey, plan: &Plan) -> ApiError {
    if plan.reason.is_some() && plan.refused.is_empty() {
        return refusal(key, plan);
    }
    let differences: Vec<_> = plan.refused.iter().chain(&plan.changes).cloned().collect();
    ApiError::conflict(format!(
        "{key} is there already, and is another one: {}. Nothing was changed; choose another name, or \
         change it by `toygres apply`, as far as that can be changed",
        describe(&differences)
    ))
}

/// `storage_size_gb is 10, not 20`, for each.
fn describe(changes: &[FieldChange]) -> String {
    let one = |change: &FieldChange| match (&change.from, change.field.as_str()) {
        (_, "password") => "the password is another one".to_owned(),
        (Value::Null, field) => format!("{field} isn't set, and is to be {}", plain(&change.to)),
        (from, field) => format!("{field} is {}, not {}", plain(from), plain(&change.to)),
    };
    changes.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// A value as a person writes it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests;

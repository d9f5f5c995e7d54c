//! What becomes of an instance when a document is applied to it: the one comparison of the two.

use serde_json::{Value, json};
use toygres_client::resources::{FieldChange, InstanceManifest, Plan, PlanAction};
use toygres_models::store::Instance;
use toygres_models::{InstanceKey, InstanceState, PostgresVersion};

use super::wanted::{Wanted, named_fields};
use crate::api::http::problem::ApiError;

/// What can be changed. Everything else would need the instance's data to be moved or its server to
/// be another one.
const CHANGEABLE: [&str; 4] = ["labels", "delete_protection", "use_load_balancer", "dns_label"];
/// How an instance is reached. After a change of it that failed, the platform may be neither what was nor what the record
/// says.
const EXPOSURE: [&str; 2] = ["use_load_balancer", "dns_label"];
/// Stands for passwords.
const HIDDEN: &str = "(hidden)";
/// Stands for what a failed change may have left half done.
const IN_DOUBT: &str = "(in doubt)";

/// Compares. What the document doesn't name is left as it is. `same_password` tells whether the
/// instance's password is the wanted one, or none is wanted; `exposure_in_doubt`, whether the last change of how the
/// instance is reached has failed.
pub(super) fn plan(instance: Option<&Instance>, wanted: &Wanted, same_password: bool, exposure_in_doubt: bool) -> Plan {
    let Some(instance) = instance else { return creation(wanted) };
    let (changes, mut refused): (Vec<_>, Vec<_>) = differences(instance, wanted, exposure_in_doubt)
        .into_iter()
        .partition(|change| CHANGEABLE.contains(&change.field.as_str()));
    if !same_password {
        refused.push(FieldChange { field: "password".into(), from: HIDDEN.into(), to: "(another)".into() });
    }
    let reason = match instance.state {
        InstanceState::Running => None,
        InstanceState::Creating if changes.is_empty() => None,
        InstanceState::Creating => Some("is being created; it can be changed when that is done"),
        // Else one that is protected could never be cleared away.
        InstanceState::Failed if is_protection_alone(&changes, wanted) => None,
        InstanceState::Failed => Some(failed(instance)),
        InstanceState::Deleting | InstanceState::Deleted => Some("is being deleted; its name is free when that is done"),
    };
    let action = match () {
        () if reason.is_some() || !refused.is_empty() => PlanAction::Refuse,
        () if changes.is_empty() => PlanAction::None,
        () => PlanAction::Update,
    };
    Plan { action, changes, refused, reason: reason.map(ToOwned::to_owned), revision: Some(instance.revision) }
}

/// A password isn't compared with that of one that failed, which may be gone.
fn is_protection_alone(changes: &[FieldChange], wanted: &Wanted) -> bool {
    wanted.password.is_none() && matches!(changes, [only] if only.field == "delete_protection")
}

/// What there is to say of an instance that failed.
pub(super) fn failed(instance: &Instance) -> &'static str {
    match instance.delete_protection {
        false => "is there, and failed; `toygres get` says why, `toygres delete` clears it away",
        true => {
            "is there, and failed; `toygres get` says why. A document that takes its protection back and changes nothing else \
             lets `toygres delete` clear it away"
        }
    }
}

fn creation(wanted: &Wanted) -> Plan {
    let change = |field: &str, to: Value| FieldChange { field: field.into(), from: Value::Null, to };
    let mut changes: Vec<_> = wanted.named.iter().map(|(field, to)| change(field, to.clone())).collect();
    changes.extend(wanted.password.iter().map(|_| change("password", HIDDEN.into())));
    Plan { action: PlanAction::Create, changes, refused: Vec::new(), reason: None, revision: None }
}

/// Every field that the document names and the instance has otherwise.
fn differences(instance: &Instance, wanted: &Wanted, exposure_in_doubt: bool) -> Vec<FieldChange> {
    let mut has = named_fields(&InstanceManifest::from(instance));
    if exposure_in_doubt {
        has.extend(EXPOSURE.map(|field| (field.to_owned(), IN_DOUBT.into())));
    }
    let change = |field: &str, to: &Value| {
        let from = has.get(field).cloned().unwrap_or_default();
        FieldChange { field: field.to_owned(), from, to: to.clone() }
    };
    let differs = |(field, to): &(&String, &Value)| match field.as_str() {
        // A major is any of its minors.
        "postgres_version" => !wanted.version.zip(version(instance)).is_some_and(|(wanted, has)| wanted.accepts(has)),
        _ => has.get(field.as_str()) != Some(*to),
    };
    let mut changes: Vec<_> = wanted.named.iter().filter(differs).map(|(field, to)| change(field, to)).collect();
    let becomes_private = wanted.named.get("use_load_balancer") == Some(&json!(false)) && instance.dns_label.is_some();
    if becomes_private {
        // Its public name goes with its public address.
        changes.push(change("dns_label", &Value::Null));
    }
    changes
}

/// `None` for one that another release of toygres knows.
fn version(instance: &Instance) -> Option<PostgresVersion> {
    instance.postgres_version.parse().ok()
}

/// A refused plan's conflict: every field, and why.
pub(super) fn refusal(key: &InstanceKey, plan: &Plan) -> ApiError {
    if let Some(reason) = &plan.reason {
        return ApiError::conflict(format!("{key} {reason}. Nothing was changed"));
    }
    let error = ApiError::conflict(format!(
        "{key} is there already, and what is asked for can't be changed yet: {}. Nothing was changed; leave that as it is, choose \
         another name, or delete it first",
        told(&plan.refused)
    ));
    plan.refused.first().map_or_else(ApiError::internal, |first| error.field(&first.field))
}

/// The conflict of a create whose name is taken by an instance that isn't the wanted one.
pub(super) fn taken(key: &InstanceKey, plan: &Plan) -> ApiError {
    if plan.reason.is_some() && plan.refused.is_empty() {
        return refusal(key, plan);
    }
    let differences: Vec<_> = plan.refused.iter().chain(&plan.changes).cloned().collect();
    ApiError::conflict(format!(
        "{key} is there already, and is another one: {}. Nothing was changed; choose another name, delete it first, or change what \
         may change by PUT (`toygres apply`)",
        told(&differences)
    ))
}

/// `storage_size_gb is 10, not 20`, for each.
fn told(changes: &[FieldChange]) -> String {
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

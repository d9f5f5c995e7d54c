//! The spec's fields, and what a change of each does.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// What a change of a field does to the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Only the record changes.
    Record,
    /// The platform changes something around the server, which runs on.
    Live,
    /// The server is stopped until the next change.
    Offline,
    /// The field can't be changed.
    Never,
}

impl Effect {
    /// What clients notice while the change is made, and after it; `None` if nothing.
    #[must_use]
    pub fn unavailable(self) -> Option<&'static str> {
        match self {
            Self::Record | Self::Live | Self::Never => None,
            Self::Offline => Some("connections end, and new ones are refused until the instance is started"),
        }
    }
}

/// A field of [`InstanceSpec`](super::InstanceSpec).
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name in JSON, YAML, SQL and errors.
    pub name: &'static str,
    /// What its change to a value does.
    effect: fn(to: &Value) -> Effect,
    /// What a change to a value is called, where it has a name of its own.
    verb: fn(to: &Value) -> Option<&'static str>,
}

impl Field {
    const fn new(name: &'static str, effect: fn(&Value) -> Effect) -> Self {
        Self { name, effect, verb: |_| None }
    }

    /// What a change to `to` does.
    #[must_use]
    pub fn effect(&self, to: &Value) -> Effect {
        (self.effect)(to)
    }

    /// What a change to `to` is called: `stop`, or `labels: {…}`.
    #[must_use]
    pub fn summary(&self, to: &Value) -> String {
        let shown = || to.as_str().map_or_else(|| to.to_string(), ToOwned::to_owned);
        (self.verb)(to).map_or_else(|| format!("{}: {}", self.name, shown()), ToOwned::to_owned)
    }
}

/// Every field of the spec. A test holds that none is missing.
pub const FIELDS: &[Field] = &[
    Field::new("platform", |_| Effect::Never),
    Field::new("postgres_version", |_| Effect::Never),
    Field::new("owner", |_| Effect::Never),
    Field::new("database", |_| Effect::Never),
    Field::new("extensions", |_| Effect::Live),
    Field::new("storage_size_gb", |_| Effect::Never),
    Field::new("use_load_balancer", |_| Effect::Live),
    Field::new("dns_label", |_| Effect::Live),
    Field::new("cpu", |_| Effect::Never),
    Field::new("memory", |_| Effect::Never),
    Field::new("storage_class", |_| Effect::Never),
    Field::new("disruption_budget", |_| Effect::Live),
    Field::new("labels", |_| Effect::Record),
    Field::new("delete_protection", |_| Effect::Record),
    Field {
        verb: |to| Some(if to == "stopped" { "stop" } else { "start" }),
        ..Field::new("power", |to| if to == "stopped" { Effect::Offline } else { Effect::Live })
    },
];

/// The field of that name.
#[must_use]
pub fn field(name: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.name == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use utoipa::PartialSchema;

    use super::*;
    use crate::InstanceSpec;

    #[test]
    fn every_field_of_the_spec_is_in_the_table() {
        let schema = serde_json::to_value(InstanceSpec::schema()).unwrap();
        let mut in_struct: Vec<_> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let mut in_table: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
        in_struct.sort_unstable();
        in_table.sort_unstable();
        assert_eq!(in_struct, in_table);
    }

    #[test]
    fn a_change_is_called_by_its_verb_or_its_value() {
        assert_eq!(field("power").unwrap().summary(&json!("stopped")), "stop");
        assert_eq!(field("use_load_balancer").unwrap().summary(&json!(true)), "use_load_balancer: true");
    }
}

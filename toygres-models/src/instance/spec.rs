//! What an instance is to be. One struct is the body of `POST` and `PUT`, the column
//! `instances.spec`, the document of `toygres apply` and what the platform is given.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::fields::FIELDS;
use super::schemas;
use crate::{
    Cpu, DatabaseName, DnsLabel, Extensions, Invalid, Labels, Memory, PlatformName, PostgresVersion, RoleName, StorageClass,
    StorageSize,
};

/// Whether an instance's server runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// The server runs, and is started again when it ends.
    #[default]
    Running,
    /// The server is stopped. Data, address and password stay.
    Stopped,
}

/// What an instance is to be, beyond its namespace and name. Holds no secret.
///
/// Each field is validated by its type. Its default is the struct's. Its effect when it changes stands in
/// [`FIELDS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceSpec {
    /// `local` (a server process) or `kubernetes` (a pod); the server's default if left out.
    #[schema(schema_with = schemas::platform)]
    pub platform: PlatformName,
    /// A major or a full version (in quotes); the platform's default if left out.
    #[schema(schema_with = schemas::postgres_version)]
    pub postgres_version: PostgresVersion,
    /// The role that owns the database and that applications log in as. It is no superuser.
    #[serde(default)]
    #[schema(schema_with = schemas::owner)]
    pub owner: RoleName,
    /// The database that is made for the owner.
    #[serde(default)]
    #[schema(schema_with = schemas::database)]
    pub database: DatabaseName,
    /// Extensions that toygres makes in the owner's database, all of them: one that isn't named is removed if toygres made it.
    #[serde(default)]
    #[schema(schema_with = schemas::extensions)]
    pub extensions: Extensions,
    /// Storage in GB.
    #[serde(default)]
    #[schema(value_type = i64, minimum = 1, maximum = 65536, default = 10)]
    pub storage_size_gb: StorageSize,
    /// Whether it gets a public address.
    #[serde(default)]
    #[schema(default = false)]
    pub use_load_balancer: bool,
    /// Label of a public DNS name (Azure: LABEL.REGION.cloudapp.azure.com); only with
    /// `use_load_balancer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 3, max_length = 63, pattern = "^[a-z][a-z0-9-]*[a-z0-9]$", example = "my-blog")]
    pub dns_label: Option<DnsLabel>,
    /// Processor time that is reserved for it, such as `500m` or `2`; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schemas::cpu)]
    pub cpu: Option<Cpu>,
    /// Memory that is reserved for it; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^[1-9][0-9]{0,8}(Mi|Gi|Ti|M|G|T)$", example = "2Gi")]
    pub memory: Option<Memory>,
    /// The class of its volume; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        value_type = Option<String>,
        max_length = 253,
        pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$",
        example = "fast"
    )]
    pub storage_class: Option<StorageClass>,
    /// Whether a drain of its node waits, since the server is down while it moves; a PodDisruptionBudget says so to the cluster.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub disruption_budget: bool,
    /// Labels, all of them: those that aren't named are removed. At most 32.
    #[serde(default)]
    #[schema(schema_with = schemas::labels)]
    pub labels: Labels,
    /// Whether a delete is refused.
    #[serde(default)]
    #[schema(default = false)]
    pub delete_protection: bool,
    /// Whether its server runs (`running`) or is stopped (`stopped`).
    #[serde(default)]
    #[schema(schema_with = schemas::power)]
    pub power: Power,
}

fn yes() -> bool {
    true
}

/// A field whose value differs between two specs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field's name.
    pub field: &'static str,
    /// What it was; null if it was not set.
    pub from: Value,
    /// What it is to be; null if it is not to be set.
    pub to: Value,
}

impl InstanceSpec {
    /// A spec with that platform and version, and the default for all else.
    #[must_use]
    pub fn new(platform: PlatformName, postgres_version: PostgresVersion) -> Self {
        Self {
            platform,
            postgres_version,
            owner: RoleName::default(),
            database: DatabaseName::default(),
            extensions: Extensions::default(),
            storage_size_gb: StorageSize::default(),
            use_load_balancer: false,
            dns_label: None,
            cpu: None,
            memory: None,
            storage_class: None,
            disruption_budget: true,
            labels: Labels::default(),
            delete_protection: false,
            power: Power::default(),
        }
    }

    /// The spec with `named` fields replaced, each checked; `null` sets a field's default. A full version stays
    /// where only its major is named. A private instance has no public name, so `use_load_balancer: false`
    /// removes `dns_label`.
    ///
    /// # Errors
    /// Names the field that is unknown, wrong, or doesn't go with another one.
    pub fn with(&self, named: &Map<String, Value>) -> Result<Self, Invalid> {
        let mut all = self.to_map();
        for (field, value) in named {
            match value {
                Value::Null => {
                    all.remove(field);
                }
                value => {
                    all.insert(field.clone(), value.clone());
                }
            }
        }
        // These have no default of their own.
        for field in ["platform", "postgres_version"] {
            if named.get(field).is_some_and(Value::is_null) {
                all.extend(self.to_map().remove_entry(field));
            }
        }
        if named.get("use_load_balancer") == Some(&Value::Bool(false)) && !named.contains_key("dns_label") {
            all.remove("dns_label");
        }
        let mut spec = Self::parse(Value::Object(all))?;
        if spec.postgres_version.accepts(self.postgres_version) {
            spec.postgres_version = self.postgres_version;
        }
        Ok(spec)
    }

    /// A spec from its JSON form.
    ///
    /// # Errors
    /// Names the field that is unknown, missing or wrong.
    pub fn parse(value: Value) -> Result<Self, Invalid> {
        let spec: Self = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let problem = error.into_inner().to_string();
            // "missing field `x`" and "unknown field `x`" are about the whole object.
            let field = if path == "." { problem.split('`').nth(1).unwrap_or("spec").to_owned() } else { path.clone() };
            let problem = match (problem.strip_prefix(&format!("{field}: ")), problem.split_once(", expected ")) {
                // In the words of the field's type.
                (Some(own), _) => own.to_owned(),
                // serde's: "unknown variant `docker`, expected `local` or `kubernetes`".
                (None, Some((unknown, expected))) if unknown.starts_with("unknown variant") => {
                    let value: String = unknown.split('`').nth(1).unwrap_or_default().chars().take(40).collect();
                    format!("{value:?} is unknown; known are {}", expected.replace('`', "").replace(" or ", " and "))
                }
                // serde's: "invalid type: string \"x\", expected a boolean".
                (None, Some((_, expected))) if path != "." && !problem.starts_with("unknown field") => {
                    format!("has to be {}", describe_expected(expected))
                }
                (None, _) => problem,
            };
            Invalid { field: static_name(&field), problem }
        })?;
        if spec.dns_label.is_some() && !spec.use_load_balancer {
            return Err(Invalid::new("dns_label", "needs use_load_balancer (--public): a private instance has no public name"));
        }
        Ok(spec)
    }

    /// The fields as JSON. Those that are not set are missing.
    #[must_use]
    pub fn to_map(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            // Strings, numbers and maps with text keys can always be written.
            _ => Map::new(),
        }
    }

    /// The fields in which `after` differs, in the order of [`FIELDS`].
    #[must_use]
    pub fn differences(&self, after: &Self) -> Vec<Difference> {
        let (from, to) = (self.to_map(), after.to_map());
        let value = |map: &Map<String, Value>, field: &str| map.get(field).cloned().unwrap_or_default();
        let differences = FIELDS.iter().map(|field| Difference {
            field: field.name,
            from: value(&from, field.name),
            to: value(&to, field.name),
        });
        differences.filter(|difference| difference.from != difference.to).collect()
    }

    /// This spec with the fields that differ between `after` and `before` set to their value in `before`: what
    /// remains when the change from `before` to `after` is reverted. A field that has another value than in `after` by
    /// now was changed since, and stays.
    ///
    /// # Errors
    /// If the fields don't go together any more.
    pub fn reverted(&self, before: &Self, after: &Self) -> Result<Self, Invalid> {
        let mut all = self.to_map();
        for Difference { field, from, to } in after.differences(before) {
            if all.get(field).cloned().unwrap_or_default() != from {
                continue;
            }
            if to.is_null() {
                all.remove(field);
            } else {
                all.insert(field.to_owned(), to);
            }
        }
        Self::parse(Value::Object(all))
    }
}

/// What serde expects, for a person.
fn describe_expected(expected: &str) -> &str {
    match expected {
        "a string" => "text (in quotes)",
        "a boolean" => "true or false",
        "a map" => "a mapping of names to values",
        other => other,
    }
}

fn static_name(field: &str) -> &'static str {
    let top = field.split(['.', '[']).next().unwrap_or(field);
    FIELDS.iter().map(|known| known.name).find(|name| *name == top).unwrap_or("spec")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> InstanceSpec {
        InstanceSpec::new(PlatformName::Local, "17.4".parse().unwrap())
    }

    fn named(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn fields_that_are_not_named_stay() {
        let first = spec().with(&named(json!({ "labels": { "team": "a" }, "storage_size_gb": 20 }))).unwrap();
        let second = first.with(&named(json!({ "power": "stopped" }))).unwrap();
        assert_eq!(second.storage_size_gb.gb(), 20);
        assert_eq!(second.power, Power::Stopped);
        assert_eq!(second.with(&named(json!({ "power": null }))).unwrap(), first);
    }

    #[test]
    fn numbers_are_versions_and_amounts_too() {
        let spec = spec().with(&named(json!({ "postgres_version": 18, "cpu": 2 }))).unwrap();
        assert_eq!((spec.postgres_version.to_string().as_str(), spec.cpu.unwrap().as_str()), ("18", "2"));
    }

    #[test]
    fn a_full_version_stays_where_its_major_is_named() {
        assert_eq!(spec().with(&named(json!({ "postgres_version": "17" }))).unwrap(), spec());
    }

    #[test]
    fn errors_name_the_field() {
        for (value, field) in [
            (json!({ "cpu": "x" }), "cpu"),
            (json!({ "storage_size_gb": 0 }), "storage_size_gb"),
            (json!({ "storage_size_gb": "x" }), "storage_size_gb"),
            (json!({ "power": "off" }), "power"),
            (json!({ "labels": { "-": "x" } }), "labels"),
            (json!({ "dns_label": "blog" }), "dns_label"),
            (json!({ "owner": "postgres" }), "owner"),
            (json!({ "extensions": ["plperlu"] }), "extensions"),
            (json!({ "database": "a\"b" }), "database"),
        ] {
            let error = spec().with(&named(value)).unwrap_err();
            assert_eq!(error.field, field, "{error}");
            assert!(!error.problem.starts_with(field), "{error}");
        }
        assert!(spec().with(&named(json!({ "nosuch": 1 }))).unwrap_err().problem.contains("unknown field `nosuch`"));
    }

    #[test]
    fn a_private_instance_loses_its_public_name() {
        let public = spec().with(&named(json!({ "use_load_balancer": true, "dns_label": "blog" }))).unwrap();
        let private = public.with(&named(json!({ "use_load_balancer": false }))).unwrap();
        assert_eq!(private.dns_label, None);
    }

    #[test]
    fn a_revert_leaves_what_another_change_did() {
        let before = spec();
        let after = before.with(&named(json!({ "use_load_balancer": true, "dns_label": "blog" }))).unwrap();
        let meanwhile = after.with(&named(json!({ "delete_protection": true }))).unwrap();
        let reverted = meanwhile.reverted(&before, &after).unwrap();
        assert_eq!(reverted, before.with(&named(json!({ "delete_protection": true }))).unwrap());
    }
}

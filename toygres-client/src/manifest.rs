//! The document that says what an instance is to be: of `POST` and `PUT`, of `toygres apply` and
//! `toygres get -o yaml`; and the JSON Schema by which an editor checks it. Its fields are those of
//! [`InstanceSpec`], all of them optional, with the instance's name and password.

use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use toygres_models::instance::FIELDS;
use toygres_models::store::Instance;
use toygres_models::{InstanceSpec, Invalid, Password, PlatformName, PostgresVersion};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// An instance as it is asked for: the body of `POST /v1/instances` and `PUT
/// /v1/instances/{name}`, and a document of `toygres apply`. What is left out is the default when the instance is
/// made, and stays as it is when it is there; `null` is the default.
#[derive(Clone, Default, Serialize)]
pub struct InstanceManifest {
    /// Its name.
    pub name: String,
    /// Its namespace; the query's `namespace`, or else `default`, if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The named fields of the spec.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
    /// The owner's password; a generated one if left out. It is never shown again but by `connection`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// The part of a manifest's schema that the spec doesn't have.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Identity {
    /// Its name: 1 to 50 lowercase letters, digits and '-', a letter first, no '-' last, no reserved
    /// word.
    #[schema(
        min_length = 1,
        max_length = 50,
        pattern = "^(?!(all|control|false|new|no|none|null|off|on|toygres|true|yes)$)(?!toygres-)[a-z]([a-z0-9-]*[a-z0-9])?$",
        example = "demo"
    )]
    name: String,
    /// Its namespace; the query's `namespace`, or else `default`, if left out.
    #[schema(min_length = 1, max_length = 50, pattern = "^[a-z]([a-z0-9-]*[a-z0-9])?$", example = "default")]
    namespace: Option<String>,
    /// The owner's password, in printable ASCII; a generated one if left out. It is never shown again but by `connection`.
    #[schema(
        min_length = 1,
        max_length = 1024,
        pattern = "^(?!secret://)[ -~]+$",
        format = Password,
        write_only
    )]
    password: Option<String>,
}

impl InstanceManifest {
    /// One of that name that names nothing else.
    #[must_use]
    pub fn of(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Names a field of the spec, unless `value` is `None`.
    pub fn set(&mut self, field: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.fields.insert(field.to_owned(), value.into());
        }
    }

    /// A manifest from an object. Its fields are known, and not checked further.
    ///
    /// # Errors
    /// Names the field that is unknown, missing or no text. Never repeats a value.
    pub fn from_map(mut map: Map<String, Value>) -> Result<Self, ManifestError> {
        let mut text = |field: &str| match map.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ManifestError::new(field, "has to be text (in quotes)")),
        };
        let (name, namespace, password) = (text("name")?, text("namespace")?, text("password")?);
        if let Some(unknown) = map.keys().find(|field| !FIELDS.iter().any(|known| known.name == **field)) {
            let known: Vec<_> = ["name", "namespace"].into_iter().chain(FIELDS.iter().map(|known| known.name)).collect();
            let problem = format!("is no field of an instance; known are {}, password", known.join(", "));
            return Err(ManifestError::new(unknown, problem));
        }
        let name = name.ok_or_else(|| ManifestError::new("name", "the name is missing"))?;
        // Without a default of their own, an explicit none names nothing.
        map.retain(|field, value| !value.is_null() || !matches!(field.as_str(), "platform" | "postgres_version"));
        Ok(Self { name, namespace, fields: map, password })
    }

    /// Checks each field by itself, and those that belong together.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn check(&self) -> Result<(), Invalid> {
        InstanceSpec::new(PlatformName::default(), PostgresVersion::OLDEST).with(&self.fields)?;
        self.password.as_deref().map_or(Ok(()), Password::check_literal)
    }
}

/// What is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ManifestError {
    /// The field.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl ManifestError {
    fn new(field: &str, problem: impl Into<String>) -> Self {
        Self { field: field.to_owned(), problem: problem.into() }
    }
}

impl<'de> Deserialize<'de> for InstanceManifest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Fields(map) = Fields::deserialize(deserializer)?;
        Self::from_map(map).map_err(D::Error::custom)
    }
}

/// An object of which no field is there twice: of two, nobody knows which one is meant.
#[derive(Debug)]
pub struct Fields(pub Map<String, Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;

        impl<'de> Visitor<'de> for Once {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an instance (fields and their values)")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Fields, A::Error> {
                let mut map = Map::new();
                while let Some((field, value)) = object.next_entry::<String, Value>()? {
                    if map.contains_key(&field) {
                        return Err(A::Error::custom(format!("duplicate field `{field}`")));
                    }
                    map.insert(field, value);
                }
                Ok(Fields(map))
            }
        }

        deserializer.deserialize_map(Once)
    }
}

impl From<&Instance> for InstanceManifest {
    /// What would make such an instance: everything but the password.
    fn from(instance: &Instance) -> Self {
        Self {
            name: instance.name.clone(),
            namespace: Some(instance.namespace.clone()),
            fields: instance.spec.to_map(),
            password: None,
        }
    }
}

impl PartialSchema for InstanceManifest {
    fn schema() -> RefOr<Schema> {
        let (RefOr::T(Schema::Object(mut all)), RefOr::T(Schema::Object(spec))) = (Identity::schema(), InstanceSpec::schema())
        else {
            // Both are structs.
            return InstanceSpec::schema();
        };
        all.description = Some(
            "An instance as it is asked for. What is left out is the default when the instance is made, and stays as it is when it \
             is there; null is the default."
                .into(),
        );
        all.properties.extend(spec.properties.into_iter().map(|(name, schema)| (name, nullable(schema))));
        all.additional_properties = spec.additional_properties;
        RefOr::T(Schema::Object(all))
    }
}

impl ToSchema for InstanceManifest {}

/// The same, or null.
fn nullable(schema: RefOr<Schema>) -> RefOr<Schema> {
    use utoipa::openapi::schema::{SchemaType, Type};
    let RefOr::T(Schema::Object(mut object)) = schema else { return schema };
    object.schema_type = match object.schema_type {
        SchemaType::Type(kind) => SchemaType::from_iter([kind, Type::Null]),
        SchemaType::Array(mut kinds) => {
            if !kinds.contains(&Type::Null) {
                kinds.push(Type::Null);
            }
            SchemaType::Array(kinds)
        }
        SchemaType::AnyValue => SchemaType::AnyValue,
    };
    if let Some(values) = &mut object.enum_values {
        values.push(Value::Null);
    }
    RefOr::T(Schema::Object(object))
}

/// The JSON Schema (2020-12) of a file for `toygres apply`: an instance, or a list of instances.
#[must_use]
pub fn schema() -> Value {
    let mut instance = serde_json::to_value(InstanceManifest::schema()).unwrap_or_default();
    // What OpenAPI's description leaves to words.
    instance["if"] = json!({ "properties": { "dns_label": { "type": "string" } }, "required": ["dns_label"] });
    instance["then"] = json!({ "properties": { "use_load_balancer": { "const": true } }, "required": ["use_load_balancer"] });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:toygres:schema:instance",
        "title": "toygres instances",
        "description": "What `toygres apply` takes: an instance, or a list of instances.",
        "if": { "type": "array" },
        "then": { "type": "array", "items": { "$ref": "#/$defs/instance" } },
        "else": { "$ref": "#/$defs/instance" },
        "$defs": { "instance": instance },
    })
}

//! The document that says what an instance is to be: of `POST` and `PUT`, of `toygres apply` and
//! `toygres get -o yaml`; and the JSON Schema by which an editor checks it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toygres_models::PlatformName;
use toygres_models::store::Instance;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

/// An instance as it is asked for: the body of `POST /v1/instances` and `PUT
/// /v1/instances/{name}`, and a document of `toygres apply`. Unknown fields are refused. What is left
/// out is the default when the instance is made, and stays as it is when it is there.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceManifest {
    /// Its name: 1 to 50 lowercase letters, digits and '-', a letter first, no '-' last, no reserved
    /// word.
    #[schema(
        min_length = 1,
        max_length = 50,
        pattern = "^(?!(all|control|false|new|no|none|null|off|on|toygres|true|yes)$)(?!toygres-)[a-z]([a-z0-9-]*[a-z0-9])?$",
        example = "demo"
    )]
    pub name: String,
    /// Its namespace; the query's `namespace`, or else `default`, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 50, pattern = "^[a-z]([a-z0-9-]*[a-z0-9])?$", example = "default")]
    pub namespace: Option<String>,
    /// `local` (a server process) or `kubernetes` (a pod); the server's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PlatformName>, inline)]
    pub platform: Option<String>,
    /// A major or a full version; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_whole_number")]
    #[schema(schema_with = version_schema)]
    pub postgres_version: Option<String>,
    /// Storage in GB.
    #[serde(default, deserialize_with = "crate::resources::whole", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65536, default = 10)]
    pub storage_size_gb: Option<i64>,
    /// The superuser's password, of at most 1024 bytes, and not only of characters that nobody sees (RFC 4013 leaves them
    /// out); a generated one if left out. It is never shown again but by `connection`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        min_length = 1,
        max_length = 1024,
        pattern = "^(?!secret://)[^\\u0000-\\u001f\\u007f-\\u009f]+$",
        format = Password,
        write_only
    )]
    pub password: Option<String>,
    /// Whether it gets a public address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(default = false)]
    pub use_load_balancer: Option<bool>,
    /// Label of a public DNS name (Azure: LABEL.REGION.cloudapp.azure.com); only with
    /// `use_load_balancer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 3, max_length = 63, pattern = "^[a-z][a-z0-9-]*[a-z0-9]$", example = "my-blog")]
    pub dns_label: Option<String>,
    /// Processor time that is its own, such as `500m` or `2`; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_whole_number")]
    #[schema(schema_with = cpu_schema)]
    pub cpu: Option<String>,
    /// Memory that is its own; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[1-9][0-9]{0,8}(Mi|Gi|Ti|M|G|T)$", example = "2Gi")]
    pub memory: Option<String>,
    /// The class of its volume; the platform's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        max_length = 253,
        pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$",
        example = "fast"
    )]
    pub storage_class: Option<String>,
    /// Labels, all of them: those that aren't named are taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = labels_schema)]
    pub labels: Option<BTreeMap<String, String>>,
    /// Whether it can't be deleted until that is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(default = false)]
    pub delete_protection: Option<bool>,
}

impl From<&Instance> for InstanceManifest {
    /// What would make such an instance: everything but the password.
    fn from(instance: &Instance) -> Self {
        Self {
            name: instance.name.clone(),
            namespace: Some(instance.namespace.clone()),
            platform: Some(instance.platform.to_string()),
            postgres_version: Some(instance.postgres_version.clone()),
            storage_size_gb: Some(instance.storage_size_gb.into()),
            password: None,
            use_load_balancer: Some(instance.use_load_balancer),
            dns_label: instance.dns_label.clone(),
            cpu: instance.cpu.clone(),
            memory: instance.memory.clone(),
            storage_class: instance.storage_class.clone(),
            labels: Some(instance.labels.0.clone().into()),
            delete_protection: Some(instance.delete_protection),
        }
    }
}

/// `17` and `2` are as good as `"17"` and `"2"`. A fraction isn't: 17.10 would be read as 17.1.
fn text_or_whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct TextOrWholeNumber;

    impl Visitor<'_> for TextOrWholeNumber {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("text (in quotes), or a whole number")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(text.to_owned()))
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
            Ok(Some(number.to_string()))
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
            Ok(Some(number.to_string()))
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }

    deserializer.deserialize_any(TextOrWholeNumber)
}

fn version_schema() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Integer, Type::Null]))
        .description(Some("A major or a full version (in quotes); the platform's default if left out."))
        .pattern(Some("^1[4-8](\\.(0|[1-9][0-9]{0,3}))?$"))
        .minimum(Some(14))
        .maximum(Some(18))
        .examples([json!("17"), json!("17.4")])
}

fn cpu_schema() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Integer, Type::Null]))
        .description(Some("Processor time that is its own, such as `500m` or `2`; the platform's default if left out."))
        .pattern(Some("^[1-9][0-9]{0,8}m?$"))
        .minimum(Some(1))
        .maximum(Some(999_999_999))
        .examples([json!("500m"), json!("2")])
}

fn labels_schema() -> ObjectBuilder {
    let key = ObjectBuilder::new()
        .schema_type(Type::String)
        .max_length(Some(63))
        .pattern(Some("^[a-zA-Z0-9]([a-zA-Z0-9._/-]*[a-zA-Z0-9])?$"));
    let value = ObjectBuilder::new()
        .schema_type(Type::String)
        .max_length(Some(63))
        .pattern(Some("^([a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?)?$"));
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .description(Some("Labels, all of them: those that aren't named are taken away. At most 32."))
        .property_names(Some(key))
        .additional_properties(Some(value))
        .max_properties(Some(32))
        .examples([json!({ "team": "a" })])
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

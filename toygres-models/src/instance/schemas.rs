//! Schemas of fields that are written in more than one way.

use serde_json::json;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaType, Type};

use crate::version::SUPPORTED_MAJORS;
use crate::{Extensions, PlatformName};

pub(super) fn postgres_version() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Integer, Type::Null]))
        .description(Some("A major or a full version (in quotes); the platform's default if left out."))
        .pattern(Some("^1[4-8](\\.(0|[1-9][0-9]{0,3}))?$"))
        .minimum(Some(*SUPPORTED_MAJORS.start()))
        .maximum(Some(*SUPPORTED_MAJORS.end()))
        .examples([json!("17"), json!("17.4")])
}

pub(super) fn platform() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("`local` (a server process) or `kubernetes` (a pod); the server's default if left out."))
        .enum_values(Some(PlatformName::ALL.map(PlatformName::as_str)))
}

/// A name in PostgreSQL that is written without quotes, and none that PostgreSQL or toygres has for itself.
fn sql_name(description: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .description(Some(description))
        .min_length(Some(1))
        .max_length(Some(63))
        .pattern(Some("^(?!(none|postgres|public|template[01])$)(?!pg_|toygres)[a-z_][a-z0-9_]*$"))
        .default(Some(json!("app")))
}

pub(super) fn owner() -> ObjectBuilder {
    sql_name("The role that owns the database and that applications log in as. It is no superuser.")
}

pub(super) fn database() -> ObjectBuilder {
    sql_name("The database that is made for the owner.")
}

pub(super) fn extensions() -> ArrayBuilder {
    ArrayBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Array, Type::Null]))
        .description(Some(
            "Extensions that toygres makes in the owner's database, all of them: one that isn't named is removed if toygres made it.",
        ))
        .items(ObjectBuilder::new().schema_type(Type::String).enum_values(Some(Extensions::ALLOWED.iter().copied())))
        .examples([json!(["pg_trgm", "postgres_fdw"])])
}

pub(super) fn power() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("Whether its server runs (`running`) or is stopped (`stopped`)."))
        .enum_values(Some(["running", "stopped"]))
        .default(Some(json!("running")))
}

pub(super) fn cpu() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Integer, Type::Null]))
        .description(Some("Processor time that is reserved for it, such as `500m` or `2`; the platform's default if left out."))
        .pattern(Some("^[1-9][0-9]{0,8}m?$"))
        .minimum(Some(1))
        .maximum(Some(999_999_999))
        .examples([json!("500m"), json!("2")])
}

pub(super) fn labels() -> ObjectBuilder {
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
        .description(Some("Labels, all of them: those that aren't named are removed. At most 32."))
        .property_names(Some(key))
        .additional_properties(Some(value))
        .max_properties(Some(32))
        .examples([json!({ "team": "a" })])
}

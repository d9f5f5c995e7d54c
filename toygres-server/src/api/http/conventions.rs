//! What holds for every route, as the API's document says it: what names look like, which headers a
//! change may carry, and an id that no other route has. The checks themselves are those of
//! `toygres-models` and `request.rs`; schemathesis compares the two.

use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{OpenApi, RefOr, Required};

use toygres_client::resources::IDEMPOTENCY_KEY;

/// 1 to 50 of `a-z0-9-`, a letter first, no `-` last.
const NAMESPACE: &str = "^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$";
/// The same, and no reserved word.
const INSTANCE: &str =
    "^(?!(all|control|false|new|no|none|null|off|on|toygres|true|yes)$|toygres-)[a-z]([-a-z0-9]{0,48}[a-z0-9])?$";
/// The same, and neither of the server's own actors.
const TOKEN: &str = "^(?!(root|toygres)$)[a-z]([-a-z0-9]{0,48}[a-z0-9])?$";
const ETAG: &str = "^(\\*|[0-9]{1,18}|\"[0-9]{1,18}\")$";
const EVENT_ID: &str = "^[0-9]{1,18}$";
/// Browsers send an empty one for none.
const LAST_EVENT_ID: &str = "^[0-9]{0,18}$";
const KINDS: &str = "^ *[a-z0-9_]{1,64}( *, *[a-z0-9_]{1,64})* *$";
const WAIT: &str = "^(0|[0-5]?[0-9]s|60s)$";
const KEY: &str = "^[!-~]{1,255}$";

/// Adds the conventions to a document.
pub fn describe(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        let PathItem { get, put, post, delete, patch, .. } = item;
        for (operation, changes) in [(get, false), (put, true), (post, true), (delete, true), (patch, true)] {
            let Some(operation) = operation else { continue };
            let tag = operation.tags.iter().flatten().next().cloned().unwrap_or_default();
            operation.operation_id = operation.operation_id.take().map(|id| format!("{tag}_{id}"));
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter {
                    never_null(parameter.schema.as_mut());
                    // Positions in a log are no numbers.
                    if parameter.name.eq_ignore_ascii_case("last-event-id") && !path.ends_with("/logs") {
                        parameter.schema = Some(text(LAST_EVENT_ID).build().into());
                    }
                    set_pattern(pattern(path, &parameter.name), parameter.schema.as_mut());
                }
            }
            if changes && path.ends_with("/instances/{name}") {
                add(
                    operation,
                    "if-match",
                    "The instance's ETag as an earlier answer had it: if it has changed since, nothing is done.",
                    ETAG,
                );
            }
            if changes {
                let description = "Names the request: sent again with the same key, it is carried out once and answered the same way, \
                    for a day. Another request with it is refused.";
                add(operation, IDEMPOTENCY_KEY, description, KEY);
            }
        }
    }
    let schemas = document.components.iter_mut().flat_map(|components| &mut components.schemas);
    for (of, schema) in schemas {
        let path = match of.as_str() {
            "InstanceManifest" => "/v1/instances",
            "TokenManifest" => "/v1/tokens",
            _ => continue,
        };
        let RefOr::T(Schema::Object(manifest)) = schema else { continue };
        for (name, property) in &mut manifest.properties {
            match (name.as_str(), &mut *property) {
                ("namespaces", RefOr::T(Schema::Array(array))) => {
                    if let utoipa::openapi::schema::ArrayItems::RefOrSchema(items) = &mut array.items {
                        set_pattern(Some(NAMESPACE), Some(items));
                    }
                }
                (name, _) => set_pattern(pattern(path, name), Some(property)),
            }
        }
    }
    document
}

/// What a parameter or property of that name looks like, in a route of that path.
fn pattern(path: &str, name: &str) -> Option<&'static str> {
    match (path.split('/').nth(2), name) {
        (_, "namespace") | (Some("namespaces"), "name" | "cursor") => Some(NAMESPACE),
        (Some("tokens"), "name" | "cursor") => Some(TOKEN),
        (_, "name" | "instance_name") => Some(INSTANCE),
        (Some("events" | "instances"), "cursor") if path.ends_with("/events") => Some(EVENT_ID),
        (_, "if-match") => Some(ETAG),
        (_, "kind") if path.ends_with("/events") => Some(KINDS),
        (_, "wait") => Some(WAIT),
        _ => None,
    }
}

fn text(pattern: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern))
}

/// A parameter is left out or has a value: utoipa takes `Option` for one that may be null.
fn never_null(schema: Option<&mut RefOr<Schema>>) {
    if let Some(RefOr::T(Schema::Object(schema))) = schema
        && let SchemaType::Array(types) = &mut schema.schema_type
    {
        types.retain(|kind| *kind != Type::Null);
        if let [only] = types.as_slice() {
            schema.schema_type = SchemaType::Type(only.clone());
        }
    }
}

fn set_pattern(pattern: Option<&str>, schema: Option<&mut RefOr<Schema>>) {
    if let (Some(pattern), Some(RefOr::T(Schema::Object(schema)))) = (pattern, schema) {
        schema.pattern = Some(pattern.to_owned());
    }
}

/// Adds a header, unless the route describes it itself.
fn add(operation: &mut Operation, name: &str, description: &str, pattern: &str) {
    let parameters = operation.parameters.get_or_insert_default();
    if parameters.iter().any(|parameter| matches!(parameter, RefOr::T(Parameter { name: known, .. }) if known == name)) {
        return;
    }
    let schema = text(pattern).build();
    let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Header).required(Required::False);
    parameters.push(RefOr::T(parameter.description(Some(description)).schema(Some(schema)).build()));
}

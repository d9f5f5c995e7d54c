//! Instances of a list as JSON, written straight from the database's columns.
//!
//! The columns have the names and the values of [`Instance`](super::Instance)'s JSON. Made into records first, with a string
//! for each value, a page takes a good deal longer (`toygres-e2e/benches/api.rs`).

use chrono::{DateTime, SecondsFormat, Utc};
use serde::ser::{Error, Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;
use sqlx::postgres::{PgRow, PgValueRef};
use sqlx::types::Json;
use sqlx::{Decode, Postgres, Row, ValueRef};
use uuid::Uuid;

#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Int,
    Json,
    Long,
    Text,
    Time,
    Uuid,
}

/// The columns in the order of the record's fields: the answer has no others, also where a newer server has added some.
const COLUMNS: [(&str, Kind); 24] = [
    ("id", Kind::Uuid),
    ("namespace", Kind::Text),
    ("name", Kind::Text),
    ("platform", Kind::Text),
    ("postgres_version", Kind::Text),
    ("storage_size_gb", Kind::Int),
    ("use_load_balancer", Kind::Bool),
    ("dns_label", Kind::Text),
    ("cpu", Kind::Text),
    ("memory", Kind::Text),
    ("storage_class", Kind::Text),
    ("cluster_id", Kind::Text),
    ("labels", Kind::Json),
    ("delete_protection", Kind::Bool),
    ("revision", Kind::Long),
    ("state", Kind::Text),
    ("health_status", Kind::Text),
    ("ip_connection_string", Kind::Text),
    ("dns_connection_string", Kind::Text),
    ("health_check_orchestration_id", Kind::Text),
    ("failure", Kind::Json),
    ("created_at", Kind::Time),
    ("updated_at", Kind::Time),
    ("deleted_at", Kind::Time),
];

/// An instance as a list has it: it can be written as JSON, which is the same as [`Instance`](super::Instance)'s.
pub struct InstanceRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    row: PgRow,
}

impl InstanceRow {
    /// What to select.
    pub(super) fn columns() -> String {
        COLUMNS.map(|(name, _)| name).join(", ")
    }

    /// A row of those columns.
    pub(super) fn new(row: PgRow) -> sqlx::Result<Self> {
        Ok(Self { namespace: row.try_get("namespace")?, name: row.try_get("name")?, row })
    }
}

impl Serialize for InstanceRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(COLUMNS.len()))?;
        for (index, (name, kind)) in COLUMNS.iter().enumerate() {
            let value = self.row.try_get_raw(index).map_err(S::Error::custom)?;
            if value.is_null() {
                map.serialize_entry(name, &())?;
                continue;
            }
            match kind {
                Kind::Bool => map.serialize_entry(name, &decoded::<bool, _>(value)?)?,
                Kind::Int => map.serialize_entry(name, &decoded::<i32, _>(value)?)?,
                Kind::Json => map.serialize_entry(name, decoded::<Json<&RawValue>, _>(value)?.0)?,
                Kind::Long => map.serialize_entry(name, &decoded::<i64, _>(value)?)?,
                Kind::Text => map.serialize_entry(name, decoded::<&str, _>(value)?)?,
                Kind::Time => map.serialize_entry(name, &rfc3339(decoded(value)?))?,
                Kind::Uuid => map.serialize_entry(name, &decoded::<Uuid, _>(value)?)?,
            }
        }
        map.end()
    }
}

fn decoded<'r, T: Decode<'r, Postgres>, E: Error>(value: PgValueRef<'r>) -> Result<T, E> {
    T::decode(value).map_err(E::custom)
}

/// As chrono's own way to JSON writes it, but in one go.
fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

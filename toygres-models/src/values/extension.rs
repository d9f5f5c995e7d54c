//! Extensions that an instance's owner may have: toygres makes them, as a superuser would.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// What gives its user no way to files, programs or others' rights. PostgreSQL's own
/// (<https://www.postgresql.org/docs/current/contrib.html>), then others, which not every build has.
const ALLOWED: &[&str] = &[
    "amcheck",
    "autoinc",
    "bloom",
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dict_int",
    "dict_xsyn",
    "earthdistance",
    "fuzzystrmatch",
    "hstore",
    "insert_username",
    "intagg",
    "intarray",
    "isn",
    "lo",
    "ltree",
    "moddatetime",
    "pg_buffercache",
    "pg_freespacemap",
    "pg_prewarm",
    "pg_stat_statements",
    "pg_trgm",
    "pg_visibility",
    "pg_walinspect",
    "pgcrypto",
    "pgrowlocks",
    "pgstattuple",
    "postgres_fdw",
    "refint",
    "seg",
    "sslinfo",
    "tablefunc",
    "tcn",
    "tsm_system_rows",
    "tsm_system_time",
    "unaccent",
    "uuid-ossp",
    "address_standardizer",
    "hll",
    "hypopg",
    "ip4r",
    "pg_partman",
    "pgrouting",
    "pgtap",
    "postgis",
    "postgis_topology",
    "prefix",
    "semver",
    "vector",
];

/// What is often asked for, and why it isn't made.
const REFUSED: &[(&str, &str)] = &[
    ("adminpack", "it writes the server's files"),
    ("dblink", "its connections read and write the server's files (`sslkeylogfile`, `passfile`); postgres_fdw does not"),
    ("file_fdw", "it reads the server's files and runs programs"),
    ("pageinspect", "only a superuser may use it"),
    ("pg_cron", "it needs a library that is loaded when the server starts, which toygres doesn't do yet"),
    ("pg_surgery", "it damages data when it is used wrongly"),
    ("pgaudit", "it needs a library that is loaded when the server starts, which toygres doesn't do yet"),
    ("plperlu", "its functions run as the server's user"),
    ("plpython3u", "its functions run as the server's user"),
    ("pltclu", "its functions run as the server's user"),
    ("postgis_raster", "it reads the server's files"),
    ("timescaledb", "it needs a library that is loaded when the server starts, which toygres doesn't do yet"),
    ("xml2", "PostgreSQL calls it obsolete"),
];

/// The extensions of an instance's database, each once. Every one is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeSet<String>", into = "BTreeSet<String>")]
pub struct Extensions(BTreeSet<String>);

impl Extensions {
    /// The names that are allowed.
    pub const ALLOWED: &'static [&'static str] = ALLOWED;

    /// The names, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeSet<String>> for Extensions {
    type Error = Invalid;

    fn try_from(names: BTreeSet<String>) -> Result<Self, Invalid> {
        match names.iter().find(|name| !ALLOWED.contains(&name.as_str())) {
            None => Ok(Self(names)),
            Some(name) => {
                let shown: String = name.chars().take(63).collect();
                let known = REFUSED.iter().find(|(refused, _)| refused == name);
                let why = known.map_or("`toygres extension list` has those that it makes", |(_, why)| why);
                Err(Invalid::new(
                    "extensions",
                    format!(
                        "{shown:?} is none that toygres makes: {why}. An admin can make others (`toygres psql --superuser NAME -d DATABASE`)"
                    ),
                ))
            }
        }
    }
}

impl From<Extensions> for BTreeSet<String> {
    fn from(extensions: Extensions) -> Self {
        extensions.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extensions(names: &[&str]) -> Result<Extensions, Invalid> {
        Extensions::try_from(names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>())
    }

    #[test]
    fn what_leads_out_of_the_instance_is_refused_with_the_reason() {
        for (name, why) in
            [("file_fdw", "reads the server's files"), ("plpython3u", "run as the server's user"), ("a\"b", "extension list")]
        {
            let refused = extensions(&["pg_trgm", name]).unwrap_err();
            assert!(refused.field == "extensions" && refused.problem.contains(why), "{refused}");
        }
    }

    #[test]
    fn no_name_is_on_both_lists_and_none_has_to_be_quoted_twice() {
        assert!(REFUSED.iter().all(|(name, _)| !ALLOWED.contains(name)));
        let is_plain = |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c));
        assert!(ALLOWED.iter().all(is_plain));
        assert_eq!(extensions(&["vector", "hstore", "vector"]).unwrap().iter().collect::<Vec<_>>(), ["hstore", "vector"]);
    }
}

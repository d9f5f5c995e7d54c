//! Names of instances and namespaces: what is legal here is legal on every platform.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// Longest name. Kubernetes allows a StatefulSet 52 characters, so that its pods' revision label
/// stays within 63; two are kept in reserve.
pub const MAX_NAME_LENGTH: usize = 50;

/// Words that YAML or a shell user would read as something else, and toygres's own.
const RESERVED: &[&str] = &["all", "control", "false", "new", "no", "none", "null", "off", "on", "toygres", "true", "yes"];

fn validate(field: &'static str, value: &str) -> Result<(), Invalid> {
    let refuse = |problem: String| Err(Invalid::new(field, problem));
    if value.is_empty() {
        return refuse("is empty; give 1 to 50 characters: lowercase letters, digits and '-'".into());
    }
    if value.len() > MAX_NAME_LENGTH {
        return refuse(format!("has {} bytes; at most {MAX_NAME_LENGTH} are allowed", value.len()));
    }
    if let Some(bad) = value.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        let near = value.to_ascii_lowercase().replace(['_', '.', ' '], "-");
        let is_near = near != value && validate(field, &near).is_ok();
        let hint = if is_near { format!("; did you mean {near:?}?") } else { String::new() };
        return refuse(format!("has the character {bad:?}; only lowercase letters a-z, digits and '-' are allowed{hint}"));
    }
    if !value.starts_with(|c: char| c.is_ascii_lowercase()) {
        return refuse("must start with a letter".into());
    }
    if value.ends_with('-') {
        return refuse("must not end with '-'".into());
    }
    Ok(())
}

fn validate_not_reserved(field: &'static str, value: &str) -> Result<(), Invalid> {
    if RESERVED.contains(&value) || value.starts_with("toygres-") {
        return Err(Invalid::new(field, format!("{value:?} is a reserved word; choose another name")));
    }
    Ok(())
}

/// Events name who did something: the holder of the server's own token, or toygres by itself.
fn validate_no_own_actor(field: &'static str, value: &str) -> Result<(), Invalid> {
    if matches!(value, "root" | "toygres") {
        return Err(Invalid::new(field, format!("{value:?} is the server's own; choose another name")));
    }
    Ok(())
}

/// Roles and databases that an instance has already, and words that PostgreSQL takes for something else.
const SQL_RESERVED: &[&str] = &["none", "postgres", "public", "template0", "template1"];

/// What PostgreSQL takes without quotes, but for its keywords.
fn validate_sql(field: &'static str, value: &str) -> Result<(), Invalid> {
    let is_plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_');
    let begins_well = value.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if !begins_well || !value.chars().all(is_plain) || value.len() > 63 {
        let rule = "has to be 1 to 63 lowercase letters, digits and '_', no digit first";
        return Err(Invalid::new(field, rule));
    }
    if SQL_RESERVED.contains(&value) || ["pg_", "toygres"].iter().any(|prefix| value.starts_with(prefix)) {
        return Err(Invalid::new(field, format!("{value:?} is PostgreSQL's or toygres's own; choose another name")));
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $field:literal, $($check:path),+) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = Invalid;

            fn from_str(value: &str) -> Result<Self, Invalid> {
                $($check($field, value)?;)+
                Ok(Self(value.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = Invalid;

            fn try_from(value: String) -> Result<Self, Invalid> {
                value.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name_type!(
    /// An instance's name: 1 to 50 of `a-z0-9-`, a letter first, no `-` last, no reserved word.
    InstanceName,
    "name",
    validate,
    validate_not_reserved
);
name_type!(
    /// A namespace's name, by the same rules; `toygres` itself is allowed, it is a common choice.
    Namespace,
    "namespace",
    validate
);

name_type!(
    /// Whose a token is: by the same rules, and neither of those who act without one of these.
    TokenName,
    "name",
    validate,
    validate_no_own_actor
);

name_type!(
    /// A role of PostgreSQL: 1 to 63 of `a-z0-9_`, no digit first, none that PostgreSQL or toygres has for itself.
    RoleName,
    "owner",
    validate_sql
);

name_type!(
    /// A database, by the same rules.
    DatabaseName,
    "database",
    validate_sql
);

impl Default for RoleName {
    fn default() -> Self {
        Self("app".into())
    }
}

impl Default for DatabaseName {
    fn default() -> Self {
        Self("app".into())
    }
}

impl InstanceName {
    /// `toygres-<purpose>`: a name of toygres's own, which no user can take.
    ///
    /// # Errors
    /// If that can't be a name.
    pub fn own(purpose: &str) -> Result<Self, Invalid> {
        let name = format!("toygres-{purpose}");
        validate("name", &name)?;
        Ok(Self(name))
    }
}

impl Namespace {
    /// ` -n team` for commands that are shown to people; nothing for the default namespace.
    #[must_use]
    pub fn flag(namespace: &str) -> String {
        if namespace == Self::default().as_str() { String::new() } else { format!(" -n {namespace}") }
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self("default".into())
    }
}

/// What names one live instance: its namespace and its name in it. Shown as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceKey {
    /// The namespace.
    pub namespace: Namespace,
    /// The name, unique among the namespace's live instances.
    pub name: InstanceName,
}

impl InstanceKey {
    /// Checks both names.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn parse(namespace: &str, name: &str) -> Result<Self, Invalid> {
        Ok(Self { namespace: namespace.parse()?, name: name.parse()? })
    }

    /// As a command's argument, for commands that are shown to people: `demo -n team`, in the default namespace `demo`.
    #[must_use]
    pub fn argument(&self) -> String {
        format!("{}{}", self.name, Namespace::flag(self.namespace.as_str()))
    }
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_a_platform_would_refuse() {
        let long = "a".repeat(64);
        for bad in ["", "Demo", "..", "a/b", "-a", "a-", "1a", "ünïcode", "a b", "a_b", "null", "toygres-x", &long, "a\n"] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?} was accepted");
        }
        assert!("a".repeat(50).parse::<InstanceName>().is_ok());
        assert!("toygres".parse::<Namespace>().is_ok());
    }

    #[test]
    fn a_role_or_database_of_postgresql_s_or_toygres_s_own_is_refused() {
        let long = "a".repeat(64);
        for bad in
            ["", "App", "1a", "a-b", "a b", "a\"b", "ä", "postgres", "template1", "toygres", "toygres_backup", "pg_x", &long]
        {
            assert!(bad.parse::<RoleName>().is_err() && bad.parse::<DatabaseName>().is_err(), "{bad:?} was accepted");
        }
        for good in ["app", "_a1", "user", &long[1..]] {
            assert_eq!(good.parse::<RoleName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_name_of_toygres_s_own_is_no_users() {
        let own = InstanceName::own("database").unwrap();
        assert_eq!(own.as_str(), "toygres-database");
        assert!(own.as_str().parse::<InstanceName>().is_err());
        assert!(InstanceName::own("").is_err() && InstanceName::own("a/b").is_err());
    }

    #[test]
    fn a_name_that_nearly_is_one_is_answered_with_that_one() {
        let error = "Demo".parse::<InstanceName>().unwrap_err();
        assert!(error.to_string().contains("did you mean \"demo\"?"), "{error}");
        let error = "My_demo 1".parse::<InstanceName>().unwrap_err();
        assert!(error.to_string().contains("did you mean \"my-demo-1\"?"), "{error}");
        let error = "Düse_".parse::<InstanceName>().unwrap_err();
        assert!(!error.to_string().contains("did you mean"), "{error}");
    }

    proptest! {
        /// Whatever is accepted is a DNS-1035 label and a safe file name.
        #[test]
        fn accepted_names_are_dns_labels(text in "\\PC{0,60}") {
            if let Ok(name) = text.parse::<InstanceName>() {
                let name = name.as_str();
                prop_assert!(!name.is_empty() && name.len() <= MAX_NAME_LENGTH);
                prop_assert!(name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.ends_with('-'));
                prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            }
        }

        #[test]
        fn json_both_ways(text in "[a-z][a-z0-9]{1,40}") {
            prop_assume!(text.parse::<InstanceName>().is_ok());
            let name: InstanceName = text.parse().unwrap();
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<InstanceName>(&json).unwrap(), name);
        }
    }
}

//! PostgreSQL versions as people name them: a major (`17`) or a full version (`17.4`).

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::text_or_number::TextOrNumber;
use crate::Invalid;

/// The majors that toygres creates and watches.
pub const SUPPORTED_MAJORS: RangeInclusive<u16> = 14..=18;

/// A wanted PostgreSQL version: `17` is the newest 17 at hand, `17.4` is that one.
///
/// Only supported majors parse. Since version 10 PostgreSQL numbers its releases `major.minor`
/// (<https://www.postgresql.org/support/versioning/>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "TextOrNumber", into = "String")]
pub struct PostgresVersion {
    major: u16,
    minor: Option<u16>,
}

impl PostgresVersion {
    /// The oldest version that is supported.
    pub const OLDEST: Self = Self { major: *SUPPORTED_MAJORS.start(), minor: None };

    /// The major version, within [`SUPPORTED_MAJORS`].
    #[must_use]
    pub fn major(self) -> u16 {
        self.major
    }

    /// The minor version, where one was named.
    #[must_use]
    pub fn minor(self) -> Option<u16> {
        self.minor
    }

    /// Whether a server of `full` is what `self` asks for.
    #[must_use]
    pub fn accepts(self, full: Self) -> bool {
        self.major == full.major && (self.minor.is_none() || self.minor == full.minor)
    }
}

impl FromStr for PostgresVersion {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        let refuse = |problem: String| Invalid::new("postgres_version", problem);
        let number = |part: &str| {
            // Digits only and no leading zero, so that a version has one spelling.
            let plain = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
            part.parse::<u16>().ok().filter(|_| plain)
        };
        let shown: String = value.chars().take(40).collect();
        let malformed = || refuse(format!("{shown:?} is not a version; give a major such as 17, or a full version such as 17.4"));
        let (major, minor) = match value.split_once('.') {
            Some((major, minor)) => (number(major).ok_or_else(malformed)?, Some(number(minor).ok_or_else(malformed)?)),
            None => (number(value).ok_or_else(malformed)?, None),
        };
        if !SUPPORTED_MAJORS.contains(&major) {
            let (first, last) = (SUPPORTED_MAJORS.start(), SUPPORTED_MAJORS.end());
            return Err(refuse(format!("PostgreSQL {major} is not supported; supported are {first} to {last}")));
        }
        Ok(Self { major, minor })
    }
}

impl TryFrom<TextOrNumber> for PostgresVersion {
    type Error = Invalid;

    fn try_from(value: TextOrNumber) -> Result<Self, Invalid> {
        value.0.parse()
    }
}

impl From<PostgresVersion> for String {
    fn from(value: PostgresVersion) -> Self {
        value.to_string()
    }
}

impl fmt::Display for PostgresVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.major)?;
        self.minor.map_or(Ok(()), |minor| write!(f, ".{minor}"))
    }
}

/// A PostgreSQL version that a platform offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OfferedVersion {
    /// The full version, such as `15.18`, or a major where the newest of it would be fetched.
    #[schema(value_type = String)]
    pub postgres_version: PostgresVersion,
    /// Whether it can be used at once, with nothing to fetch.
    pub at_hand: bool,
    /// Where it comes from: a folder, `cache`, an archive's name, an image.
    pub source: String,
    /// Whether a create that names no version takes it.
    pub default: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn majors_and_full_versions_parse_and_the_rest_is_refused() {
        for good in ["14", "15.18", "17.0", "18"] {
            assert_eq!(good.parse::<PostgresVersion>().unwrap().to_string(), good);
        }
        for bad in
            ["", "13", "19", "99", "latest", "17.", ".4", "17.4.1", "017", "17.04", "-17", "+17", "17 ", "٠١٧", "17.99999999"]
        {
            assert!(bad.parse::<PostgresVersion>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_major_accepts_each_of_its_minors() {
        let (major, full): (PostgresVersion, PostgresVersion) = ("17".parse().unwrap(), "17.4".parse().unwrap());
        assert!(major.accepts(full) && full.accepts(full));
        assert!(!full.accepts("17.5".parse().unwrap()) && !major.accepts("16.4".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn what_parses_is_written_the_same(text in "\\PC{0,8}") {
            if let Ok(version) = text.parse::<PostgresVersion>() {
                prop_assert_eq!(version.to_string(), text);
            }
        }
    }
}

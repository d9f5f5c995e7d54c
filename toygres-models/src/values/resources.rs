//! What an instance may be given: compute, a class of storage, a public name. Checked by the rules
//! of Kubernetes, so that what is legal here is legal there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::text_or_number::TextOrNumber;
use crate::Invalid;

fn refuse(field: &'static str, value: &str, problem: &str) -> Invalid {
    let shown: String = value.chars().take(40).collect();
    Invalid::new(field, format!("{shown:?} {problem}"))
}

/// A whole number with one of `units` behind it: a part of what Kubernetes calls a quantity
/// (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>), so that an
/// amount has few spellings.
fn check_quantity(field: &'static str, value: &str, units: &[&str], example: &str) -> Result<(), Invalid> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &value[digits.len()..];
    let is_number = (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    if is_number && units.contains(&unit) {
        return Ok(());
    }
    Err(refuse(field, value, &format!("is not an amount that can be used; give one such as {example}")))
}

fn check_cpu(field: &'static str, value: &str) -> Result<(), Invalid> {
    check_quantity(field, value, &["", "m"], "1 or 500m")
}

fn check_memory(field: &'static str, value: &str) -> Result<(), Invalid> {
    check_quantity(field, value, &["Mi", "Gi", "Ti", "M", "G", "T"], "512Mi or 2Gi")
}

/// A DNS name in lowercase.
fn check_dns_name(field: &'static str, value: &str) -> Result<(), Invalid> {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        plain && !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
    };
    if value.len() <= 253 && value.split('.').all(is_label) {
        return Ok(());
    }
    Err(refuse(field, value, "is not a name of lowercase letters, digits, '-' and '.'"))
}

/// Azure's rules: 3 to 63 of `a-z0-9-`, a letter first, no `-` last.
fn check_dns_label(field: &'static str, value: &str) -> Result<(), Invalid> {
    let plain = value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let begins = value.starts_with(|c: char| c.is_ascii_lowercase());
    if plain && begins && !value.ends_with('-') && (3..=63).contains(&value.len()) {
        return Ok(());
    }
    Err(refuse(field, value, "has to be 3 to 63 lowercase letters, digits and '-', a letter first and no '-' last"))
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $type:ident, $field:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "TextOrNumber", into = "String")]
        pub struct $type(String);

        impl $type {
            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = Invalid;

            fn from_str(value: &str) -> Result<Self, Invalid> {
                $check($field, value)?;
                Ok(Self(value.to_owned()))
            }
        }

        impl TryFrom<TextOrNumber> for $type {
            type Error = Invalid;

            fn try_from(value: TextOrNumber) -> Result<Self, Invalid> {
                value.0.parse()
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
    };
}

checked_text!(
    /// An amount of processor time: cores (`2`) or thousandths of one (`500m`).
    Cpu,
    "cpu",
    check_cpu
);
checked_text!(
    /// An amount of memory with its unit: `512Mi`, `2Gi`, `1G`.
    Memory,
    "memory",
    check_memory
);
checked_text!(
    /// The name of a Kubernetes StorageClass.
    StorageClass,
    "storage_class",
    check_dns_name
);
checked_text!(
    /// The label of a public DNS name on Azure: `<label>.<region>.cloudapp.azure.com`.
    DnsLabel,
    "dns_label",
    check_dns_label
);
checked_text!(
    /// A cluster's DNS domain, `cluster.local` nearly everywhere.
    ClusterDomain,
    "cluster_domain",
    check_dns_name
);

impl Memory {
    /// In MiB, rounded down; 0 for less than one.
    #[must_use]
    pub fn mebibytes(&self) -> u64 {
        let digits = self.0.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let bytes: u64 = match &self.0[digits.len()..] {
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            _ => 1_000_000_000_000,
        };
        // At most nine digits and tera: within 64 bits once it is in MiB.
        let amount = u128::from(digits.parse::<u64>().unwrap_or_default()) * u128::from(bytes);
        u64::try_from(amount >> 20).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_amounts_are_amounts() {
        for good in ["1", "500m", "64"] {
            assert_eq!(good.parse::<Cpu>().unwrap().as_str(), good);
        }
        for bad in ["", "0", "-1", "1.5.2", "1e3", "m", "1 m", "1\nm", "9999999999", "{}", "1Gi", "１"] {
            assert!(bad.parse::<Cpu>().is_err(), "{bad:?} was accepted");
        }
        for good in ["512Mi", "2Gi", "1G"] {
            assert_eq!(good.parse::<Memory>().unwrap().as_str(), good);
            assert!(good.parse::<Memory>().unwrap().mebibytes() > 0, "{good}");
        }
        for bad in ["", "2", "2gi", "Gi", "2 Gi", "2Gi\n", "0Gi"] {
            assert!(bad.parse::<Memory>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn names_and_labels_are_checked() {
        assert!("fast.example".parse::<StorageClass>().is_ok());
        for bad in ["", "A", "a..b", "a b", "-a", "a:\n b"] {
            assert!(bad.parse::<StorageClass>().is_err(), "{bad:?} was accepted");
        }
        assert!("my-demo1".parse::<DnsLabel>().is_ok());
        for bad in ["", "ab", "1ab", "ab-", "Abc", "a.b.c", &"x".repeat(64)] {
            assert!(bad.parse::<DnsLabel>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_error_names_the_field() {
        assert_eq!("x".parse::<Cpu>().unwrap_err().field, "cpu");
        assert_eq!("x".parse::<DnsLabel>().unwrap_err().field, "dns_label");
    }
}

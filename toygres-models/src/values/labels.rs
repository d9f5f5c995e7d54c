//! Labels: what people sort their instances by, and the selectors that pick some of them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// The most labels that an instance may have.
pub const MAX_LABELS: usize = 32;
/// The longest key and the longest value, as on Kubernetes.
const MAX_LENGTH: usize = 63;

/// Labels of an instance: keys of 1 to 63 of `a-zA-Z0-9._/-`, values of 0 to 63 of `a-zA-Z0-9._-`, a
/// letter or digit at either end; at most 32 of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// The labels, in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = Invalid;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, Invalid> {
        if labels.len() > MAX_LABELS {
            return Err(Invalid::new("labels", format!("are {}; at most {MAX_LABELS} are allowed", labels.len())));
        }
        for (key, value) in &labels {
            check_key(key)?;
            check_value(key, value)?;
        }
        Ok(Self(labels))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

fn is_plain(text: &str, also: &str) -> bool {
    let at_end = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= MAX_LENGTH
        && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
        && at_end(text.chars().next())
        && at_end(text.chars().next_back())
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(70).collect::<String>())
}

fn check_key(key: &str) -> Result<(), Invalid> {
    if !key.is_empty() && is_plain(key, "._/-") {
        return Ok(());
    }
    let problem = "can't be a key; give 1 to 63 letters, digits, '.', '_', '/' and '-', a letter or digit at either end";
    Err(Invalid::new("labels", format!("{} {problem}", shown(key))))
}

fn check_value(key: &str, value: &str) -> Result<(), Invalid> {
    if is_plain(value, "._-") {
        return Ok(());
    }
    let problem = "can't be a value; give at most 63 letters, digits, '.', '_' and '-', a letter or digit at either end";
    Err(Invalid::new("labels", format!("{key}: {} {problem}", shown(value))))
}

/// Which instances are meant, by their labels: `team=a,env=prod,reviewed`, where all have to hold: a
/// label with that value, or any value where none is named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// Labels that an instance must have.
    pub equal: Labels,
    /// Keys that an instance must have, with any value.
    pub present: Vec<String>,
}

impl FromStr for LabelSelector {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let renamed = |invalid: Invalid| Invalid { field: "label_selector", ..invalid };
        let mut equal = BTreeMap::new();
        let mut present = Vec::new();
        for part in text.split(',').map(|part| part.trim_matches(' ')) {
            match part.split_once('=') {
                Some((key, value)) => {
                    let (key, value) = (key.trim_matches(' '), value.strip_prefix('=').unwrap_or(value).trim_matches(' '));
                    if equal.insert(key.to_owned(), value.to_owned()).is_some_and(|other| other != value) {
                        let problem = format!("asks for two values of {}; no instance has both", shown(key));
                        return Err(Invalid::new("label_selector", problem));
                    }
                }
                None => {
                    check_key(part).map_err(renamed)?;
                    present.push(part.to_owned());
                }
            }
        }
        Ok(Self { equal: Labels::try_from(equal).map_err(renamed)?, present })
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equal = self.equal.iter().map(|(key, value)| format!("{key}={value}"));
        f.write_str(&equal.chain(self.present.iter().cloned()).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Result<Labels, Invalid> {
        Labels::try_from(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>())
    }

    #[test]
    fn only_plain_text_is_a_label() {
        assert!(labels(&[("team", "a"), ("example.org/env", ""), ("a_b", "x.y-z")]).is_ok());
        let long = "x".repeat(64);
        for (key, value) in
            [("", "a"), ("-a", "b"), ("a", "b c"), ("a", "b'"), ("a\n", "b"), (&long, "b"), ("a", &long), ("a", "ü")]
        {
            assert_eq!(labels(&[(key, value)]).unwrap_err().field, "labels", "{key:?}: {value:?} was accepted");
        }
        let many: BTreeMap<_, _> = (0..33).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(Labels::try_from(many).is_err());
    }

    #[test]
    fn selectors_ask_for_values_or_for_presence() {
        let selector: LabelSelector = "team=a, env==prod,reviewed".parse().unwrap();
        assert_eq!(selector.equal, labels(&[("env", "prod"), ("team", "a")]).unwrap());
        assert_eq!(selector.present, ["reviewed"]);
        assert_eq!(selector.to_string().parse::<LabelSelector>().unwrap(), selector);
        for bad in ["", ",", "=a", "a=b,a=c", "a b", "a=b;drop", "a===b", "\u{c}a"] {
            assert_eq!(bad.parse::<LabelSelector>().unwrap_err().field, "label_selector", "{bad:?} was accepted");
        }
    }
}

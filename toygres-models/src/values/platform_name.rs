//! The platforms by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// Where instances can run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlatformName {
    /// As server processes on the server's own machine.
    #[default]
    Local,
    /// As pods on a Kubernetes cluster.
    Kubernetes,
}

impl PlatformName {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Local, Self::Kubernetes];

    /// `local` or `kubernetes`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Kubernetes => "kubernetes",
        }
    }
}

crate::sql::stored_as_text!(PlatformName);

impl fmt::Display for PlatformName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PlatformName {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        let known = Self::ALL.into_iter().find(|name| name.as_str() == value);
        let shown: String = value.chars().take(40).collect();
        known.ok_or_else(|| Invalid::new("platform", format!("{shown:?} is unknown; known are local and kubernetes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        for name in PlatformName::ALL {
            assert_eq!(name.as_str().parse::<PlatformName>().unwrap(), name);
            assert_eq!(serde_json::to_string(&name).unwrap(), format!("\"{name}\""));
        }
        for bad in ["", "Local", "k8s", "docker"] {
            assert_eq!(bad.parse::<PlatformName>().unwrap_err().field, "platform");
        }
    }
}

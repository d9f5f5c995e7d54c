//! What of an instance isn't as its spec has it, on its platform.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::text::one_line;

/// A part of an instance that somebody else changed or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drift {
    /// The part, for a person: `the Service`.
    pub part: String,
    /// What in it is another; none where all of it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What the field is; none where it isn't there, or is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// What the field is to be; none where it shouldn't be there, or is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
    /// Who changed it, where that is known: on Kubernetes a field manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_by: Option<String>,
    /// What a person can do; none where toygres puts it right by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How much of a value is shown.
const SHOWN: usize = 120;

impl Drift {
    /// A value as it is shown.
    #[must_use]
    pub fn shown(value: &str) -> String {
        one_line(value, SHOWN)
    }

    /// A part that is gone, and that toygres makes again.
    #[must_use]
    pub fn gone(part: &str) -> Self {
        Self { part: part.to_owned(), field: None, found: None, wanted: None, changed_by: None, remedy: None }
    }

    /// Whether toygres puts it right by itself.
    #[must_use]
    pub fn is_mended(&self) -> bool {
        self.remedy.is_none()
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, field, found, wanted, changed_by, remedy } = self;
        let Some(field) = field else { return write!(f, "{part} is gone") };
        write!(f, "{field} of {part} is ")?;
        match (found, wanted) {
            (Some(found), Some(wanted)) => write!(f, "{found}, not {wanted}")?,
            (Some(found), None) => write!(f, "{found}, and should not be there")?,
            (None, Some(wanted)) => write!(f, "gone; it should be {wanted}")?,
            (None, None) => write!(f, "not what toygres made it")?,
        }
        if let Some(changed_by) = changed_by {
            write!(f, " (changed by {changed_by})")?;
        }
        remedy.as_ref().map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_in_one_sentence() {
        assert_eq!(Drift::gone("the Service").to_string(), "the Service is gone");
        let changed = Drift {
            field: Some("spec.type".into()),
            found: Some("NodePort".into()),
            wanted: Some("ClusterIP".into()),
            changed_by: Some("kubectl-edit".into()),
            ..Drift::gone("the Service")
        };
        assert_eq!(changed.to_string(), "spec.type of the Service is NodePort, not ClusterIP (changed by kubectl-edit)");
        let secret = Drift { found: None, wanted: None, changed_by: None, ..changed };
        assert_eq!(secret.to_string(), "spec.type of the Service is not what toygres made it");
    }
}

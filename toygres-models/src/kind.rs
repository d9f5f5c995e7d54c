//! Kinds of operations. A kind is a value: what may begin it, what its end does to the instance, how it
//! is cancelled and retried, and its words for people. The code that begins, ends, cancels and retries
//! operations knows no kind by name.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::InstanceState::{self, Creating, Deleting, Failed, Running, Stopped};
use crate::Invalid;

/// What a failure of an operation does to its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It becomes `failed`. What was made or left stays as evidence.
    MarkFailed,
    /// It keeps its state. A change of the spec is reverted.
    KeepState,
}

/// What a cancel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCancel {
    /// What was made is removed.
    Remove,
    /// The spec of before is restored, on record and on the platform.
    Revert,
    /// Possible until the first step has begun. Nothing was done then.
    BeforeFirstStep,
}

/// A kind of operation.
#[derive(Debug)]
pub struct Kind {
    /// Its name in JSON, SQL and prose, a verb: `create`.
    pub name: &'static str,
    /// What it is called in a sentence: `the creation of demo`.
    pub noun: &'static str,
    /// What has become of the instance after its success: `demo is created`.
    pub participle: &'static str,
    /// In which states of the instance it may begin. A kind that makes the instance names none.
    pub begins_in: &'static [InstanceState],
    /// The instance's state while it is at work, where that differs.
    pub state_at_work: Option<InstanceState>,
    /// What its failure does.
    pub on_failure: OnFailure,
    /// What a cancel does.
    pub on_cancel: OnCancel,
    /// What is said of the instance after a cancel.
    pub cancelled_words: &'static str,
    /// Whether it may begin while another operation is at work, which is given up then.
    pub overtakes: bool,
    /// Whether a second request while one is at work is answered with that one.
    pub joins: bool,
    /// Whether it removes data, which delete protection forbids.
    pub removes_data: bool,
    /// Whether a request for it is `POST /v1/instances/{name}/{kind}`.
    pub is_verb: bool,
    /// Whether it ends the server, which is no news then.
    pub ends_server: bool,
    /// The event of its success.
    pub succeeded_event: &'static str,
    /// The event of its failure.
    pub failed_event: &'static str,
}

const CREATE: Kind = Kind {
    name: "create",
    noun: "creation",
    participle: "created",
    begins_in: &[],
    state_at_work: Some(Creating),
    on_failure: OnFailure::MarkFailed,
    on_cancel: OnCancel::Remove,
    cancelled_words: "what was made of it is removed",
    overtakes: false,
    joins: false,
    removes_data: false,
    is_verb: false,
    ends_server: false,
    succeeded_event: "instance_running",
    failed_event: "instance_failed",
};

const UPDATE: Kind = Kind {
    name: "update",
    noun: "change",
    participle: "changed",
    begins_in: &[Running, Stopped, Failed],
    state_at_work: None,
    on_failure: OnFailure::KeepState,
    on_cancel: OnCancel::Revert,
    cancelled_words: "it is as before",
    succeeded_event: "instance_updated",
    failed_event: "update_failed",
    ..CREATE
};

const ADOPT: Kind = Kind {
    name: "adopt",
    noun: "adoption",
    participle: "adopted",
    begins_in: &[Running, Stopped],
    state_at_work: None,
    on_failure: OnFailure::KeepState,
    on_cancel: OnCancel::BeforeFirstStep,
    cancelled_words: "nothing of it was changed",
    succeeded_event: "instance_adopted",
    failed_event: "adopt_failed",
    ..CREATE
};

const RESTART: Kind = Kind {
    name: "restart",
    noun: "restart",
    participle: "restarted",
    begins_in: &[Running],
    state_at_work: None,
    on_failure: OnFailure::KeepState,
    on_cancel: OnCancel::BeforeFirstStep,
    cancelled_words: "its server was not restarted",
    joins: true,
    is_verb: true,
    ends_server: true,
    succeeded_event: "instance_restarted",
    failed_event: "restart_failed",
    ..CREATE
};

const ROTATE_PASSWORD: Kind = Kind {
    name: "rotate-password",
    noun: "rotation of the password",
    participle: "given a new password",
    begins_in: &[Running],
    state_at_work: None,
    on_failure: OnFailure::KeepState,
    on_cancel: OnCancel::BeforeFirstStep,
    cancelled_words: "its password was not changed",
    joins: true,
    is_verb: true,
    succeeded_event: "password_rotated",
    failed_event: "rotate_password_failed",
    ..CREATE
};

const DELETE: Kind = Kind {
    name: "delete",
    noun: "deletion",
    participle: "deleted",
    begins_in: &[Creating, Running, Stopped, Failed, Deleting],
    state_at_work: Some(Deleting),
    on_failure: OnFailure::MarkFailed,
    on_cancel: OnCancel::BeforeFirstStep,
    cancelled_words: "nothing of it was removed",
    overtakes: true,
    joins: true,
    removes_data: true,
    is_verb: false,
    ends_server: true,
    succeeded_event: "instance_deleted",
    failed_event: "instance_failed",
};

/// What an operation does: one of the kinds above.
#[derive(Clone, Copy)]
pub struct OperationKind(&'static Kind);

impl OperationKind {
    /// Makes an instance.
    pub const CREATE: Self = Self(&CREATE);
    /// Makes an instance what its spec says: every change of the spec.
    pub const UPDATE: Self = Self(&UPDATE);
    /// Takes an instance that has no record on record, with its data.
    pub const ADOPT: Self = Self(&ADOPT);
    /// Restarts an instance's server.
    pub const RESTART: Self = Self(&RESTART);
    /// Gives an instance's user a new password.
    pub const ROTATE_PASSWORD: Self = Self(&ROTATE_PASSWORD);
    /// Removes an instance and all its data.
    pub const DELETE: Self = Self(&DELETE);
    /// Every kind.
    pub const ALL: &'static [Self] =
        &[Self::CREATE, Self::ADOPT, Self::UPDATE, Self::RESTART, Self::ROTATE_PASSWORD, Self::DELETE];

    /// The kind's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.0.name
    }

    /// Whether a request for it may begin in that state of the instance.
    #[must_use]
    pub fn may_begin_in(self, state: InstanceState) -> bool {
        self.begins_in.contains(&state)
    }

    /// The states in which it may begin, for a person: `running or stopped`.
    #[must_use]
    pub fn begins_in_words(self) -> String {
        self.begins_in.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(" or ")
    }
}

impl Deref for OperationKind {
    type Target = Kind;

    fn deref(&self) -> &Kind {
        self.0
    }
}

impl PartialEq for OperationKind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for OperationKind {}

impl fmt::Debug for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

impl FromStr for OperationKind {
    type Err = Invalid;

    fn from_str(value: &str) -> Result<Self, Invalid> {
        Self::ALL.iter().copied().find(|known| known.name == value).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|known| known.name).collect();
            Invalid::new("kind", format!("{value:?} is unknown; known are {}", known.join(", ")))
        })
    }
}

impl Serialize for OperationKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for OperationKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<str>::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

crate::sql::stored_as_text!(OperationKind);

impl PartialSchema for OperationKind {
    fn schema() -> RefOr<Schema> {
        let names = Self::ALL.iter().map(|kind| kind.name);
        let schema =
            ObjectBuilder::new().schema_type(Type::String).description(Some("What an operation does.")).enum_values(Some(names));
        RefOr::T(Schema::Object(schema.build()))
    }
}

impl ToSchema for OperationKind {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_their_names_in_json() {
        for kind in OperationKind::ALL {
            let json = serde_json::to_string(kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
            assert_eq!(serde_json::from_str::<OperationKind>(&json).unwrap(), *kind);
        }
        assert!("nosuch".parse::<OperationKind>().is_err());
    }

    #[test]
    fn nothing_begins_on_what_is_gone() {
        assert!(OperationKind::ALL.iter().all(|kind| !kind.may_begin_in(InstanceState::Deleted)));
    }

    #[test]
    fn only_what_removes_data_overtakes() {
        assert!(OperationKind::ALL.iter().all(|kind| kind.overtakes == kind.removes_data));
    }
}

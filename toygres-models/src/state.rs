//! States, and which may follow which.
//!
//! The table [`InstanceState::TRANSITIONS`] is the same as the SQL table `state_transitions`, which
//! a trigger enforces; a test on a real PostgreSQL compares the two.

use serde::{Deserialize, Serialize};

macro_rules! text_enum {
    ($(#[$doc:meta])* $type:ident, $field:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $type { $($(#[$variant_doc])* $variant),+ }

        impl $type {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The value's name in JSON, SQL and prose.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        $crate::sql::stored_as_text!($type);

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::Invalid;

            fn from_str(value: &str) -> Result<Self, $crate::Invalid> {
                Self::ALL.iter().copied().find(|known| known.as_str() == value).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|known| known.as_str()).collect();
                    $crate::Invalid::new($field, format!("{value:?} is unknown; known are {}", known.join(", ")))
                })
            }
        }
    };
}
pub(crate) use text_enum;

text_enum!(
    /// Where an instance is in its life. Health is not a state: see `health_status`.
    InstanceState, "state" {
        /// A create operation is at work.
        Creating = "creating",
        /// Created; its server is kept running.
        Running = "running",
        /// Created; its server is stopped. Data, address and password are kept.
        Stopped = "stopped",
        /// Its creation or deletion failed; what is left of it is kept as evidence until deleted.
        Failed = "failed",
        /// A delete operation is at work.
        Deleting = "deleting",
        /// Gone; the name is free again.
        Deleted = "deleted",
    }
);

impl InstanceState {
    /// Which state may follow which. Staying in a state is always legal.
    pub const TRANSITIONS: &'static [(Self, Self)] = &[
        (Self::Creating, Self::Running),
        (Self::Creating, Self::Stopped),
        (Self::Creating, Self::Failed),
        (Self::Creating, Self::Deleting),
        (Self::Running, Self::Stopped),
        (Self::Running, Self::Deleting),
        (Self::Stopped, Self::Running),
        (Self::Stopped, Self::Deleting),
        (Self::Failed, Self::Creating),
        (Self::Failed, Self::Running),
        (Self::Failed, Self::Stopped),
        (Self::Failed, Self::Deleting),
        (Self::Deleting, Self::Running),
        (Self::Deleting, Self::Stopped),
        (Self::Deleting, Self::Failed),
        (Self::Deleting, Self::Deleted),
    ];

    /// Whether `next` may follow `self`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        self == next || Self::TRANSITIONS.contains(&(self, next))
    }
}

text_enum!(
    /// Where an operation is. The last three are final.
    OperationState, "state" {
        /// Written down; its workflow hasn't begun.
        Pending = "pending",
        /// Its workflow is at work.
        Running = "running",
        /// Done.
        Succeeded = "succeeded",
        /// Ended without reaching its goal; `error` says why.
        Failed = "failed",
        /// Ended since somebody cancelled it; what it had done was put back.
        Cancelled = "cancelled",
    }
);

impl OperationState {
    /// Whether it has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

text_enum!(
    /// Where a step of an operation is.
    StepState, "state" {
        /// At work, or cut off and about to be repeated.
        Running = "running",
        /// Done.
        Succeeded = "succeeded",
        /// Its last attempt failed.
        Failed = "failed",
    }
);

text_enum!(
    /// What a token lets its holder do; each role may do all that the ones before it may.
    Role, "role" {
        /// Look at everything but passwords.
        Viewer = "viewer",
        /// Also read passwords, and create, change and delete instances.
        Editor = "editor",
        /// Also set quotas and, with a token for every namespace, make and revoke tokens.
        Admin = "admin",
    }
);

impl Role {
    /// Whether the holder may do what `needed` may.
    #[must_use]
    pub fn includes(self, needed: Self) -> bool {
        let rank = |role| Self::ALL.iter().position(|known| *known == role);
        rank(self) >= rank(needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_is_the_end_and_every_state_leads_there() {
        for &state in InstanceState::ALL {
            assert!(!InstanceState::Deleted.may_become(state) || state == InstanceState::Deleted);
            let mut reached = vec![state];
            while let Some(next) = InstanceState::TRANSITIONS
                .iter()
                .find(|(from, to)| reached.contains(from) && !reached.contains(to))
                .map(|(_, to)| *to)
            {
                reached.push(next);
            }
            assert!(reached.contains(&InstanceState::Deleted), "{state} never ends");
        }
    }

    #[test]
    fn a_create_is_never_repeated_over_what_lives() {
        assert!(!InstanceState::Deleting.may_become(InstanceState::Creating));
        assert!(!InstanceState::Running.may_become(InstanceState::Creating));
    }

    #[test]
    fn a_role_includes_those_below_it() {
        assert!(Role::Admin.includes(Role::Viewer) && Role::Editor.includes(Role::Editor));
        assert!(!Role::Viewer.includes(Role::Editor) && !Role::Editor.includes(Role::Admin));
    }

    #[test]
    fn names_are_the_same_in_json_and_text() {
        for &state in InstanceState::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
            assert_eq!(state.as_str().parse::<InstanceState>().unwrap(), state);
        }
    }
}

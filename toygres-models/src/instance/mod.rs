//! An instance as people and programs speak of it: what it is to be ([`InstanceSpec`]) and what was
//! seen of it ([`InstanceStatus`]).

mod fields;
mod schemas;
mod spec;
mod status;

pub use fields::{Effect, FIELDS, Field, field};
pub use spec::{Difference, InstanceSpec, Power};
pub use status::{InstanceStatus, MemberStatus, StepFailure};

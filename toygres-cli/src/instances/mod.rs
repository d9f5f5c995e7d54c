//! Instances: listed, made, changed, deleted.

pub mod apply;
pub mod create;
pub mod delete;
pub mod diff;
pub mod documents;
pub mod list;
pub mod versions;

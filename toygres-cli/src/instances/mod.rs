//! Instances: listed, made, changed, deleted.

pub mod adopt;
pub mod apply;
pub mod create;
pub mod delete;
pub mod diff;
pub mod documents;
pub mod extension;
pub mod list;
pub mod power;
pub mod versions;

//! What happened: events, logs, operations, and why an instance isn't well.

pub mod events;
pub mod logs;
pub mod operations;
pub mod why;

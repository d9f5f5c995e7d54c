//! What happened to instances: events, logs, and why one isn't well.

pub mod events;
pub mod health;
pub mod logs;
pub mod top;
pub mod why;

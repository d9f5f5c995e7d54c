//! What all routes have in common: how requests are read, limited and described, and how errors are told.

pub mod body;
pub mod conventions;
pub mod envelope;
pub mod idempotency_key;
pub mod limits;
pub mod openapi;
pub mod problem;
pub mod request;
pub mod traffic;

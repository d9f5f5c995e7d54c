//! What all routes have in common: how requests are read, limited and described, and how errors are told.

pub mod body;
pub mod conventions;
pub mod envelope;
pub mod limits;
pub mod openapi;
pub mod problem;
pub mod request;
pub mod store_probe;
pub mod traffic;
pub mod waits;

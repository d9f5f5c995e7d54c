//! Durable workflows that create, change, restart and delete PostgreSQL instances.
//!
//! One file a workflow, one workflow a kind of operation. They schedule the activities of
//! `toygres-activities` and nothing else; whatever they need to know is in their input, and what
//! they find out goes back through update-metadata.

pub mod create_instance;
pub mod delete_instance;
pub mod health_sweep;
pub mod names;
pub mod registry;
pub mod restart_instance;
pub mod retry;
pub mod rotate_password;
mod steps;
pub mod types;
pub mod update_instance;

pub use types::*;

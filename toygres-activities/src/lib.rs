//! Durable activities that deploy, watch, reach and remove PostgreSQL instances.
//!
//! They follow duroxide's cross-crate registry pattern: [`names`] has the names, [`types`] the
//! inputs and outputs, [`registry`] puts them into a registry that another crate merges into its
//! own. What an activity does is decided by the [`platform`] that it is given.
//!
//! # Usage
//!
//! ```rust,no_run
//! use duroxide::OrchestrationContext;
//! use duroxide::runtime::registry::ActivityRegistry;
//! use toygres_activities::names::activities;
//! use toygres_activities::registry::create_activity_registry;
//! use toygres_activities::{DeployPostgresInput, DeployPostgresOutput};
//!
//! // Merge toygres's activities into a registry of your own.
//! let registry = ActivityRegistry::builder().merge(create_activity_registry()).build_result();
//!
//! // Use them in an orchestration of your own.
//! async fn deploy(ctx: OrchestrationContext, name: String) -> Result<String, String> {
//!     let input = DeployPostgresInput {
//!         namespace: "default".into(),
//!         instance_name: name,
//!         // Stored in the workflow's history in clear text; a reference would not be.
//!         password: "secret://default/demo".into(),
//!         postgres_version: "17".into(),
//!         storage_size_gb: 10,
//!         use_load_balancer: false,
//!         dns_label: None,
//!     };
//!     let output: DeployPostgresOutput =
//!         ctx.schedule_activity_typed(activities::DEPLOY_POSTGRES, &input).await?;
//!     Ok(output.instance_name)
//! }
//! # let _ = (registry, deploy);
//! ```
//!
//! # Errors
//!
//! An activity's error is a [`Failure`](toygres_models::Failure) as JSON: `kind`, `message`,
//! `retryable` and the platform's own words; [`Failure::decode`](toygres_models::Failure::decode)
//! reads it. A workflow retries what is retryable and gives up on the rest.

pub mod context;
pub mod diagnosis;
pub mod k8s_client;
pub mod kill_point;
pub mod names;
mod password_checks;
pub mod platform;
pub mod platforms;
pub mod registry;
pub mod secrets;
pub mod server_log;
pub mod types;

mod activities {
    pub mod delete_postgres;
    pub mod deploy_postgres;
    pub mod get_connection_strings;
    pub mod restart_postgres;
    pub mod revert_operation;
    pub mod rotate_password;
    pub mod sweep_health;
    pub mod test_connection;
    pub mod update_metadata;
    pub mod wait_for_ready;
}

pub use activities::sweep_health::Swept;
pub use activities::test_connection::log_in;
pub use context::Context;
pub use platforms::{Place, Platforms};
pub use types::*;

//! The server of toygres: its HTTP API, and the workers that carry out what is asked for.
//!
//! [`server`] runs the control plane as its [`settings`] say, and serves [`api`].

pub mod api;
pub mod private_file;
pub mod server;
pub mod settings;
mod workers;

/// The version of the server.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

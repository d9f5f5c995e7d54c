//! The program `toygres`: server, worker and command line in one binary.
//!
//! [`server`] runs the control plane and serves [`api`]; [`cli`] is what a person types, and
//! speaks to a server through [`client`]. All of them take their [`settings`] the same way.

pub mod api;
pub mod cli;
pub mod client;
mod private_file;
pub mod server;
pub mod settings;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

//! The way to an instance for a PostgreSQL client.

pub mod client_program;
pub mod connect;
pub mod dump;
pub mod psql;
pub mod route;

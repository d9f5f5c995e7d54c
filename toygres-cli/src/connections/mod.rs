//! The way to an instance for a PostgreSQL client.

pub mod connect;
pub mod psql;
pub mod route;

//! Requests to a server, and what it streams.

pub mod api;
pub mod event_stream;
pub mod follower;
pub mod load;
pub mod raw;

//! The API of a toygres server: the types of its requests and answers, and a typed client.
//!
//! Records such as instances, operations and events are `toygres-models`' own; [`resources`] has
//! what goes over the wire besides them.

mod client;
pub mod explanation;
pub mod local_socket;
pub mod manifest;
pub mod resources;

pub use client::{
    Applied, Client, ClientError, EventMessage, EventRequest, EventStream, InstanceQuery, LogLines, PageRequest, Submitted,
    all_pages,
};

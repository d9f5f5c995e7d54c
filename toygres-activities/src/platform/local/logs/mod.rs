//! A server's log: its files, and reading them as a stream.

pub(in crate::platform::local) mod files;
pub(in crate::platform::local) mod reader;

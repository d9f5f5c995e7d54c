//! Values that are checked where they come in: names, versions, sizes, labels, passwords, URIs.

pub mod connection;
pub mod extension;
pub mod labels;
pub mod name;
pub mod password;
pub mod platform_name;
pub mod resources;
pub mod size;
mod text_or_number;
pub mod version;

//! What is waited for, measured, searched and compared.

pub mod by_hand;
pub(crate) mod evidence;
pub mod measure;
pub mod mount;
pub mod search;
pub mod wait;

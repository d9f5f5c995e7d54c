//! Who may do what, where: log-ins and contexts, tokens, namespaces and their quotas.

pub mod context;
pub mod login;
pub mod namespaces;
pub mod secret_input;
pub mod token;

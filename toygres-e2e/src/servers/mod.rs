//! The program under test, its processes, and the databases and folders that it gets.

pub mod control;
pub mod place;
pub mod process;
pub(crate) mod ready_pool;
pub mod run;
pub mod store_database;
pub mod terminal;
pub mod toygres;

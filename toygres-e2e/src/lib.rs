//! What the end-to-end tests and the bench share: a `toygres` with a state directory of its own,
//! seen from outside as a person or a program sees it.
//!
//! The program under test is `TOYGRES_BIN`, else `target/debug/toygres` (for the bench
//! `target/release/toygres`). Tests run side by side; each has folders, ports and processes of its
//! own, and takes them down when it ends, however it ends. What a test needs and the machine lacks
//! makes it skip itself, and fail where `CI` is set.
//!
//! | variable | meaning |
//! |---|---|
//! | `TOYGRES_BIN` | the program under test |
//! | `TOYGRES_TEST_DIR` | where state directories are made; anybody must be able to pass through it |
//! | `TOYGRES_TEST_CACHE_DIR` | where fetched PostgreSQL builds are kept between runs |
//! | `TOYGRES_TEST_KEEP` | if set, a test's folder stays for a look |
//! | `TOYGRES_TEST_KUBERNETES` | `1` allows tests on the cluster of `KUBECONFIG`, by kubectl and toygres |
//! | `TOYGRES_TEST_KUBERNETES_REQUIRED` | `1` makes a failure of a cluster that isn't given |
//! | `CI` | if set, nothing else is skipped |

pub mod api;
pub mod by_hand;
pub mod control;
pub mod event_stream;
mod evidence;
pub mod follower;
pub mod kubernetes;
pub mod load;
pub mod measure;
pub mod mount;
pub mod place;
pub mod process;
pub mod raw;
mod ready_pool;
pub mod run;
pub mod search;
pub mod store_database;
pub mod terminal;
pub mod toygres;
pub mod wait;

pub use api::Api;
pub use event_stream::EventStream;
pub use follower::Follower;
pub use kubernetes::Cluster;
pub use place::required_or_skip;
pub use run::Run;
pub use toygres::Toygres;
pub use wait::{eventually, wait_until};

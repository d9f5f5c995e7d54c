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

mod checks;
mod http;
pub mod kubernetes;
mod servers;

pub use checks::wait::{eventually, wait_until};
pub use checks::{by_hand, measure, mount, search, wait};
pub use http::api::Api;
pub use http::event_stream::EventStream;
pub use http::follower::Follower;
pub use http::{api, event_stream, follower, load, raw};
pub use kubernetes::Cluster;
pub use servers::place::required_or_skip;
pub use servers::run::Run;
pub use servers::toygres::Toygres;
pub use servers::{control, place, process, run, store_database, terminal, toygres};

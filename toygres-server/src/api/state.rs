//! What the handlers work with.

use std::sync::Arc;

use axum::extract::State;
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use toygres_activities::platform::local::LocalHost;
use toygres_activities::{Platforms, Swept};
use toygres_models::Store;
use toygres_models::store::Changes;

use crate::api::http::traffic::Traffic;
use crate::api::instances::activity::SessionLooks;
use crate::api::observations::Observations;
use crate::workers::clock::Clock;
use crate::workers::event_feed::EventFeed;
use crate::workers::workflows::Workflows;

/// What the handlers work with.
pub struct AppState {
    /// The metadata store.
    pub store: Store,
    /// This machine's clock, held against the metadata store's.
    pub clock: Arc<Clock>,
    /// Where instances run, and their passwords rest.
    pub platforms: Platforms,
    /// This machine, for what it is busy with, where it has instances.
    pub host: Option<Arc<LocalHost>>,
    /// The context of the kubeconfig that the server was started with, where one was named.
    pub kube_context: Option<String>,
    /// When instances were last looked at.
    pub observations: Observations,
    /// What was last found out about sessions.
    pub session_looks: SessionLooks,
    /// The workflow engine.
    pub workflows: Arc<Workflows>,
    /// Wakes those who wait for a change.
    pub changes: Changes,
    /// Tells the streams what happens.
    pub feed: Arc<EventFeed>,
    /// The server's own token: its holder may do everything.
    pub token: SecretString,
    /// Whether admins may log in to instances as superuser.
    pub hands_out_superuser: bool,
    /// Cancelled when the server stops: who waits is answered at once.
    pub stopping: CancellationToken,
    /// What this server counts of itself.
    pub recorder: PrometheusHandle,
    /// The instances that this server looks at.
    pub swept: Swept,
    /// What requests come.
    pub traffic: Arc<Traffic>,
}

/// The state as handlers take it.
pub type Shared = State<Arc<AppState>>;

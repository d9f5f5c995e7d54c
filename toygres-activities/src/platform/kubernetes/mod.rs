//! The Kubernetes platform: PostgreSQL servers as pods.
//!
//! An instance is these objects in the Kubernetes namespace of its own namespace's name, rendered
//! from `src/templates/`:
//!
//! | object | name | what for |
//! |---|---|---|
//! | StatefulSet, Service | `<name>` | the server, and how it is reached |
//! | PersistentVolumeClaim | `<name>-data` | its data |
//! | ConfigMap | `<name>-config` | start script, probes, `postgresql.conf`, `pg_hba.conf` |
//! | Secret | `<name>-connection`, `<name>-tls` | how applications log in as the owner, the server's certificate |
//! | ServiceAccount, NetworkPolicy, PodDisruptionBudget | `<name>-postgres` | what safety needs |
//!
//! What carries the label `app.kubernetes.io/managed-by: toygres` and the annotation
//! `toygres.io/instance: <namespace>/<name>` is toygres's; what doesn't is never changed or removed.
//!
//! How it differs from what the [`Platform`](super::Platform) trait promises in general:
//!
//! - **[`ensure`](super::Platform::ensure) returns when the cluster has taken the objects**, not when
//!   the server runs: [`wait_ready`](super::Platform::wait_ready) waits for that.
//! - The namespace has to exist; toygres makes none.
//! - A volume whose storage class retains it outlives its instance: that is the class's promise.
//! - Versions are those that an image is configured for; a minor that isn't named in the
//!   configuration is the image's own business.
//! - A private instance's host is a name that resolves in the cluster only. From outside,
//!   [`reach`](super::Platform::reach) goes through the API server.
//!
//! The modules, from the ground up: `config` and `images` (what may be chosen), `identity` (names,
//! labels, whose an object is), `own_secret` (what a server's replicas share), `cluster` (what the verbs share),
//! `objects` (templates to objects, and making, changing, renewing and removing what is ours), `watch` (looking at an
//! instance, and its log), `passwords`, `forward`, `endpoint`, `control` (the server's own database), `diagnose`, and on top
//! `platform`.

mod cluster;
mod config;
mod control;
mod diagnose;
mod endpoint;
mod forward;
mod identity;
mod images;
mod objects;
mod own_secret;
mod passwords;
mod platform;
mod watch;

pub use config::{KubernetesConfig, Resources};
pub use diagnose::diagnose;
pub use forward::Forward;
pub use images::Images;
pub use own_secret::OwnSecret;
pub use passwords::KubernetesSecretStore;
pub use platform::KubernetesPlatform;

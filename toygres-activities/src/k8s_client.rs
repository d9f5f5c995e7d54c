//! The one place that will make a Kubernetes client: from KUBECONFIG and a context, or in-cluster.
//!
//! Empty so far: instances run on the [local platform](crate::platform::local) only. The manifests
//! that the client will apply belong in `src/templates/`.

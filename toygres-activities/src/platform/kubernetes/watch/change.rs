//! What those learn who wait for instances of a namespace, or for objects to be gone.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::runtime::watcher;

/// What a watch saw.
pub(in crate::platform::kubernetes) enum Change {
    /// A pod of toygres's as it is now.
    Pod(Box<Pod>),
    /// A pod that is gone.
    Gone(Box<Pod>),
    /// A warning, or what is said of a claim.
    Event(Box<Event>),
    /// A watch has begun anew.
    Again,
    /// The watch is down, and is tried again.
    Failed(watcher::Error),
}

/// What a watch saw of objects that may be gone.
pub(in crate::platform::kubernetes) enum Gone {
    /// The object with this uid is gone.
    Object(String),
    /// The watch has begun anew with these: what else there was is gone.
    AllBut(BTreeSet<String>),
    /// The watch is down, and is tried again.
    Failed(watcher::Error),
}

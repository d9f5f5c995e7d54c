//! The crate's tests from outside, in one program. Those in `kubernetes` need a cluster and skip
//! themselves without one; those in `kubernetes::outages` stop it, and run alone.

#[macro_use]
mod support;

mod activities;
mod payloads;
mod seed;

/// The local platform.
mod local {
    mod conformance;
    mod kills;
    mod places;
}

/// The Kubernetes platform.
mod kubernetes {
    mod access;
    mod authorities;
    mod bad_days;
    mod conformance;
    mod logs;
    mod outages;
    mod parts;
    mod races;
    mod rbac;
    mod server;
}

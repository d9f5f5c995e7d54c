//! What is seen of an instance: its objects now, their changes, what they mean, and its server's log.

pub(in crate::platform::kubernetes) mod change;
pub(in crate::platform::kubernetes) mod gone;
pub(in crate::platform::kubernetes) mod logs;
pub(in crate::platform::kubernetes) mod observe;
pub(in crate::platform::kubernetes) mod pin;
pub(in crate::platform::kubernetes) mod pod_events;
pub(in crate::platform::kubernetes) mod readiness;
pub(in crate::platform::kubernetes) mod shared;
pub(in crate::platform::kubernetes) mod watches;

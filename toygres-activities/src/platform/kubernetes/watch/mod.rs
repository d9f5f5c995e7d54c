//! What is seen of an instance: its objects now, their changes, what they mean, and its server's log.

pub(in crate::platform::kubernetes) mod judge;
pub(in crate::platform::kubernetes) mod logs;
pub(in crate::platform::kubernetes) mod look;
pub(in crate::platform::kubernetes) mod news;

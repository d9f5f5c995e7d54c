//! What works beside the requests: workflows, the events that they tell of, and what has to be done now and then.

pub mod clock;
pub mod event_feed;
pub mod housekeeping;
pub mod orphans;
pub mod places;
pub mod platform_events;
pub mod ports;
pub mod recorder;
pub mod repair;
pub mod sweeps;
pub mod waking_provider;
pub mod workflows;

//! What a person sees: results, messages, progress.

pub mod board;
pub mod display;
pub mod progress;
pub mod ui;
pub mod watch;

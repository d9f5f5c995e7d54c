//! What a person sees: results, messages, progress; and Ctrl-C.

pub mod display;
pub mod interrupt;
pub mod progress;
pub mod ui;

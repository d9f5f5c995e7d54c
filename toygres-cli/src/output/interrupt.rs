//! Ctrl-C.

use tokio::signal::unix::{SignalKind, signal};

/// Returns on Ctrl-C. From then on Ctrl-C doesn't end the program by itself.
pub async fn interrupted() {
    match signal(SignalKind::interrupt()) {
        Ok(mut interrupts) => drop(interrupts.recv().await),
        // Then Ctrl-C ends the program as it always does.
        Err(_) => std::future::pending().await,
    }
}

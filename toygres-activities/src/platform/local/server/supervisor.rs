//! Keeps a server running: sees its end, says so, and starts it again, less often the more it fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::process::{Postmaster, last_child_ended};
use super::{Server, StartFailure};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A server that stayed up this long has recovered.
const STABLE_AFTER: Duration = Duration::from_secs(30);
const TEND_EVERY: Duration = Duration::from_secs(60);

pub(in crate::platform::local) const EXITED: &str = "server_exited";
pub(in crate::platform::local) const RESTARTED: &str = "server_restarted";
pub(in crate::platform::local) const START_FAILED: &str = "server_start_failed";

/// A server that is to be kept running.
#[async_trait]
pub(in crate::platform::local) trait Charge: Send + Sync + 'static {
    fn server(&self) -> &Arc<Server>;

    /// Starts it unless it runs; `None` if it isn't wanted any more. The caller holds it.
    async fn start(&self) -> Result<Option<Arc<Postmaster>>, StartFailure>;

    /// Tells those who want to know.
    fn report(&self, kind: &'static str, message: String, healthy: bool);

    /// What is to be done now and then while it runs.
    async fn tend(&self);
}

/// Runs until the server isn't wanted any more or `stop` is cancelled. The server runs on.
pub(in crate::platform::local) async fn keep_running(charge: Arc<dyn Charge>, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = keep(&*charge) => {}
    }
    // The holder of the token sees that nobody keeps it running any more.
    stop.cancel();
}

async fn keep(charge: &dyn Charge) {
    let server = charge.server();
    let mut pause = FIRST_PAUSE;
    // One that a reboot ended comes back like one that fell.
    let mut fell = server.find().is_none();
    let mut last_reported: Option<String> = None;
    loop {
        let started = {
            let _guard = server.lock().await;
            charge.start().await
        };
        let postmaster = match started {
            Ok(Some(postmaster)) => postmaster,
            Ok(None) => return,
            Err(StartFailure { failure, .. }) => {
                // The same reason is reported once.
                if last_reported.as_ref() != Some(&failure.message) {
                    tracing::warn!(server = %server.label, error = %failure, "could not start a server");
                    charge.report(START_FAILED, with_evidence(&failure.message, &failure.evidence), false);
                    last_reported = Some(failure.message.clone());
                }
                server.set_last_failure(Some(failure));
                fell = true;
                tokio::time::sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
                continue;
            }
        };
        server.set_last_failure(None);
        if fell {
            tracing::info!(server = %server.label, process.id = postmaster.pid(), "restarted a server");
            let message = format!("the server of {} runs again, as process {}", server.label, postmaster.pid());
            charge.report(RESTARTED, message, true);
        }
        last_reported = None;
        let since = Instant::now();
        loop {
            tokio::select! {
                () = postmaster.exited() => break,
                () = tokio::time::sleep(TEND_EVERY) => charge.tend().await,
            }
        }
        // A removal holds it, and ends this task: that the server ended then isn't reported.
        drop(server.lock().await);
        last_child_ended(&server.data(), FIRST_PAUSE).await;
        let lines = server.log().last_lines();
        let ending = format!("the server process {} of {} {}", postmaster.pid(), server.label, postmaster.ending().await);
        tracing::warn!(server = %server.label, process.id = postmaster.pid(), "a server ended");
        charge.report(EXITED, with_evidence(&ending, &lines[lines.len().saturating_sub(5)..]), false);
        fell = true;
        if since.elapsed() >= STABLE_AFTER {
            pause = FIRST_PAUSE;
        } else {
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }
}

fn with_evidence(message: &str, evidence: &[String]) -> String {
    let mut text = message.to_owned();
    for line in evidence {
        text.push('\n');
        text.push_str(line);
    }
    text
}

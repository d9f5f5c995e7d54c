//! What this server counts of itself, the workflow engine's own numbers among it.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Bounds of durations, in seconds.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// How often what was counted is put together, so that it takes no memory when nobody asks.
const UPKEEP: Duration = Duration::from_secs(5);

/// A process has one.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Begins to count.
///
/// # Errors
/// If something else in this process counts already.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    if let Some(handle) = RECORDER.get() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets(&BUCKETS)
        .context("the buckets can't be used")?
        .install_recorder()
        .context("metrics can't be counted")?;
    metrics::describe_counter!("toygres_http_requests_total", "Requests by route, method and code");
    metrics::describe_histogram!("toygres_http_request_duration_seconds", "How long requests took");
    metrics::describe_histogram!("toygres_operation_step_duration_seconds", "How long steps of operations took");
    metrics::describe_histogram!("toygres_health_probe_duration_seconds", "How long looks at instances took");
    Ok(RECORDER.get_or_init(|| handle).clone())
}

/// Keeps what was counted small.
pub async fn keep_up(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        handle.run_upkeep();
    }
}

//! Repeating what may pass.
//!
//! duroxide's own retry policy repeats every error; an image that doesn't exist would be asked for
//! again and again. This one looks at the failure first.

use std::time::Duration;

use duroxide::OrchestrationContext;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toygres_models::{Failure, FailureKind};

/// The queue in which a workflow is told that its operation was cancelled. It only ends a wait: what
/// counts is on record, where the next attempt sees it.
pub const CANCEL_QUEUE: &str = "cancel";
/// Waits shorter than this aren't worth being ended.
const WORTH_ENDING: Duration = Duration::from_secs(1);

/// How long a step that may pass is repeated, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Wait before the second attempt; doubled before each further one.
    pub first_wait: Duration,
    /// The longest wait.
    pub longest_wait: Duration,
    /// Attempts in all.
    pub attempts: u32,
    /// Whether a cancel ends a wait. Executions of version 1.0.0 have waits that it doesn't.
    pub hears_cancel: bool,
}

impl Patience {
    /// For a step that should work at once: about a minute, which a restart of the database or the
    /// API server fits into.
    pub const STEP: Self =
        Self { first_wait: Duration::from_millis(100), longest_wait: Duration::from_secs(10), attempts: 12, hears_cancel: false };

    /// The same for a step that isn't wanted any more once its operation is cancelled.
    pub const CANCELLABLE_STEP: Self = Self { hears_cancel: true, ..Self::STEP };

    /// For what must be written down, or else nobody would know how it ended: a day.
    pub const RECORD: Self = Self { longest_wait: Duration::from_secs(30), attempts: 3000, ..Self::STEP };

    /// For looks at something that takes its time, one right after the other.
    #[must_use]
    pub fn looking(self, attempts: u32) -> Self {
        Self { longest_wait: self.first_wait, attempts, ..self }
    }

    fn wait_before(self, attempt: u32) -> Duration {
        let doubled = self.first_wait.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(2).min(16)));
        doubled.min(self.longest_wait)
    }
}

/// Runs an activity until it succeeds, fails for good, or `patience` is over. An attempt that
/// found another operation at work doesn't count: that one ends by itself.
///
/// `tag` is that by which servers take up what only they can do: the id of a machine, the name of a platform, or
/// [`RECORDS`](crate::registry::RECORDS). What has none, any server does.
///
/// # Errors
/// The last attempt's failure.
pub async fn run<Input: Serialize, Output: DeserializeOwned>(
    ctx: &OrchestrationContext,
    activity: &str,
    input: &Input,
    tag: Option<&str>,
    patience: Patience,
) -> Result<Output, Failure> {
    let input = serde_json::to_string(input).map_err(|error| {
        Failure::permanent(FailureKind::Internal, format!("the input of {activity} can't be written: {error}"))
    })?;
    let mut attempt = 1;
    loop {
        let scheduled = ctx.schedule_activity(activity, input.clone());
        let scheduled = match tag {
            Some(tag) => scheduled.with_tag(tag),
            None => scheduled,
        };
        let failure = match scheduled.await {
            Ok(output) => {
                return serde_json::from_str(&output).map_err(|error| {
                    Failure::permanent(FailureKind::Internal, format!("the output of {activity} can't be read: {error}"))
                });
            }
            Err(error) => Failure::decode(&error),
        };
        let busy = failure.kind == FailureKind::Busy;
        if !failure.retryable || (attempt >= patience.attempts && !busy) {
            return Err(failure);
        }
        attempt += u32::from(!busy || attempt < 5);
        wait(ctx, patience.wait_before(attempt), patience.hears_cancel).await;
    }
}

async fn wait(ctx: &OrchestrationContext, pause: Duration, hears_cancel: bool) {
    let timer = ctx.schedule_timer(pause);
    if hears_cancel && pause >= WORTH_ENDING {
        ctx.select2(timer, ctx.dequeue_event(CANCEL_QUEUE)).await;
    } else {
        timer.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<_> = (2..=12).map(|attempt| Patience::STEP.wait_before(attempt).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000, 10_000]);
        assert_eq!(Patience::RECORD.wait_before(3000), Duration::from_secs(30));
    }
}

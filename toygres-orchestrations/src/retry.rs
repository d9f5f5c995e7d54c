//! Repeating what may pass.
//!
//! duroxide's own retry policy repeats every error; an image that doesn't exist would be asked for
//! again and again. This one looks at the failure first.

use std::time::Duration;

use duroxide::OrchestrationContext;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toygres_models::{Failure, FailureKind};

/// The queue in which a workflow is told that its operation was cancelled. It only ends a wait: the cancel itself is on
/// record, where the next attempt sees it.
pub const CANCEL_QUEUE: &str = "cancel";
/// Waits shorter than this aren't worth being ended.
const WORTH_ENDING: Duration = Duration::from_secs(1);

/// How long a step that may pass is repeated, and how often.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Wait before the second attempt; doubled before each further one.
    pub first_wait: Duration,
    /// The longest wait, but for an operation that another one holds up.
    pub longest_wait: Duration,
    /// Attempts in all.
    pub attempts: u32,
    /// Attempts of a log-in in all.
    pub log_in_attempts: u32,
    /// Attempts that only waited, and for long enough: they don't count as others do.
    pub waits: u32,
    /// Whether a cancel ends a wait.
    pub ends_on_cancel: bool,
}

impl RetryPolicy {
    /// For a step that should work at once: about a minute, which a restart of the database or the
    /// API server fits into.
    pub const STEP: Self = Self {
        first_wait: Duration::from_millis(100),
        longest_wait: Duration::from_secs(10),
        attempts: 12,
        log_in_attempts: 12,
        waits: 0,
        ends_on_cancel: false,
    };

    /// The same for a step that has no purpose once its operation is cancelled.
    pub const CANCELLABLE_STEP: Self = Self { ends_on_cancel: true, ..Self::STEP };

    /// For a change of a server that runs. It is logged in to for nearly three minutes: a new address needs a new certificate, which
    /// the kubelet gives to the server within a minute and a half.
    pub const CHANGE: Self = Self { log_in_attempts: 24, ..Self::STEP };

    /// The same for a change that has no purpose once its operation is cancelled.
    pub const CANCELLABLE_CHANGE: Self = Self { ends_on_cancel: true, ..Self::CHANGE };

    /// For what must be written down, or else nobody would know how it ended: a day.
    pub const RECORD: Self = Self { longest_wait: Duration::from_secs(30), attempts: 3000, ..Self::STEP };

    /// For waits for something that takes its time, one right after the other. Of other failures that may pass there are 60.
    #[must_use]
    pub fn repeated_at_once(self, waits: u32) -> Self {
        Self { longest_wait: self.first_wait, attempts: 60, waits, ..self }
    }

    /// For a log-in.
    #[must_use]
    pub fn for_log_in(self) -> Self {
        Self { attempts: self.log_in_attempts, ..self }
    }

    /// The wait after so many attempts that another operation held up: a second at most, and after two minutes a minute.
    fn wait_after_busy(self, attempts: u32) -> Duration {
        match attempts {
            0..=120 => self.wait_before(attempts + 1).min(Duration::from_secs(1)),
            _ => Duration::from_secs(60),
        }
    }

    fn wait_before(self, attempt: u32) -> Duration {
        let doubled = self.first_wait.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(2).min(16)));
        doubled.min(self.longest_wait)
    }
}

/// Runs an activity until it succeeds, fails for good, or `policy` is over. An attempt that
/// found another operation at work doesn't count: that one ends by itself.
///
/// `place` says which servers can do it: those that have asked for activities of that tag.
///
/// # Errors
/// The last attempt's failure.
pub async fn run<Input: Serialize, Output: DeserializeOwned>(
    ctx: &OrchestrationContext,
    activity: &str,
    input: &Input,
    place: &str,
    policy: RetryPolicy,
) -> Result<Output, Failure> {
    let input = serde_json::to_string(input).map_err(|error| {
        Failure::permanent(FailureKind::Internal, format!("the input of {activity} can't be written: {error}"))
    })?;
    let (mut attempt, mut waits, mut busy_attempts) = (1, 0, 0);
    loop {
        let scheduled = ctx.schedule_activity(activity, input.clone()).with_tag(place);
        let failure = match scheduled.await {
            Ok(output) => {
                return serde_json::from_str(&output).map_err(|error| {
                    Failure::permanent(FailureKind::Internal, format!("the output of {activity} can't be read: {error}"))
                });
            }
            Err(error) => Failure::decode(&error),
        };
        if failure.kind == FailureKind::TimedOut && failure.retryable && waits < policy.waits {
            waits += 1;
            wait(ctx, policy.first_wait, policy.ends_on_cancel).await;
            continue;
        }
        let busy = failure.kind == FailureKind::Busy;
        if !failure.retryable || (attempt >= policy.attempts && !busy) {
            return Err(failure);
        }
        // What another operation holds up may be held up for days, as by a machine that is away: each attempt is kept in the
        // workflow's history.
        let pause = if busy {
            busy_attempts += 1;
            policy.wait_after_busy(busy_attempts)
        } else {
            attempt += 1;
            policy.wait_before(attempt)
        };
        wait(ctx, pause, policy.ends_on_cancel).await;
    }
}

async fn wait(ctx: &OrchestrationContext, pause: Duration, ends_on_cancel: bool) {
    let timer = ctx.schedule_timer(pause);
    if ends_on_cancel && pause >= WORTH_ENDING {
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
        let waits: Vec<_> = (2..=12).map(|attempt| RetryPolicy::STEP.wait_before(attempt).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000, 10_000]);
        assert_eq!(RetryPolicy::RECORD.wait_before(3000), Duration::from_secs(30));
        let busy = [1, 10, 120, 121].map(|attempts| RetryPolicy::STEP.wait_after_busy(attempts).as_millis());
        assert_eq!(busy, [100, 1000, 1000, 60_000]);
    }
}

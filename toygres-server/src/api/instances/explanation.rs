//! `/v1/instances/{name}/why`: what is wrong with an instance, and how that came, in one timeline.

use std::collections::HashSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use tokio::time::{Instant, timeout_at};
use toygres_activities::diagnosis::{Facts, LogIn, Seen, diagnose};
use toygres_activities::platform::probe::check;
use toygres_activities::server_log::{Line, ShownLine, parse_own_lines, without_process};
use toygres_activities::{Place, log_in};
use toygres_client::explanation::{Explanation, Moment, MomentSource};
use toygres_models::connection::with_password_reference;
use toygres_models::store::{Event, EventFilter, EventStart, Instance, Operation, OperationFilter};
use toygres_models::{Failure, FailureKind, Health, InstanceKey, InstanceSpec, InstanceState, OperationState, Password};

use crate::api::auth::caller::Caller;
use crate::api::http::problem::{ApiError, Problems};
use crate::api::http::request::{InNamespace, Parameters, Segment, instance_key};
use crate::api::state::{AppState, Shared};

/// How much of each source is looked at.
const EVENTS: i64 = 50;
const OPERATIONS: i64 = 20;
const LOG_LINES: usize = 200;
/// The longest timeline.
const MOMENTS: usize = 100;
/// A probe that is so old will do.
const FRESH: Duration = Duration::from_secs(1);
/// How long the platform may take to answer all that it is asked, and a log-in. Together less than an answer may.
const OBSERVATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an instance isn't what it should be
///
/// The likely cause with what to do, and a timeline of its last operation's steps, its events, the
/// platform's words and the lines of its server's log that tell of trouble. The server looks at the
/// instance, and tries a log-in with the password that it keeps.
#[utoipa::path(get, path = "/instances/{name}/why", tag = "instances", params(("name" = String, Path), InNamespace),
    responses((status = OK, body = Explanation), Problems))]
pub(super) async fn why(
    State(state): Shared,
    caller: Caller,
    Segment(name): Segment,
    Parameters(parameters): Parameters<InNamespace>,
) -> Result<Json<Explanation>, ApiError> {
    let key = instance_key(&name, parameters.namespace.as_deref())?;
    caller.may_view(&key.namespace)?;
    let instance = state.store.instance_or_last_deleted(&key).await?;
    let operation = last_operation(&state, &instance).await?;
    let filter = EventFilter::of_instance(instance.id);
    let after = state.store.event_position(&filter, EventStart::Last(EVENTS)).await?;
    let events = state.store.events_matching(&filter, after, EVENTS).await?;
    let observed = observe(&state, &instance, &key).await;
    Ok(Json(explain(&key, &instance, operation.as_ref(), &events, observed)))
}

async fn last_operation(state: &AppState, instance: &Instance) -> Result<Option<Operation>, ApiError> {
    let filter = OperationFilter {
        namespaces: Some(vec![instance.namespace.clone()]),
        instance_name: Some(instance.name.clone()),
        ..OperationFilter::default()
    };
    let operations = state.store.operations(&filter, OPERATIONS).await?;
    Ok(operations.into_iter().find(|operation| operation.instance_id == instance.id))
}

/// What the platform and the server say now.
struct Observed {
    at: DateTime<Utc>,
    seen: Seen,
    log_in: LogIn,
    log: Vec<ShownLine>,
    /// By a probe, where it is ready.
    health: Option<Health>,
}

async fn observe(state: &AppState, instance: &Instance, key: &InstanceKey) -> Observed {
    let mut observed = Observed { at: Utc::now(), seen: Seen::Gone, log_in: LogIn::NotTried, log: Vec::new(), health: None };
    if instance.state == InstanceState::Deleted {
        return observed;
    }
    let until = Instant::now() + OBSERVATION_TIMEOUT;
    let place = match in_time(until, state.platforms.of(instance)).await {
        Ok(place) => place,
        Err(failure) => return Observed { seen: Seen::Unknown(failure), ..observed },
    };
    observed.seen = match in_time(until, place.platform.observe(key)).await {
        Ok(None) => Seen::Gone,
        Ok(Some(seen)) if seen.ready => Seen::Ready,
        Ok(Some(seen)) => Seen::NotReady(seen.reason.unwrap_or_else(|| {
            Failure::transient(FailureKind::StartFailed, format!("the server of {key} isn't ready ({})", seen.phase.as_str()))
        })),
        Err(failure) => Seen::Unknown(failure),
    };
    // Before the log-in, which writes a line where it is refused.
    observed.log = in_time(until, place.platform.log_tail(key, LOG_LINES)).await.map(parse_own_lines).unwrap_or_default();
    if observed.seen == Seen::Ready && instance.state != InstanceState::Deleting {
        let checking = async { Ok(check(&*place.platform, key, FRESH).await.health) };
        observed.health = in_time(until, checking).await.ok();
        observed.log_in = match in_time(Instant::now() + OBSERVATION_TIMEOUT, try_log_in(&place, key, &instance.spec)).await {
            Ok(()) => LogIn::Works,
            Err(failure) => LogIn::Failed(failure),
        };
    }
    observed
}

/// An observation that is to be over `until` then.
async fn in_time<T>(until: Instant, looking: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout_at(until, looking).await.unwrap_or_else(|_| {
        let message = format!("there was no answer within {} s", OBSERVATION_TIMEOUT.as_secs());
        Err(Failure::transient(FailureKind::TimedOut, message))
    })
}

async fn try_log_in(place: &Place, key: &InstanceKey, spec: &InstanceSpec) -> Result<(), Failure> {
    let endpoint = place.platform.endpoint(key).await?;
    let uri = with_password_reference(&endpoint.address.owner_uri(spec).to_string(), &Password::reference(key));
    log_in(place, &uri, true).await.map(drop)
}

/// Puts together what is known. Asks nobody.
fn explain(
    key: &InstanceKey,
    instance: &Instance,
    operation: Option<&Operation>,
    events: &[Event],
    observed: Observed,
) -> Explanation {
    // An update that failed is recorded in its operation alone.
    let of_operation = operation.filter(|operation| operation.state == OperationState::Failed);
    let of_operation = of_operation.and_then(|operation| operation.error.as_ref()).map(|error| &error.0);
    let failure = instance.status.failure.as_ref().or(of_operation);
    // What happened before it was last well is another story.
    let last_well = events.iter().rposition(|event| TELLS_HEALTH.contains(&event.kind.as_str())).map_or(0, |at| at + 1);
    let recent: Vec<String> = events[last_well..].iter().flat_map(|event| event.message.lines()).map(str::to_owned).collect();
    let well_at = last_well.checked_sub(1).map(|at| events[at].created_at);
    let log: Vec<String> =
        observed.log.iter().filter(|line| line.at >= well_at || line.at.is_none()).map(|line| line.text.clone()).collect();
    let mut timeline = Vec::new();
    timeline.extend(operation.into_iter().flat_map(moments_of_operation));
    timeline.extend(events.iter().map(moment_of_event));
    timeline.extend(moments_of(&observed));
    timeline.extend(observed.log.iter().filter_map(moment_of_log));
    timeline.sort_by_key(|moment| moment.at);
    let mut moments = without_repeats(timeline);
    moments.drain(..moments.len().saturating_sub(MOMENTS));
    let reasons = observed.health.map(|health| health.reasons).unwrap_or_default();
    let facts = Facts {
        key,
        platform: instance.spec.platform,
        state: instance.state,
        never_ran: instance.status.members.is_empty(),
        failure: failure.map(|failure| &failure.failure),
        seen: observed.seen,
        log_in: observed.log_in,
        events: &recent,
        log: &log,
        reasons: &reasons,
    };
    let verdict = diagnose(&facts);
    Explanation {
        namespace: instance.namespace.clone(),
        name: instance.name.clone(),
        state: instance.state,
        verdict,
        timeline: moments,
    }
}

/// The same without repeats: the log's end is also the evidence of a failure, and a server that can't
/// start says the same each time.
fn without_repeats(timeline: Vec<Moment>) -> Vec<Moment> {
    let mut moments: Vec<Moment> = Vec::new();
    let mut lines = HashSet::new();
    for mut moment in timeline {
        match moment.source {
            MomentSource::Event => {
                moments.push(moment);
                continue;
            }
            MomentSource::Postgres if !lines.insert((moment.at, moment.text.clone())) => continue,
            _ => {}
        }
        let is_same = |known: &Moment| {
            (known.source, &known.what, without_process(&known.text))
                == (moment.source, &moment.what, without_process(&moment.text))
        };
        let Some(last) = moments.iter().rposition(is_same) else {
            moments.push(moment);
            continue;
        };
        if moment.source == MomentSource::Postgres {
            moment.times = moments[last].times + 1;
            if moment.times > 2 {
                moments.remove(last);
            }
            moments.push(moment);
        }
    }
    moments
}

/// Events after which an instance was well.
const TELLS_HEALTH: [&str; 3] = ["instance_running", "instance_healthy", "server_restarted"];

fn moments_of_operation(operation: &Operation) -> Vec<Moment> {
    let mut moments = Vec::new();
    let mut add = |at, source, what: &str, text| moments.push(Moment { at, source, what: what.to_owned(), text, times: 1 });
    for step in &operation.steps {
        let attempts = if step.attempts > 1 { format!(", {} attempts", step.attempts) } else { String::new() };
        let began = || format!("{} began", operation.kind);
        let (finished_at, error) = match (step.finished_at, &step.error) {
            (None, _) => {
                add(step.started_at, MomentSource::Operation, &step.name, began());
                continue;
            }
            (Some(at), None) => {
                add(at, MomentSource::Operation, &step.name, format!("{} done{attempts}", operation.kind));
                continue;
            }
            (Some(at), Some(error)) => (at, error),
        };
        add(step.started_at, MomentSource::Operation, &step.name, began());
        for line in &error.0.evidence {
            match Line::parse(line) {
                Some(Line { at, .. }) => {
                    add(at.unwrap_or(finished_at), MomentSource::Postgres, "log", ShownLine::parse(line).text)
                }
                None => add(finished_at, MomentSource::Platform, &step.name, line.clone()),
            }
        }
        add(finished_at, MomentSource::Operation, &step.name, format!("failed{attempts}: {}", error.0.message));
    }
    moments
}

fn moment_of_event(event: &Event) -> Moment {
    // The lines after the first are the server's own, and moments of their own.
    let text = event.message.lines().next().unwrap_or_default().to_owned();
    let text = match (text.is_empty(), event.cause.is_empty()) {
        (_, true) => text,
        (true, false) => event.cause.clone(),
        (false, false) => format!("{text} ({})", event.cause),
    };
    Moment { at: event.created_at, source: MomentSource::Event, what: event.kind.clone(), text, times: 1 }
}

fn moments_of(observed: &Observed) -> Vec<Moment> {
    let moment = |what: &str, text: String| Moment {
        at: observed.at,
        source: MomentSource::Platform,
        what: what.to_owned(),
        text,
        times: 1,
    };
    let mut moments = match &observed.seen {
        Seen::Ready => vec![moment("seen_now", "it answers SQL".into())],
        Seen::Gone => Vec::new(),
        Seen::Unknown(failure) => vec![moment("seen_now", format!("it can't be observed: {}", failure.message))],
        Seen::NotReady(failure) => {
            // The server's own are in its log.
            let words = failure.evidence.iter().filter(|line| Line::parse(line).is_none());
            let words = words.map(|line| moment("seen_now", line.clone()));
            words.chain([moment("seen_now", failure.message.clone())]).collect()
        }
    };
    match &observed.log_in {
        LogIn::NotTried => {}
        LogIn::Works => moments.push(moment("log_in_tried", "a log-in with the password that toygres keeps works".into())),
        LogIn::Failed(failure) => moments.push(moment("log_in_tried", failure.message.clone())),
    }
    moments
}

fn moment_of_log(line: &ShownLine) -> Option<Moment> {
    let (at, source) = (line.at?, MomentSource::Postgres);
    Some(Moment { at, source, what: "log".into(), text: line.text.clone(), times: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_line_that_repeats_the_first_and_the_last_time_are_told() {
        let at = |second: i64| DateTime::from_timestamp(second, 0).unwrap();
        let moment =
            |second, source, text: &str| Moment { at: at(second), source, what: "log".into(), text: text.into(), times: 1 };
        let line = |second: i64, words: &str| moment(second, MomentSource::Postgres, &format!("[{second}] {words}"));
        let event = |second| moment(second, MomentSource::Event, "the server exited");
        let timeline = vec![
            line(1, "FATAL:  no"),
            // The same line, as the evidence of a step's failure.
            line(1, "FATAL:  no"),
            event(2),
            line(3, "FATAL:  no"),
            line(4, "LOG:  well"),
            line(5, "FATAL:  no"),
            event(6),
            moment(7, MomentSource::Platform, "BackOff"),
            moment(8, MomentSource::Platform, "BackOff"),
        ];
        let moments: Vec<_> = without_repeats(timeline).iter().map(|moment| (moment.at.timestamp(), moment.times)).collect();
        assert_eq!(moments, [(1, 1), (2, 1), (4, 1), (5, 3), (6, 1), (7, 1)]);
    }
}

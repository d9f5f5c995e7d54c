use super::*;

fn key() -> InstanceKey {
    InstanceKey::parse("team", "demo").unwrap()
}

fn facts<'a>(key: &'a InstanceKey, state: InstanceState, failure: Option<&'a Failure>) -> Facts<'a> {
    Facts {
        key,
        platform: PlatformName::Kubernetes,
        state,
        never_ran: false,
        failure,
        seen: Seen::Gone,
        log_in: LogIn::NotTried,
        events: &[],
        log: &[],
        reasons: &[],
    }
}

fn failed(kind: FailureKind, message: &str, evidence: &[&str]) -> Failure {
    Failure::permanent(kind, message).with_evidence(evidence.iter().map(|line| (*line).to_owned()).collect())
}

#[test]
fn what_people_meet_is_known_by_its_words() {
    use FailureKind as Kind;
    for (kind, message, evidence, cause) in [
        (Kind::ProgramsUnavailable, "the image x:17 of a can't be pulled: not found", &[][..], Cause::BadImage),
        (Kind::ProgramsUnavailable, "no archive has 17", &[], Cause::ProgramsUnavailable),
        (Kind::Exhausted, "no node can take the pod of a: 0/1 nodes are available: 1 Insufficient cpu.", &[], Cause::NoRoom),
        (
            Kind::Exhausted,
            "no node can take the pod of a: pod has unbound immediate PersistentVolumeClaims",
            &[],
            Cause::VolumeUnavailable,
        ),
        (Kind::Exhausted, "the pod of a can't be made: exceeded quota: none, pods=0", &[], Cause::QuotaExceeded),
        (Kind::Exhausted, "all ports from 1 to 2 are taken", &[], Cause::PortsUsedUp),
        (Kind::StartFailed, "the server of a ends whenever it is started: exit code 1", &[], Cause::CrashLoop),
        (
            Kind::StartFailed,
            "the server of a ends whenever it is started: exit code 1",
            &["2026-01-01 00:00:00.000 UTC [1] 53100 checkpointer: PANIC:  could not write to file: No space left on device"],
            Cause::DiskFull,
        ),
        (
            Kind::StartFailed,
            "the server of a ends whenever it is started: it used more memory than its limit",
            &[],
            Cause::OutOfMemory,
        ),
        (Kind::StartFailed, "it did not start, as another program has its port: FATAL:  no socket", &[], Cause::PortTaken),
        // Somebody who may not even log in.
        (
            Kind::StartFailed,
            "it did not start",
            &["2026-01-01 00:00:00.000 UTC [7] 28000 client backend: FATAL:  role \"No space left on device\" does not exist"],
            Cause::CrashLoop,
        ),
        (
            Kind::ConnectionFailed,
            "127.0.0.1:1 could not be used: password authentication failed for user \"postgres\"",
            &[],
            Cause::WrongPassword,
        ),
        (Kind::ConnectionFailed, "127.0.0.1:1 did not answer", &[], Cause::Unreachable),
        (Kind::Superseded, "it is being deleted", &[], Cause::GivenUp),
        // What was said on the way to where it stands now.
        (
            Kind::Exhausted,
            "no node can take the pod of a: 0/1 nodes are available: 1 Insufficient cpu.",
            &["Pod a-0: FailedScheduling: 0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."],
            Cause::NoRoom,
        ),
        (
            Kind::StartFailed,
            "the server of a ends whenever it is started: exit code 1",
            &["Pod a-0: FailedScheduling: 0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."],
            Cause::CrashLoop,
        ),
        (Kind::Internal, "the workflow broke", &[], Cause::Unknown),
    ] {
        let (key, failure) = (key(), failed(kind, message, evidence));
        let verdict = diagnose(&facts(&key, InstanceState::Failed, Some(&failure)));
        assert_eq!(verdict.likely_cause, Some(cause), "{message}: {verdict:?}");
        assert!(!verdict.fix.is_empty() && verdict.summary.contains("team/demo"), "{verdict:?}");
        assert!(!verdict.evidence.is_empty(), "{verdict:?}");
    }
}

#[test]
fn an_instance_that_runs_is_well_whatever_its_log_says() {
    let key = key();
    let log = ["[1] 53100 walwriter: PANIC:  could not write: No space left on device".to_owned()];
    let facts = Facts { seen: Seen::Ready, log_in: LogIn::Works, log: &log, ..facts(&key, InstanceState::Running, None) };
    let verdict = diagnose(&facts);
    assert_eq!((verdict.likely_cause, verdict.fix.len()), (None, 0), "{verdict:?}");
    for (kind, cause) in [(HealthReasonKind::DiskFull, Cause::DiskFull), (HealthReasonKind::RestartPending, Cause::Degraded)] {
        let reasons = [HealthReason { kind, message: "a probe says so".into() }];
        let verdict = diagnose(&Facts { log: &[], reasons: &reasons, ..facts.clone() });
        assert_eq!((verdict.likely_cause, &*verdict.evidence), (Some(cause), &["a probe says so".to_owned()][..]), "{verdict:?}");
    }
}

#[test]
fn a_log_in_that_is_refused_is_the_password_and_a_strangers_is_not() {
    let key = key();
    let refused = failed(FailureKind::ConnectionFailed, "a:1 could not be used: password authentication failed for user", &[]);
    let tried = Facts { seen: Seen::Ready, log_in: LogIn::Failed(refused), ..facts(&key, InstanceState::Running, None) };
    assert_eq!(diagnose(&tried).likely_cause, Some(Cause::WrongPassword));
    let log = ["[7] 28P01 client backend: FATAL:  password authentication failed for user \"guess\"".to_owned()];
    let reason = failed(FailureKind::StartFailed, "the server did not start", &[]);
    let down = Facts { seen: Seen::NotReady(reason), log: &log, ..facts(&key, InstanceState::Running, None) };
    assert_eq!(diagnose(&down).likely_cause, Some(Cause::CrashLoop));
}

#[test]
fn what_comes_up_has_no_trouble_yet() {
    let key = key();
    let reason = Failure::transient(FailureKind::StartFailed, "the pod of team/demo is being placed");
    let creating = Facts { seen: Seen::NotReady(reason), ..facts(&key, InstanceState::Creating, None) };
    assert_eq!(diagnose(&creating).likely_cause, None);
    let stuck = failed(FailureKind::StartFailed, "the server of team/demo ends whenever it is started: exit code 1", &[]);
    let crashing = Facts { seen: Seen::NotReady(stuck), ..facts(&key, InstanceState::Creating, None) };
    assert_eq!(diagnose(&crashing).likely_cause, Some(Cause::CrashLoop));
}

#[test]
fn a_server_that_came_up_after_all_is_taken_up_unless_something_else_failed() {
    let key = key();
    for (failure, is_late) in [
        (failed(FailureKind::Exhausted, "no node can take the pod of team/demo: 1 Insufficient cpu.", &[]), true),
        (failed(FailureKind::TimedOut, "team/demo was not ready within 300 s: it starts", &[]), true),
        (failed(FailureKind::InvalidInput, "this build of PostgreSQL has no extension x", &[]), false),
        (failed(FailureKind::TimedOut, "the volume of team/demo is still there", &[]), false),
    ] {
        let facts = facts(&key, InstanceState::Failed, Some(&failure));
        let verdict = diagnose(&Facts { seen: Seen::Ready, log_in: LogIn::Works, ..facts });
        assert_eq!(verdict.likely_cause == Some(Cause::CameUpLate), is_late, "{failure}: {verdict:?}");
    }
}

#[test]
fn one_that_recovers_has_no_cause_and_may_be_waited_for() {
    let key = key();
    let reason = Failure::transient(FailureKind::StartFailed, "the server of team/demo is starting or recovering");
    let verdict = diagnose(&Facts { seen: Seen::NotReady(reason), ..facts(&key, InstanceState::Running, None) });
    assert_eq!((verdict.likely_cause, verdict.fix.len()), (None, 1), "{verdict:?}");
    assert!(verdict.summary.contains("recovering"), "{verdict:?}");
}

#[test]
fn commands_name_the_namespace_where_it_is_needed() {
    let failure = failed(FailureKind::Exhausted, "no node can take the pod", &[]);
    let (team, plain) = (key(), InstanceKey::parse("default", "demo").unwrap());
    let fix = |key: &InstanceKey, never_ran| {
        diagnose(&Facts { never_ran, ..facts(key, InstanceState::Failed, Some(&failure)) }).fix.join("\n")
    };
    assert!(fix(&team, true).contains("`toygres delete demo -n team`"), "{}", fix(&team, true));
    assert!(fix(&plain, true).contains("`toygres delete demo`"), "{}", fix(&plain, true));
    // What may have data is never advised to be deleted.
    assert!(!fix(&team, false).contains("toygres delete"), "{}", fix(&team, false));
    assert!(fix(&team, false).contains("`toygres start demo -n team`"), "{}", fix(&team, false));
}

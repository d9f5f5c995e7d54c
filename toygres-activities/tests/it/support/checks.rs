//! The promises of [`Platform`](toygres_activities::platform::Platform), as checks that hold for
//! every implementation.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use futures::TryStreamExt;
use sqlx::Connection;
use sqlx::postgres::PgSslMode;
use toygres_activities::platform::{Deployment, InstanceRecord, LogLine, LogRequest, Phase};
use toygres_models::{FailureKind, Power};

use super::{PASSWORD, READY, Subject, ask, connect, eventually, key, powered, say, secret, spec, until};

pub async fn a_created_instance_is_reached_over_verified_tls_only(subject: &dyn Subject) {
    let platform = subject.platform();
    assert!(platform.ensure(&spec(subject, "demo")).await.unwrap());
    let seen = platform.wait_ready(&key("demo"), READY).await.unwrap();
    assert_eq!((seen.phase, seen.ready, seen.reason), (Phase::Running, true, None));
    let version = ask(subject, "demo", "SHOW server_version").await;
    assert!(version.starts_with(&subject.version().major().to_string()), "{version}");
    let tls = ask(subject, "demo", "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await;
    assert!(["TLSv1.2", "TLSv1.3"].contains(&tls.as_str()), "{tls}");
    assert_eq!(ask(subject, "demo", "SHOW data_checksums").await, "on");
    assert_eq!(ask(subject, "demo", "SHOW fsync").await, "on");
    assert_eq!(ask(subject, "demo", "SHOW server_encoding").await, "UTF8");

    let plain = connect(subject, "demo", PASSWORD, PgSslMode::Disable).await.unwrap_err();
    assert!(plain.to_string().contains("no encryption") || plain.to_string().contains("SSL off"), "{plain}");
    let wrong = connect(subject, "demo", "wrong", PgSslMode::VerifyFull).await.unwrap_err();
    assert!(wrong.to_string().contains("password authentication failed"), "{wrong}");
    assert!(connect(subject, "demo", "", PgSslMode::VerifyFull).await.is_err(), "no password got in");
}

pub async fn making_it_again_changes_nothing(subject: &dyn Subject) {
    let platform = subject.platform();
    assert!(platform.ensure(&spec(subject, "demo")).await.unwrap());
    let before = platform.endpoint(&key("demo")).await.unwrap();
    let mut again = spec(subject, "demo");
    again.password = secret("another");
    assert!(!platform.ensure(&again).await.unwrap());
    assert_eq!(platform.endpoint(&key("demo")).await.unwrap(), before);
    ask(subject, "demo", "SELECT 'the first password holds'").await;
    assert_eq!(subject.servers(), 1);
}

pub async fn creations_at_once_make_one_instance(subject: &dyn Subject) {
    let platform = subject.platform();
    let spec = spec(subject, "demo");
    let all = futures::future::join_all((0..4).map(|_| platform.ensure(&spec))).await;
    let made = all.into_iter().map(Result::unwrap).filter(|made| *made).count();
    assert_eq!((made, subject.servers()), (1, 1));
    ask(subject, "demo", "SELECT 'x'").await;
}

pub async fn instances_side_by_side_are_apart(subject: &dyn Subject) {
    let platform = subject.platform();
    let specs = ["a", "b", "c"].map(|name| spec(subject, name));
    for made in futures::future::join_all(specs.iter().map(|spec| platform.ensure(spec))).await {
        assert!(made.unwrap());
    }
    assert_eq!(platform.list().await.unwrap(), ["a", "b", "c"].map(key));
    let mut identifiers = Vec::new();
    for name in ["a", "b", "c"] {
        identifiers.push(ask(subject, name, "SELECT system_identifier::text FROM pg_control_system()").await);
    }
    identifiers.sort();
    identifiers.dedup();
    assert_eq!(identifiers.len(), 3, "instances share a system identifier");
    assert!(platform.remove(&key("b")).await.unwrap());
    assert_eq!(platform.list().await.unwrap(), ["a", "c"].map(key));
    ask(subject, "a", "SELECT 'x'").await;
}

pub async fn removing_leaves_nothing_and_can_be_repeated(subject: &dyn Subject) {
    let platform = subject.platform();
    assert!(!platform.remove(&key("demo")).await.unwrap());
    platform.ensure(&spec(subject, "demo")).await.unwrap();
    let all = futures::future::join_all((0..3).map(|_| {
        let platform = platform.clone();
        async move { platform.remove(&key("demo")).await }
    }));
    let removed = all.await.into_iter().map(Result::unwrap).filter(|removed| *removed).count();
    assert!(removed >= 1);
    assert!(!platform.remove(&key("demo")).await.unwrap());
    assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]));
    assert_eq!(platform.observe(&key("demo")).await.unwrap(), None);
    assert!(platform.ensure(&spec(subject, "demo")).await.unwrap(), "the name is free again");
}

pub async fn what_is_not_there_is_not_found(subject: &dyn Subject) {
    let platform = subject.platform();
    assert_eq!(platform.observe(&key("demo")).await.unwrap(), None);
    assert_eq!(platform.endpoint(&key("demo")).await.unwrap_err().kind, FailureKind::NotFound);
    assert_eq!(platform.log_tail(&key("demo"), 5).await.unwrap_err().kind, FailureKind::NotFound);
    assert_eq!(platform.wait_ready(&key("demo"), READY).await.unwrap_err().kind, FailureKind::NotFound);
    assert!(platform.list().await.unwrap().is_empty());
}

pub async fn another_version_under_the_same_name_is_a_conflict(subject: &dyn Subject) {
    let platform = subject.platform();
    platform.ensure(&spec(subject, "demo")).await.unwrap();
    let mut other = spec(subject, "demo");
    other.spec.postgres_version = if subject.version().major() == 14 { "16" } else { "14" }.parse().unwrap();
    let failure = platform.ensure(&other).await.unwrap_err();
    assert_eq!((failure.kind, failure.retryable), (FailureKind::Conflict, false), "{failure}");
    ask(subject, "demo", "SELECT 'untouched'").await;
}

pub async fn an_unknown_version_is_refused_with_the_known_ones(subject: &dyn Subject) {
    let platform = subject.platform();
    let default = platform.resolve_version(None).await.unwrap();
    assert!(default.minor().is_some());
    assert_eq!(platform.resolve_version(Some(default)).await.unwrap(), default);
    let failure = platform.resolve_version(Some("15.99".parse().unwrap())).await.unwrap_err();
    assert!(failure.message.contains("15.99") && failure.message.contains(&default.to_string()), "{failure}");
    assert!(platform.list().await.unwrap().is_empty());
    assert_eq!(subject.leftovers(), Vec::<String>::new());
}

pub async fn the_log_is_told_from_its_end(subject: &dyn Subject) {
    let platform = subject.platform();
    platform.ensure(&spec(subject, "demo")).await.unwrap();
    let mut connection = connect(subject, "demo", PASSWORD, PgSslMode::VerifyFull).await.unwrap();
    for n in 0..3 {
        sqlx::raw_sql(&format!("DO $$ BEGIN RAISE LOG 'line {n} of the check'; END $$")).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    // The server hands its words to another process, which writes them.
    eventually("the last words are in the log", || async {
        platform.log_tail(&key("demo"), 1).await.unwrap().iter().any(|line| line.contains("line 2 of the check"))
    })
    .await;
    let lines = platform.log_tail(&key("demo"), 1000).await.unwrap();
    let position = |text: &str| lines.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}: {lines:#?}"));
    assert!(position("line 0 of the check") < position("line 2 of the check"));
    assert_eq!(platform.log_tail(&key("demo"), 2).await.unwrap(), lines[lines.len() - 2..]);
}

pub async fn the_log_is_followed_over_restarts_and_gone_on_with_after_any_line(subject: &dyn Subject) {
    let platform = subject.platform();
    platform.ensure(&spec(subject, "demo")).await.unwrap();
    let log = async |request| platform.logs(&key("demo"), request).await.unwrap();
    let read = async |request| log(request).await.try_collect::<Vec<_>>().await.unwrap();
    let follow = LogRequest { follow: true, ..LogRequest::default() };
    // From the first word on, perhaps before there is one.
    let mut followed = log(follow.clone()).await;
    say(subject, "demo", "the first of the check").await;
    let mut lines = until(&mut followed, "the first of the check").await;
    let mut silent = log(LogRequest { tail_lines: Some(0), ..follow.clone() }).await;
    subject.fell("demo");
    for words in ["the second of the check", "the third of the check"] {
        say(subject, "demo", words).await;
        lines.extend(until(&mut followed, words).await);
    }
    assert!(lines.iter().any(|line| line.text.contains("not properly shut down")), "no crash: {lines:#?}");
    let at = |lines: &[LogLine], words: &str| lines.iter().rposition(|line| line.text.ends_with(words)).unwrap();
    let new = until(&mut silent, "the second of the check").await;
    let (last_known, second) = (at(&lines, "the first of the check"), at(&lines, "the second of the check"));
    let known = second + 1 - new.len();
    assert!(known > last_known, "one that asked for no line of the past has {new:#?}");
    assert_eq!(new, lines[known..=second]);

    // What was followed is what is there; and what is there can be gone on with after any line.
    let all = read(LogRequest::default()).await;
    assert_eq!(all[..=at(&all, "the third of the check")], lines);
    for (number, line) in lines.iter().enumerate() {
        let rest = read(LogRequest { after: line.position.clone(), tail_lines: Some(1), ..LogRequest::default() }).await;
        assert_eq!(rest[..rest.len().min(lines.len() - number - 1)], lines[number + 1..], "after {line:?}");
    }
    let tail = read(LogRequest::tail(lines.len())).await;
    // The server may say something between the two.
    let all = read(LogRequest::default()).await;
    assert!(all.windows(lines.len()).any(|part| part == tail), "a tail that begins before the crash: {tail:#?}");
    let wrong = platform.logs(&key("demo"), LogRequest { after: Some("nonsense".into()), ..follow }).await;
    assert_eq!(wrong.err().unwrap().kind, FailureKind::InvalidInput);

    let since = Some(Utc::now());
    say(subject, "demo", "the fourth of the check").await;
    let new = read(LogRequest { since, ..LogRequest::default() }).await;
    let has = |words: &str| new.iter().any(|line| line.text.ends_with(words));
    assert!(has("the fourth of the check") && !has("the third of the check"), "{new:#?}");
    assert!(read(LogRequest { since: Some(Utc::now() + TimeDelta::hours(1)), ..LogRequest::default() }).await.is_empty());

    platform.remove(&key("demo")).await.unwrap();
    let last_words = tokio::time::timeout(READY, followed.try_collect::<Vec<_>>()).await.expect("an end").unwrap();
    assert!(last_words.iter().any(|line| line.text.ends_with("database system is shut down")), "{last_words:#?}");
}

/// Gives up a creation after a while, at many points, and takes it up again.
pub async fn a_creation_cut_off_anywhere_is_finished_by_repeating(subject: &dyn Subject) {
    let platform = subject.platform();
    for cut_ms in [0, 1, 5, 10, 20, 40, 80, 150, 300, 600] {
        let name = format!("cut-{cut_ms}");
        let spec = spec(subject, &name);
        let _ = tokio::time::timeout(Duration::from_millis(cut_ms), platform.ensure(&spec)).await;
        platform.ensure(&spec).await.unwrap_or_else(|failure| panic!("after a cut at {cut_ms} ms: {failure:?}"));
        ask(subject, &name, "SELECT 'x'").await;
        assert_eq!(subject.servers(), 1);
        platform.remove(&spec.key).await.unwrap();
        assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]), "after a cut at {cut_ms} ms");
    }
}

pub async fn a_removal_cut_off_anywhere_is_finished_by_repeating(subject: &dyn Subject) {
    let platform = subject.platform();
    for cut_ms in [0, 1, 2, 5, 10, 20, 40, 80] {
        platform.ensure(&spec(subject, "demo")).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(cut_ms), platform.remove(&key("demo"))).await;
        platform.remove(&key("demo")).await.unwrap();
        assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]), "after a cut at {cut_ms} ms");
        assert!(!platform.remove(&key("demo")).await.unwrap());
    }
}

/// Whichever wins, a removal after both leaves nothing, and both come to an end.
pub async fn a_removal_overtakes_a_creation(subject: &dyn Subject) {
    let platform = subject.platform();
    for pause_ms in [0, 5, 20, 50, 100, 400, 700] {
        let spec = spec(subject, "demo");
        let creation = {
            let (platform, spec) = (platform.clone(), spec.clone());
            tokio::spawn(async move { platform.ensure(&spec).await })
        };
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        platform.remove(&spec.key).await.unwrap();
        let _ = creation.await.unwrap();
        platform.remove(&spec.key).await.unwrap();
        assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]), "removal {pause_ms} ms after the creation's start");
    }
}

const STARTED: &str = "SELECT pg_postmaster_start_time()::text";

async fn stop(subject: &dyn Subject, name: &str) {
    subject.platform().ensure(&powered(subject, name, Power::Stopped)).await.unwrap();
    is_stopped(subject, name).await;
}

async fn is_stopped(subject: &dyn Subject, name: &str) {
    let platform = subject.platform();
    eventually("it is stopped", || async {
        platform.observe(&key(name)).await.unwrap().is_some_and(|seen| (seen.phase, seen.ready) == (Phase::Stopped, false))
    })
    .await;
    eventually("no server runs", || async { subject.servers() == 0 }).await;
}

pub async fn stopping_keeps_data_address_and_password(subject: &dyn Subject) {
    let platform = subject.platform();
    platform.ensure(&spec(subject, "demo")).await.unwrap();
    let mut connection = connect(subject, "demo", PASSWORD, PgSslMode::VerifyFull).await.unwrap();
    sqlx::raw_sql("CREATE TABLE kept AS SELECT 'kept' AS word").execute(&mut connection).await.unwrap();
    let before = platform.endpoint(&key("demo")).await.unwrap();
    // A client that stays does not keep it from stopping.
    stop(subject, "demo").await;
    drop(connection);
    assert!(!platform.ensure(&powered(subject, "demo", Power::Stopped)).await.unwrap(), "it is stopped already");
    is_stopped(subject, "demo").await;
    assert_eq!(platform.list().await.unwrap(), [key("demo")]);
    assert_eq!(platform.wait_ready(&key("demo"), READY).await.map_err(|failure| failure.retryable), Err(false));

    let mut start = powered(subject, "demo", Power::Running);
    start.password = secret("another");
    platform.ensure(&start).await.unwrap();
    assert_eq!(ask(subject, "demo", "SELECT word FROM kept").await, "kept");
    assert_eq!(platform.endpoint(&key("demo")).await.unwrap(), before);
    assert_eq!(subject.servers(), 1);
    stop(subject, "demo").await;
    assert!(platform.remove(&key("demo")).await.unwrap());
    assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]));
}

pub async fn what_can_not_start_is_stopped_as_well(subject: &dyn Subject) {
    let platform = subject.platform();
    platform.ensure(&spec(subject, "demo")).await.unwrap();
    subject.settle("demo").await;
    subject.break_start("demo");
    subject.fell("demo");
    eventually("its start fails", || async {
        let seen = platform.observe(&key("demo")).await.unwrap().unwrap();
        seen.reason.is_some_and(|reason| reason.message.contains("no_such_setting") || seen.phase == Phase::Failed)
    })
    .await;
    stop(subject, "demo").await;
    // And it stays so.
    tokio::time::sleep(Duration::from_secs(3)).await;
    is_stopped(subject, "demo").await;
    platform.remove(&key("demo")).await.unwrap();
    assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]));
}

pub async fn what_never_came_up_is_stopped_as_well(subject: &dyn Subject) {
    let platform = subject.platform();
    for cut_ms in [0, 20, 100, 300] {
        let _ = tokio::time::timeout(Duration::from_millis(cut_ms), platform.ensure(&spec(subject, "demo"))).await;
        let mut stopped = spec(subject, "demo");
        stopped.spec.power = Power::Stopped;
        platform.ensure(&stopped).await.unwrap();
        is_stopped(subject, "demo").await;
        platform.ensure(&spec(subject, "demo")).await.unwrap();
        ask(subject, "demo", "SELECT 'x'").await;
        platform.remove(&key("demo")).await.unwrap();
        assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]), "after a cut at {cut_ms} ms");
    }
}

pub async fn a_restarted_control_plane_leaves_the_stopped_stopped(subject: &dyn Subject) {
    subject.platform().ensure(&spec(subject, "demo")).await.unwrap();
    subject.settle("demo").await;
    stop(subject, "demo").await;
    let again = subject.again().await;
    let _events = again.events();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let seen = again.observe(&key("demo")).await.unwrap().unwrap();
    assert_eq!((seen.phase, seen.ready, subject.servers()), (Phase::Stopped, false, 0));
    again.ensure(&powered(subject, "demo", Power::Running)).await.unwrap();
    ask(subject, "demo", "SELECT 'x'").await;
    again.remove(&key("demo")).await.unwrap();
    again.shutdown();
}

pub async fn a_restart_happens_once_for_each_request(subject: &dyn Subject) {
    let platform = subject.platform();
    let failure = platform.restart(&key("demo"), "first").await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotFound, "{failure}");
    platform.ensure(&spec(subject, "demo")).await.unwrap();
    let mut started = ask(subject, "demo", STARTED).await;
    for request in ["first", "second"] {
        let demo = key("demo");
        let restarted = futures::future::join_all((0..3).map(|_| platform.restart(&demo, request))).await;
        assert_eq!(restarted.into_iter().map(Result::unwrap).filter(|restarted| *restarted).count(), 1, "{request}");
        let now = ask(subject, "demo", STARTED).await;
        assert_ne!(now, started, "{request}");
        for _ in 0..3 {
            assert!(!platform.restart(&key("demo"), request).await.unwrap(), "{request}");
        }
        assert_eq!(ask(subject, "demo", STARTED).await, now, "{request}");
        started = now;
    }
    let again = subject.again().await;
    assert!(!again.restart(&key("demo"), "second").await.unwrap(), "it is on record");
    assert_eq!(ask(subject, "demo", STARTED).await, started);
    again.shutdown();
    let log = platform.log_tail(&key("demo"), 1000).await.unwrap();
    assert!(!log.iter().any(|line| line.contains("not properly shut down")), "a restart is a clean one: {log:#?}");
}

pub async fn a_restart_cut_off_anywhere_is_finished_by_repeating(subject: &dyn Subject) {
    let platform = subject.platform();
    platform.ensure(&spec(subject, "demo")).await.unwrap();
    for cut_ms in [0, 1, 5, 20, 50, 100, 200, 400] {
        let before = ask(subject, "demo", STARTED).await;
        let request = format!("cut-{cut_ms}");
        let _ = tokio::time::timeout(Duration::from_millis(cut_ms), platform.restart(&key("demo"), &request)).await;
        platform.restart(&key("demo"), &request).await.unwrap();
        let after = ask(subject, "demo", STARTED).await;
        assert_ne!(after, before, "after a cut at {cut_ms} ms");
        assert!(!platform.restart(&key("demo"), &request).await.unwrap(), "after a cut at {cut_ms} ms");
        assert_eq!((ask(subject, "demo", STARTED).await, subject.servers()), (after, 1), "after a cut at {cut_ms} ms");
    }
}

pub async fn records_are_of_what_has_data(subject: &dyn Subject) {
    let platform = subject.platform();
    assert_eq!(platform.records().await.unwrap(), []);
    let mut first = spec(subject, "a");
    first.instance_id = Some(uuid::Uuid::new_v4());
    first.spec.storage_size_gb = 3_i64.try_into().unwrap();
    for deployment in [&first, &spec(subject, "b")] {
        platform.ensure(deployment).await.unwrap();
        subject.settle(deployment.key.name.as_str()).await;
    }
    let record = |deployment: &Deployment| InstanceRecord {
        key: deployment.key.clone(),
        instance_id: deployment.instance_id,
        spec: deployment.spec.clone(),
    };
    assert_eq!(platform.records().await.unwrap(), [record(&first), record(&spec(subject, "b"))]);
    // What it is to be is kept up, and a stopped one has data too.
    first.spec.power = Power::Stopped;
    first.data_exists = true;
    platform.ensure(&first).await.unwrap();
    assert_eq!(platform.records().await.unwrap()[0].spec, first.spec);
    platform.remove(&key("a")).await.unwrap();
    assert_eq!(platform.records().await.unwrap().len(), 1);
    platform.remove(&key("b")).await.unwrap();
    assert_eq!(platform.records().await.unwrap(), []);
}

pub async fn missing_data_is_never_made_again(subject: &dyn Subject) {
    let platform = subject.platform();
    platform.ensure(&spec(subject, "demo")).await.unwrap();
    subject.settle("demo").await;
    stop(subject, "demo").await;
    subject.lose("demo");
    for power in [Power::Running, Power::Stopped] {
        let failure = platform.ensure(&powered(subject, "demo", power)).await.unwrap_err();
        assert!(!failure.retryable && failure.message.contains("backup"), "{failure:?}");
        assert_eq!((platform.records().await.unwrap(), subject.servers()), (vec![], 0));
    }
    platform.remove(&key("demo")).await.unwrap();
    assert_eq!(subject.leftovers(), Vec::<String>::new());
}

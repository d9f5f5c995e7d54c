//! The promises of `Platform`, checked against every implementation, and what the local platform
//! promises besides.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed check is to panic")]

use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::postgres::PgSslMode;
use toygres_activities::platform::local::{DirectoryPorts, LocalConfig, LocalHost, LocalPlatform};
use toygres_activities::platform::{Phase, Platform, PlatformEvent};
use toygres_models::FailureKind;

use crate::support::local::{Local, config, fetched, kill, local, log_of, postmasters, processes, reachable_folder};
use crate::support::{PASSWORD, READY, Subject, ask, checks, connect, connect_as_superuser, eventually, key, spec};

async fn on_local() -> Option<Local> {
    Some(local().await)
}

conformance!(on_the_local_platform, super::on_local);

/// The newest major, fetched: one life, and a restart after a crash.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_version_works_as_well() {
    let Some(local) = fetched().await else { return };
    checks::a_created_instance_is_reached_over_verified_tls_only(&local).await;
    checks::making_it_again_changes_nothing(&fetched().await.unwrap()).await;
    kill(local.postmaster("demo"));
    let platform = local.platform.clone();
    eventually("the server runs again", || async {
        platform.observe(&key("demo")).await.unwrap().is_some_and(|seen| seen.ready) && local.servers() == 1
    })
    .await;
    ask(&local, "demo", "SELECT 'x'").await;
    local.platform.remove(&key("demo")).await.unwrap();
    assert_eq!((local.servers(), local.leftovers()), (0, vec![]));
    let offered = local.platform.versions().await.unwrap();
    assert!(offered.iter().any(|version| version.at_hand && version.postgres_version.major() == 18), "{offered:?}");
    assert_eq!(offered.iter().filter(|version| version.default).count(), 1, "{offered:?}");
}

async fn next(events: &mut tokio::sync::broadcast::Receiver<PlatformEvent>) -> PlatformEvent {
    tokio::time::timeout(Duration::from_secs(90), events.recv()).await.expect("an event within 90 s").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_is_restarted_and_its_data_is_there() {
    let local = local().await;
    local.platform.ensure(&spec(&local, "demo")).await.unwrap();
    ask(&local, "demo", "WITH made AS (SELECT 1) SELECT 'x' FROM made").await;
    let mut connection = connect(&local, "demo", PASSWORD, PgSslMode::VerifyFull).await.unwrap();
    sqlx::raw_sql("CREATE TABLE kept AS SELECT 'kept' AS word").execute(&mut connection).await.unwrap();
    drop(connection);
    let mut events = local.platform.events();
    let killed = local.postmaster("demo");
    kill(killed);
    let exited = next(&mut events).await;
    assert_eq!((exited.kind, exited.healthy, exited.key), ("server_exited", false, key("demo")));
    assert!(exited.message.contains("signal 9"), "{}", exited.message);
    let restarted = next(&mut events).await;
    assert_eq!((restarted.kind, restarted.healthy), ("server_restarted", true), "{}", restarted.message);
    local.platform.wait_ready(&key("demo"), READY).await.unwrap();
    assert_ne!(local.postmaster("demo"), killed);
    assert_eq!(ask(&local, "demo", "SELECT word FROM kept").await, "kept");
}

/// A busy process of a dead server doesn't notice its death and holds the data directory.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_server_left_running_is_ended_before_the_next_start() {
    let local = local().await;
    local.platform.ensure(&spec(&local, "demo")).await.unwrap();
    for attempt in ["restart", "remove"] {
        let mut connection = connect(&local, "demo", PASSWORD, PgSslMode::VerifyFull).await.unwrap();
        let busy = tokio::spawn(async move {
            let forever = "DO $$ DECLARE n bigint := 0; BEGIN LOOP n := n + 1; END LOOP; END $$";
            let _ = sqlx::query(forever).execute(&mut connection).await;
        });
        let at_work = "SELECT count(*)::text FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO %'";
        eventually("it is busy", || async { ask(&local, "demo", at_work).await == "1" }).await;
        if attempt == "remove" {
            local.platform.shutdown();
        }
        let killed = local.postmaster("demo");
        kill(killed);
        if attempt == "restart" {
            eventually("the server runs again", || async {
                let processes = postmasters(&local.home("demo"));
                processes.len() == 1
                    && processes[0].pid != killed
                    && local.platform.observe(&key("demo")).await.unwrap().unwrap().ready
            })
            .await;
        } else {
            eventually("it is dead", || async { local.servers() == 0 }).await;
            local.restarted().await.remove(&key("demo")).await.unwrap();
            eventually("nothing is left", || async { processes(&local.home("demo"), |_| true).is_empty() }).await;
        }
        busy.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_outlive_the_platform_and_are_found_again() {
    let local = local().await;
    local.platform.ensure(&spec(&local, "demo")).await.unwrap();
    local.platform.ensure(&spec(&local, "other")).await.unwrap();
    let before = local.postmaster("demo");
    local.platform.shutdown();
    kill(local.postmaster("other"));
    eventually("it is dead", || async { local.servers() == 1 }).await;

    let again = local.restarted().await;
    let mut events = again.events();
    again.supervise().await.unwrap();
    assert!(again.observe(&key("demo")).await.unwrap().unwrap().ready);
    assert!(!again.ensure(&spec(&local, "demo")).await.unwrap());
    assert_eq!(local.postmaster("demo"), before, "the running one was kept");
    eventually("the dead one is started", || async { again.observe(&key("other")).await.unwrap().unwrap().ready }).await;
    let started = next(&mut events).await;
    assert_eq!((started.kind, started.key), ("server_restarted", key("other")), "nobody else did, after the shutdown");
    // An adopted server isn't a child of ours, and is kept running as well.
    kill(before);
    eventually("the adopted one is restarted", || async {
        again.observe(&key("demo")).await.unwrap().unwrap().ready && local.servers() == 2
    })
    .await;
    assert!(again.remove(&key("demo")).await.unwrap());
    assert_eq!(local.servers(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_data_is_reported_and_never_replaced_by_an_empty_database() {
    let local = local().await;
    local.platform.ensure(&spec(&local, "demo")).await.unwrap();
    let mut events = local.platform.events();
    std::fs::remove_dir_all(local.home("demo").join("data")).unwrap();
    kill(local.postmaster("demo"));
    assert_eq!(next(&mut events).await.kind, "server_exited");
    let failed = next(&mut events).await;
    assert_eq!(failed.kind, "server_start_failed");
    assert!(failed.message.contains("is gone"), "{}", failed.message);
    let seen = local.platform.observe(&key("demo")).await.unwrap().unwrap();
    assert_eq!((seen.phase, seen.ready), (Phase::Failed, false));
    let failure = local.platform.ensure(&spec(&local, "demo")).await.unwrap_err();
    assert!(!failure.retryable && failure.message.contains("backup"), "{failure}");
    assert_eq!(local.platform.wait_ready(&key("demo"), READY).await.unwrap_err(), failure);
    assert!(!local.home("demo").join("data").exists());
    assert!(local.platform.remove(&key("demo")).await.unwrap());
    assert_eq!((local.servers(), local.leftovers()), (0, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_folder_was_removed_is_ended_with_its_instance() {
    let local = local().await;
    for name in ["known", "adopted"] {
        local.platform.ensure(&spec(&local, name)).await.unwrap();
    }
    local.platform.shutdown();
    std::fs::remove_dir_all(local.home("known").parent().unwrap()).unwrap();
    // PostgreSQL notices within a minute, and ends by itself. That may be any moment now.
    local.platform.remove(&key("known")).await.unwrap();
    assert!(local.servers() <= 1);
    let again = local.restarted().await;
    // Found by where it runs.
    again.remove(&key("adopted")).await.unwrap();
    assert_eq!(local.servers(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postmaster_pid_of_nobody_or_of_a_stranger_does_not_block_a_start() {
    let local = local().await;
    local.platform.ensure(&spec(&local, "demo")).await.unwrap();
    let pid_file = local.home("demo").join("data/postmaster.pid");
    // A stranger of the server's user: PostgreSQL alone would take it for the last server.
    let mut stranger = tokio::process::Command::new("sleep");
    if local.host.account().switches {
        let owner = std::fs::metadata(local.home("demo").join("data")).unwrap();
        stranger.uid(owner.uid()).gid(owner.gid());
    }
    let stranger = stranger.arg("60").kill_on_drop(true).spawn().unwrap();
    let own = std::fs::read_to_string(&pid_file).unwrap();
    let foreign = own.replacen(own.lines().next().unwrap(), &stranger.id().unwrap().to_string(), 1);
    for content in ["", "garbage\n", &foreign] {
        local.platform.shutdown();
        kill(local.postmaster("demo"));
        eventually("it is dead", || async { local.servers() == 0 }).await;
        std::fs::write(&pid_file, content).unwrap();
        let again = local.restarted().await;
        assert!(!again.ensure(&spec(&local, "demo")).await.unwrap(), "{content:?}");
        assert_eq!(local.servers(), 1);
        ask(&local, "demo", "SELECT 'x'").await;
    }
    assert!(stranger.id().is_some(), "the stranger was left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_a_stranger_has_is_left_to_him() {
    let folder = reachable_folder();
    let mut config = config(folder.path());
    config.port_range = *config.port_range.start()..=config.port_range.start() + 3;
    let strangers: Vec<_> =
        config.port_range.clone().skip(1).filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).collect();
    let host = LocalHost::open(config.clone()).await.unwrap();
    let platform = LocalPlatform::new(host.clone(), std::sync::Arc::new(DirectoryPorts::new(&host)));
    let mut wanted = spec(&local().await, "demo");
    platform.ensure(&wanted).await.unwrap();
    assert_eq!(platform.endpoint(&wanted.key).await.unwrap().address.port, *config.port_range.start());
    wanted.key = key("second");
    let failure = platform.ensure(&wanted).await.unwrap_err();
    assert_eq!((failure.kind, failure.retryable), (FailureKind::Exhausted, false), "{failure}");
    platform.remove(&wanted.key).await.unwrap();
    platform.remove(&key("demo")).await.unwrap();
    drop(strangers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promised_port_is_waited_for() {
    let local = local().await;
    local.platform.ensure(&spec(&local, "demo")).await.unwrap();
    let port = local.platform.endpoint(&key("demo")).await.unwrap().address.port;
    local.platform.shutdown();
    kill(local.postmaster("demo"));
    eventually("it is dead", || async { local.servers() == 0 }).await;
    // Its children follow it in a moment, with whatever they have open.
    eventually("its port is free", || async { TcpListener::bind(("127.0.0.1", port)).is_ok() }).await;
    let stranger = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let again = local.restarted().await;
    let mut events = again.events();
    again.supervise().await.unwrap();
    let failed = next(&mut events).await;
    assert_eq!(failed.kind, "server_start_failed");
    assert!(failed.message.contains("another program has its port"), "{}", failed.message);
    let seen = again.observe(&key("demo")).await.unwrap().unwrap();
    assert_eq!(seen.phase, Phase::Failed);
    assert!(seen.reason.unwrap().evidence.iter().any(|line| line.contains("Address already in use")));
    drop(stranger);
    assert_eq!(next(&mut events).await.kind, "server_restarted");
    assert_eq!(again.endpoint(&key("demo")).await.unwrap().address.port, port);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_start_is_quoted() {
    let local = local().await;
    local.platform.ensure(&spec(&local, "demo")).await.unwrap();
    let mut connection = connect_as_superuser(&local, "demo").await;
    sqlx::raw_sql("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'").execute(&mut connection).await.unwrap();
    drop(connection);
    let mut events = local.platform.events();
    kill(local.postmaster("demo"));
    assert_eq!(next(&mut events).await.kind, "server_exited");
    let failed = next(&mut events).await;
    assert_eq!(failed.kind, "server_start_failed");
    assert!(failed.message.contains("no_such_library"), "{}", failed.message);
    let failure = local.platform.wait_ready(&key("demo"), READY).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::StartFailed);
    assert!(failure.message.contains("no_such_library"), "{failure}");
    assert!(local.platform.remove(&key("demo")).await.unwrap());
}

/// Looks for a text in every file, command line and environment that a secret could have got into.
fn places_with(secret: &str, state_dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![state_dir.to_owned()];
    let holds = |content: &[u8]| content.windows(secret.len()).any(|window| window == secret.as_bytes());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else if std::fs::read(entry.path()).is_ok_and(|content| holds(&content)) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        for file in ["cmdline", "environ"] {
            let path = process.path().join(file);
            if std::fs::read(&path).is_ok_and(|content| holds(&content)) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_is_nowhere_in_clear_text() {
    let local = local().await;
    let password = format!("find-me-{}", uuid::Uuid::new_v4());
    let mut wanted = spec(&local, "demo");
    wanted.password = password.clone().into();
    let watched = local.host.state_dir().to_owned();
    let creation = {
        let platform = local.platform.clone();
        tokio::spawn(async move { platform.ensure(&wanted).await })
    };
    while !creation.is_finished() {
        assert_eq!(places_with(&password, &watched), Vec::<String>::new());
    }
    creation.await.unwrap().unwrap();
    connect(&local, "demo", &password, PgSslMode::VerifyFull).await.unwrap();
    assert_eq!(places_with(&password, &watched), Vec::<String>::new());
    let log = log_of(&local.home("demo"));
    assert!(!log.contains("SCRAM-SHA-256"), "the verifier is in the log:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tls_key_is_its_servers_alone_outside_the_data_directory_and_made_anew_with_the_certificate() {
    let local = local().await;
    local.platform.ensure(&spec(&local, "demo")).await.unwrap();
    connect(&local, "demo", PASSWORD, PgSslMode::VerifyFull).await.unwrap();
    let home = local.home("demo");
    let read = |name: &str| std::fs::read_to_string(home.join(name)).unwrap();
    let (key_before, certificate) = (read("server.key"), read("server.crt"));
    let found = std::fs::metadata(home.join("server.key")).unwrap();
    // Where its server runs as another user, that one reads it, and writes nothing of what it is started with.
    let (account, server) = (local.host.account(), std::fs::metadata(home.join("data")).unwrap());
    let expected = if account.switches { (0o640, 0, server.gid()) } else { (0o600, account.uid, account.gid) };
    assert_eq!((found.mode() & 0o777, found.uid(), found.gid()), expected);
    let secret = key_before.lines().nth(1).unwrap();
    assert_eq!(places_with(secret, &home.join("data")), Vec::<String>::new());
    assert_eq!(places_with(secret, &home), [home.join("server.key").display().to_string()]);

    // One that is half-made, or due, is made anew at the next start.
    std::fs::remove_file(home.join("server.crt")).unwrap();
    let killed = local.postmaster("demo");
    kill(killed);
    eventually("it answers again with another certificate", || async {
        postmasters(&home).iter().any(|process| process.pid != killed)
            && connect(&local, "demo", PASSWORD, PgSslMode::VerifyFull).await.is_ok()
    })
    .await;
    assert_ne!(read("server.key"), key_before);
    assert_ne!(read("server.crt"), certificate);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_makes_creation_quick_and_wastes_nothing() {
    let folder = reachable_folder();
    let config = LocalConfig { pool_size: 2, ..config(folder.path()) };
    let reference = local().await;
    let host = LocalHost::open(config.clone()).await.unwrap();
    let platform = LocalPlatform::new(host.clone(), std::sync::Arc::new(DirectoryPorts::new(&host)));
    let mut wanted = spec(&reference, "demo");
    platform.ensure(&wanted).await.unwrap();
    eventually("the pool is full", || async { host.pooled_directories() == 2 }).await;
    let begun = Instant::now();
    wanted.key = key("quick");
    platform.ensure(&wanted).await.unwrap();
    println!("created from the pool in {} ms", begun.elapsed().as_millis());
    assert_eq!(host.pooled_directories(), 1);
    platform.shutdown();
    // What is left is used by the next toygres.
    let next = LocalHost::open(config).await.unwrap();
    next.warm_pool();
    eventually("the pool is full again", || async { next.pooled_directories() >= 1 }).await;
    for name in ["demo", "quick"] {
        let begun = Instant::now();
        assert!(platform.remove(&key(name)).await.unwrap());
        println!("removed in {} ms", begun.elapsed().as_millis());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_database_that_can_not_be_read_is_never_made_anew() {
    let local = local().await;
    local.host.start_control().await.unwrap();
    local.host.stop_control().await.unwrap();
    let data = local.host.state_dir().join("control/data");
    let (version, kept) = (data.join("PG_VERSION"), data.join("kept"));
    std::fs::rename(&version, &kept).unwrap();
    let tricks: [&dyn Fn(); 3] =
        [&|| {}, &|| std::os::unix::fs::symlink("kept", &version).unwrap(), &|| std::fs::write(&version, "no number").unwrap()];
    for trick in tricks {
        let _ = std::fs::remove_file(&version);
        trick();
        let failure = local.host.start_control().await.unwrap_err();
        assert!(!failure.retryable && failure.message.contains("nothing was changed"), "{failure}");
        assert!(kept.exists() && data.join("base").is_dir(), "its data was removed");
    }
    std::fs::remove_file(&version).unwrap();
    std::fs::rename(&kept, &version).unwrap();
    local.host.start_control().await.unwrap();
    local.host.stop_control().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_database_is_found_again_restarted_and_stopped() {
    let local = local().await;
    let control = local.host.start_control().await.unwrap();
    let options = sqlx::postgres::PgConnectOptions::new_without_pgpass()
        .socket(&control.socket_dir)
        .port(control.port)
        .username(&control.user)
        .password(secrecy::ExposeSecret::expose_secret(&control.password))
        .database("postgres")
        .ssl_mode(PgSslMode::Disable);
    let connect = || async { sqlx::Connection::connect_with(&options).await as Result<sqlx::PgConnection, sqlx::Error> };
    assert!(connect().await.is_ok());
    let home = local.host.state_dir().join("control");
    let first = postmasters(&home);
    assert_eq!(first.len(), 1);
    let again = LocalHost::open(local.config.clone()).await.unwrap();
    assert_eq!(again.start_control().await.unwrap().socket_dir, control.socket_dir);
    assert_eq!(postmasters(&home), first);
    kill(first[0].pid);
    let is_another = || matches!(postmasters(&home).as_slice(), [now] if now.pid != first[0].pid);
    eventually("it is restarted", || async { is_another() && connect().await.is_ok() }).await;
    let listening = std::fs::read_to_string(home.join("data/postmaster.pid")).unwrap();
    assert_eq!(listening.lines().nth(5), Some(""), "it listens on a network");
    drop(local.host.stop_control().await);
    again.stop_control().await.unwrap();
    assert_eq!(postmasters(&home), []);
    again.stop_control().await.unwrap();
    let log = log_of(&home);
    assert!(log.contains("database system is shut down"), "{log}");
}

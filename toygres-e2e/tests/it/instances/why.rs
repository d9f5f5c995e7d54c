//! `toygres why`: the troubles that people meet on their own machine, each made for real, and gone after
//! what was told to be done.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::types::chrono::DateTime;
use sqlx::{ConnectOptions, Connection, Executor};
use sysinfo::Signal;
use toygres_e2e::by_hand::{Programs, Server};
use toygres_e2e::control::{Moment, hold_up, let_go, wait_held_up};
use toygres_e2e::mount::MemoryDisk;
use toygres_e2e::place::temporary_folder;
use toygres_e2e::run::humane;
use toygres_e2e::wait::{SOON, take_address};
use toygres_e2e::{Api, Toygres, eventually, process, required_or_skip};

/// Waits until that is told to be the cause, and each of those words by that source; what is told.
async fn expect_cause(toygres: &Toygres, name: &str, cause: &str, words: &[(&str, &str)]) -> Result<Value> {
    let told = eventually(&format!("{cause} to be told"), SOON, async || {
        let told = toygres.json(&["why", name]).await?;
        ensure!(told["verdict"]["likely_cause"] == cause, "{told:#}");
        for (source, words) in words {
            ensure!(told_by(&told, source).iter().any(|text| text.contains(words)), "no {words:?} by {source}: {told:#}");
        }
        Ok(Some(told))
    })
    .await?;
    let verdict = &told["verdict"];
    ensure!(verdict["summary"].as_str().is_some_and(|summary| summary.contains(name)), "{told:#}");
    for list in ["fix", "evidence"] {
        ensure!(verdict[list].as_array().is_some_and(|list| !list.is_empty()), "no {list}: {told:#}");
    }
    let text = toygres.ok(&["why", name]).await?.stdout;
    println!("$ toygres why {name}\n{text}");
    humane(&text)?;
    let moments = told["timeline"].as_array().cloned().unwrap_or_default();
    let time = |moment: &Value| DateTime::parse_from_rfc3339(moment["at"].as_str().unwrap_or_default());
    let times = moments.iter().map(time).collect::<Result<Vec<_>, _>>()?;
    ensure!(times.is_sorted() && !times.is_empty(), "not in order: {told:#}");
    Ok(told)
}

/// Waits until nothing is wrong any more.
async fn expect_well(toygres: &Toygres, name: &str) -> Result<()> {
    eventually("nothing to be wrong", SOON, async || {
        let told = toygres.json(&["why", name]).await?;
        ensure!(told["verdict"]["likely_cause"].is_null(), "{told:#}");
        Ok(Some(()))
    })
    .await
}

/// Who tells of what in a timeline.
fn told_by<'a>(told: &'a Value, source: &str) -> Vec<&'a str> {
    let moments = told["timeline"].as_array().into_iter().flatten();
    moments.filter(|moment| moment["source"] == source).filter_map(|moment| moment["text"].as_str()).collect()
}

async fn port_of(api: &Api, name: &str) -> u16 {
    api.uri(name).await.unwrap().rsplit_once('/').unwrap().0.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn nothing_is_wrong_with_an_instance_that_works_and_no_statement_is_shown() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut session = api.log_in("demo").await.unwrap();
    for statement in
        ["ALTER ROLE nobody PASSWORD 'hunter2'", "SELECT 'hunter2'::int", "SELECT pg_sleep(0),\n\t'could not hunter2'::int"]
    {
        assert!(session.execute(statement).await.is_err(), "{statement}");
    }
    eventually("the statements to be in the log", SOON, async || {
        Ok(toygres.ok(&["logs", "demo"]).await?.stdout.contains("'could not hunter2'").then_some(()))
    })
    .await
    .unwrap();
    let told = toygres.json(&["why", "demo"]).await.unwrap();
    assert!(told["verdict"]["likely_cause"].is_null(), "{told:#}");
    assert!(!told.to_string().contains("hunter2"), "{told:#}");
    for source in ["operation", "event", "platform", "postgres"] {
        assert!(!told_by(&told, source).is_empty(), "nothing by {source}: {told:#}");
    }
    let text = toygres.ok(&["why", "demo"]).await.unwrap();
    println!("{text}");
    assert!(text.stdout.starts_with("nothing is wrong with default/demo"), "{text}");
    toygres.fails(1, &["why", "nobody"]).await.unwrap();
    api.delete("demo").await.unwrap();
    let gone = toygres.ok(&["why", "demo"]).await.unwrap();
    assert!(gone.stdout.starts_with("default/demo was deleted"), "{gone}");
}

/// Leaves so many bytes of a disk.
fn fill(disk: &MemoryDisk, leave: u64) -> Result<std::path::PathBuf> {
    let path = disk.path().join("filler");
    let mut file = std::fs::File::create(&path)?;
    let block = vec![1_u8; 64 << 10];
    while file.write_all(&block).is_ok() {}
    let length = file.metadata()?.len();
    file.set_len(length.saturating_sub(leave))?;
    Ok(path)
}

#[tokio::test]
async fn a_full_disk() {
    let disk = match MemoryDisk::mount(400) {
        Ok(disk) => disk,
        Err(error) => return required_or_skip(&format!("no disk can be mounted: {error:#}")).unwrap(),
    };
    let Some(programs) = Programs::installed() else {
        return required_or_skip("no PostgreSQL is installed on this machine").unwrap();
    };
    // The instances' disk alone is to be full.
    let database = Server::create(&programs, temporary_folder().unwrap()).await.unwrap();
    let toygres = Toygres::new().unwrap().with("TOYGRES_DATABASE_URL", database.url()).with("TOYGRES_POOL_SIZE", "0");
    let toygres = toygres.with("TOYGRES_STATE_DIR", disk.path().join("state"));
    toygres.ok(&["create", "old"]).await.unwrap();
    let filler = fill(&disk, 1 << 20).unwrap();
    toygres.fails(1, &["create", "demo"]).await.unwrap();
    let told = expect_cause(&toygres, "demo", "disk_full", &[("operation", "is full")]).await.unwrap();
    assert!(told["verdict"]["evidence"].to_string().contains("No space left on device"), "{told:#}");
    // One that runs, and is written to.
    let mut session = toygres.api().unwrap().log_in("old").await.unwrap();
    let written = session.execute("CREATE TABLE big AS SELECT repeat('x', 1000) FROM generate_series(1, 100000)").await;
    assert!(written.is_err(), "it had room");
    expect_cause(&toygres, "old", "disk_full", &[("postgres", "No space left on device")]).await.unwrap();
    expect_listed(&toygres, "old", "unhealthy", "disk is full").await.unwrap();
    // Neither what was in the past nor what a user says counts.
    std::fs::remove_file(&filler).unwrap();
    let lie = "DO $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$";
    assert!(session.execute(lie).await.is_err());
    expect_well(&toygres, "old").await.unwrap();
    expect_listed(&toygres, "old", "healthy", "").await.unwrap();
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    expect_well(&toygres, "demo").await.unwrap();
    toygres.ok(&["server", "stop"]).await.unwrap();
}

#[tokio::test]
async fn a_port_that_another_program_took() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let port = port_of(&api, "demo").await;
    toygres.ok(&["server", "stop"]).await.unwrap();
    process::kill(toygres.only_postmaster("demo").await.unwrap()).await.unwrap();
    let stranger = take_address(("127.0.0.1", port)).await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    expect_cause(&toygres, "demo", "port_taken", &[("postgres", "could not bind"), ("event", "has its port")]).await.unwrap();
    drop(stranger);
    expect_well(&toygres, "demo").await.unwrap();
}

#[tokio::test]
async fn a_server_that_ends_whenever_it_is_started() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let file = toygres.instance_dir("demo").join("data/global/pg_control");
    let kept = std::fs::read(&file).unwrap();
    break_file(&file, &vec![0; kept.len()]).unwrap();
    process::kill(toygres.only_postmaster("demo").await.unwrap()).await.unwrap();
    expect_cause(&toygres, "demo", "crash_loop", &[("event", "did not start"), ("postgres", "FATAL:")]).await.unwrap();
    assert_eq!(toygres.json(&["get", "demo"]).await.unwrap()["status"]["health_status"], "unhealthy");
    break_file(&file, &kept).unwrap();
    expect_well(&toygres, "demo").await.unwrap();
}

/// The file keeps its owner.
fn break_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(path)?;
    Ok(file.write_all(content)?)
}

/// A session with that password.
async fn session(port: u16, password: &str) -> sqlx::PgConnection {
    let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port).ssl_mode(PgSslMode::Require);
    options.username("app").password(password).database("app").connect().await.unwrap()
}

#[tokio::test]
async fn a_password_that_somebody_changed() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let port = port_of(&api, "demo").await;
    let mut owner = api.log_in("demo").await.unwrap();
    owner.execute("ALTER ROLE app PASSWORD 'hunter2'").await.unwrap();
    owner.close().await.unwrap();
    let told = expect_cause(&toygres, "demo", "wrong_password", &[("platform", "password authentication failed")]).await.unwrap();
    assert!(!told.to_string().contains("hunter2"), "{told:#}");
    // What is told to be done helps.
    let kept = std::fs::read_to_string(toygres.secret_file("demo")).unwrap();
    assert!(!told.to_string().contains(&kept), "the password is shown");
    let mut changed = session(port, "hunter2").await;
    changed.execute(format!("ALTER ROLE app PASSWORD '{kept}'").as_str()).await.unwrap();
    changed.close().await.unwrap();
    expect_well(&toygres, "demo").await.unwrap();

    // Changed while it is being created.
    let control = toygres.control().await.unwrap();
    hold_up(&control, "fresh", "test-connection", Moment::Begin).await.unwrap();
    let create = api.begin_create("fresh").await.unwrap();
    wait_held_up(&control, 1).await.unwrap();
    let (port,): (i32,) =
        sqlx::query_as("SELECT port FROM toygres.ports WHERE name = 'fresh'").fetch_one(&control).await.unwrap();
    let kept = std::fs::read_to_string(toygres.secret_file("fresh")).unwrap();
    let mut fresh = session(port.try_into().unwrap(), &kept).await;
    fresh.execute("ALTER ROLE app PASSWORD 'hunter2'").await.unwrap();
    fresh.close().await.unwrap();
    let_go(&control).await.unwrap();
    assert_eq!(api.wait(&create).await.unwrap()["state"], "failed");
    let words = ("operation", "password authentication failed");
    expect_cause(&toygres, "fresh", "wrong_password", &[words]).await.unwrap();
}

/// A build of PostgreSQL in a cache, as if it had been fetched: the machine's own, under a version that nobody has. Its version and its
/// programs' folder; `None` where there is none to copy.
fn build_in(cache: &Path) -> Result<Option<(String, PathBuf)>> {
    let Some((major, programs)) = Programs::all_installed().into_iter().rfind(|(major, _)| (14..=18).contains(major)) else {
        required_or_skip("no PostgreSQL is installed on this machine")?;
        return Ok(None);
    };
    let version = format!("{major}.99");
    let bin = cache.join(format!("postgresql-{version}/bin"));
    std::fs::create_dir_all(&bin)?;
    for name in ["initdb", "postgres"] {
        std::fs::copy(programs.path(name), bin.join(name))?;
    }
    std::os::unix::fs::symlink(programs.path("../lib"), bin.with_file_name("lib"))?;
    Ok(Some((version, bin)))
}

#[tokio::test]
async fn programs_that_were_damaged() {
    let toygres = Toygres::new().unwrap();
    let cache = toygres.folder().join("own-cache");
    let Some((version, bin)) = build_in(&cache).unwrap() else { return };
    let toygres = toygres.with("TOYGRES_CACHE_DIR", &cache);
    toygres.ok(&["create", "demo", "--version", &version]).await.unwrap();
    toygres.ok(&["stop", "demo"]).await.unwrap();
    let (program, whole) = (bin.join("postgres"), bin.join("whole"));
    std::fs::rename(&program, &whole).unwrap();
    // As one whose libraries are gone ends.
    std::fs::write(&program, "#!/bin/sh\nexit 127\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let start = toygres.fails(1, &["start", "demo"]).await.unwrap();
    assert!(start.stderr.contains("programs are damaged") && start.stderr.contains("fetched again"), "{start}");
    expect_cause(&toygres, "demo", "programs_unavailable", &[]).await.unwrap();
    std::fs::rename(&whole, &program).unwrap();
    toygres.ok(&["start", "demo"]).await.unwrap();
    expect_well(&toygres, "demo").await.unwrap();
}

#[tokio::test]
async fn programs_where_none_may_run() {
    let disk = match MemoryDisk::mount(100) {
        Ok(disk) => disk,
        Err(error) => return required_or_skip(&format!("no memory disk can be mounted here: {error:#}")).unwrap(),
    };
    let Some((version, _)) = build_in(&disk.path().join("cache")).unwrap() else { return };
    disk.forbid_programs().unwrap();
    let Some(programs) = Programs::installed() else {
        return required_or_skip("no PostgreSQL is installed on this machine").unwrap();
    };
    // Toygres's own database would be of the newest programs, too.
    let database = Server::create(&programs, temporary_folder().unwrap()).await.unwrap();
    let toygres = Toygres::new().unwrap().with("TOYGRES_DATABASE_URL", database.url());
    let toygres = toygres.with("TOYGRES_CACHE_DIR", disk.path().join("cache"));
    let create = toygres.fails(1, &["create", "demo", "--version", &version]).await.unwrap();
    assert!(create.stderr.contains("noexec") && create.stderr.contains("--cache-dir"), "{create}");
    expect_cause(&toygres, "demo", "programs_unavailable", &[]).await.unwrap();
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
}

/// Waits until an instance's record says so, without anybody asking why.
async fn expect_listed(toygres: &Toygres, name: &str, health: &str, reason: &str) -> Result<()> {
    eventually(&format!("the health {health}"), SOON, async || {
        // The list looks at no instance.
        let listed = toygres.json(&["list"]).await?;
        let listed = listed.as_array().into_iter().flatten().find(|instance| instance["name"] == name);
        let status = &listed.context("it isn't listed")?["status"];
        ensure!(status["health_status"] == health, "{status:#}");
        ensure!(status["health_reasons"].to_string().contains(reason), "{status:#}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn a_server_that_hangs() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    let postmaster = toygres.postmasters("demo")[0];
    process::send(postmaster, Signal::Stop).unwrap();
    expect_listed(&toygres, "demo", "unhealthy", "has not answered").await.unwrap();
    let cause = expect_cause(&toygres, "demo", "unresponsive", &[]).await;
    process::send(postmaster, Signal::Continue).unwrap();
    cause.unwrap();
    expect_listed(&toygres, "demo", "healthy", "").await.unwrap();
    expect_well(&toygres, "demo").await.unwrap();
}

#[tokio::test]
async fn a_server_without_a_free_connection() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut sessions = Vec::new();
    // Up to what PostgreSQL keeps for superusers.
    while let Ok(session) = api.log_in("demo").await {
        sessions.push(session);
        assert!(sessions.len() < 1000, "there is always room");
    }
    expect_listed(&toygres, "demo", "unhealthy", "connections are taken").await.unwrap();
    expect_cause(&toygres, "demo", "too_many_connections", &[]).await.unwrap();
    drop(sessions);
    expect_listed(&toygres, "demo", "healthy", "").await.unwrap();
    expect_well(&toygres, "demo").await.unwrap();
}

//! State directories, disks, ports and databases that can't be used, or not by us.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};

use toygres_e2e::by_hand::{Programs, Server};
use toygres_e2e::mount::MemoryDisk;
use toygres_e2e::place::is_root;
use toygres_e2e::wait::{SOON, take_address};
use toygres_e2e::{Toygres, process, required_or_skip, wait_until};

#[tokio::test]
async fn a_port_that_a_stranger_has_is_not_taken() {
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = stranger.local_addr().unwrap().port();
    let toygres = Toygres::new().unwrap().with("TOYGRES_PORT_RANGE", format!("{port}-{port}"));
    let run = toygres.fails(1, &["create", "demo"]).await.unwrap();
    assert!(run.stderr.contains(&port.to_string()) && run.stderr.contains("--port-range"), "{run}");
    let instance = toygres.json(&["get", "demo"]).await.unwrap();
    assert_eq!(
        (&instance["state"], &instance["status"]["failure"]["step"]),
        (&"failed".into(), &"deploy-postgres".into()),
        "{instance}"
    );
    let again = toygres.fails(1, &["create", "demo"]).await.unwrap();
    assert!(again.stderr.contains("toygres start demo"), "{again}");
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();
    drop(stranger);
    toygres.ok(&["create", "demo"]).await.unwrap();
    assert!(toygres.ok(&["connect", "demo"]).await.unwrap().stdout.contains(&format!(":{port}/")));
}

#[tokio::test]
async fn among_taken_ports_the_free_one_is_found_and_a_full_range_is_told() {
    // Two neighbours, of which a stranger has one; outside the range that connections take theirs from.
    let (stranger, first) = (14_000..15_000)
        .step_by(2)
        .find_map(|port| {
            let stranger = TcpListener::bind(("127.0.0.1", port)).ok()?;
            TcpListener::bind(("127.0.0.1", port + 1)).ok().map(|_| (stranger, port))
        })
        .unwrap();
    let toygres = Toygres::new().unwrap().with("TOYGRES_PORT_RANGE", format!("{first}-{}", first + 1));
    toygres.ok(&["create", "demo"]).await.unwrap();
    assert!(toygres.ok(&["connect", "demo"]).await.unwrap().stdout.contains(&format!(":{}/", first + 1)));
    drop(stranger);
    toygres.ok(&["create", "second"]).await.unwrap();
    let full = toygres.fails(1, &["create", "third"]).await.unwrap();
    assert!(full.stderr.contains(&format!("{first} to {}", first + 1)), "{full}");
    // It is on record, and nothing of it was made.
    let logs = toygres.fails(1, &["logs", "third"]).await.unwrap();
    assert!(logs.stderr.contains("default/third") && logs.stderr.contains("toygres why"), "{logs}");
    toygres.ok(&["delete", "third", "--yes"]).await.unwrap();
    toygres.expect_nothing_of("third").await.unwrap();
    for name in ["demo", "second"] {
        toygres.only_postmaster(name).await.unwrap();
    }
}

#[tokio::test]
async fn an_instance_whose_port_a_stranger_took_says_so_and_comes_back_when_it_is_free() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let port: u16 = api.uri("demo").await.unwrap().rsplit_once('/').unwrap().0.rsplit_once(':').unwrap().1.parse().unwrap();
    toygres.ok(&["server", "stop"]).await.unwrap();
    process::kill(toygres.only_postmaster("demo").await.unwrap()).await.unwrap();
    let stranger = take_address(("127.0.0.1", port)).await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let told = async || {
        let events = toygres.json(&["events", "demo"]).await?;
        let told = events.as_array().is_some_and(|events| {
            events.iter().any(|event| {
                event["kind"] == "server_start_failed" && event["message"].as_str().is_some_and(|text| text.contains("port"))
            })
        });
        Ok(told.then_some(()))
    };
    toygres_e2e::eventually("an event about the taken port", SOON, told).await.unwrap();
    assert_eq!(toygres.json(&["get", "demo"]).await.unwrap()["status"]["health_status"], "unhealthy");
    drop(stranger);
    let api = toygres.api().unwrap();
    toygres_e2e::eventually("the instance to answer", SOON, async || api.log_in("demo").await.map(Some)).await.unwrap();
}

#[tokio::test]
async fn a_taken_listening_port_is_told() {
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = stranger.local_addr().unwrap().to_string();
    let toygres = Toygres::new().unwrap().with("TOYGRES_LISTEN", &address);
    let run = toygres.fails(1, &["list"]).await.unwrap();
    assert!(run.stderr.contains(&address) && run.stderr.contains("--listen"), "{run}");
    let open = toygres.with("TOYGRES_LISTEN", "0.0.0.0:0").fails(1, &["list"]).await.unwrap();
    assert!(open.stderr.contains("--allow-plaintext"), "{open}");
}

#[tokio::test]
async fn a_state_directory_that_can_not_be_used_is_told() {
    let toygres = Toygres::new().unwrap();
    let file = toygres.folder().join("file");
    std::fs::write(&file, "").unwrap();
    let inside = file.join("state");
    let long = toygres.folder().join("x".repeat(120));
    let mut places = vec![
        (file.clone(), "state directory"),
        (inside, "state directory"),
        ("/proc/toygres".into(), "state directory"),
        (long.clone(), "too long"),
    ];
    if is_root() {
        let barred = toygres.folder().join("barred");
        std::fs::create_dir(&barred).unwrap();
        std::fs::set_permissions(&barred, std::fs::Permissions::from_mode(0o700)).unwrap();
        places.push((barred.join("state"), "reach"));
        let other = toygres.folder().join("other");
        std::fs::create_dir(&other).unwrap();
        chown(&other, Some(12_345), None).unwrap();
        places.push((other, "another user"));
    }
    for (place, hint) in places {
        let place = place.to_string_lossy().into_owned();
        let run = toygres.fails(1, &["--state-dir", &place, "create", "demo"]).await.unwrap();
        assert!(run.stderr.contains(hint) && run.stderr.contains(&place), "no hint {hint:?}: {run}");
    }
    assert!(std::fs::metadata(&file).unwrap().is_file(), "somebody's file was replaced");
}

#[tokio::test]
async fn a_read_only_disk_is_told() {
    let disk = match MemoryDisk::mount(16) {
        Ok(disk) => disk,
        Err(error) => return required_or_skip(&format!("no disk can be mounted: {error:#}")).unwrap(),
    };
    let toygres = Toygres::new().unwrap();
    let state_dir = disk.path().join("state");
    std::fs::create_dir(&state_dir).unwrap();
    disk.make_read_only().unwrap();
    let place = state_dir.to_string_lossy().into_owned();
    let run = toygres.fails(1, &["--state-dir", &place, "create", "demo"]).await.unwrap();
    assert!(run.stderr.contains("Read-only") && run.stderr.contains("--state-dir"), "{run}");
}

#[tokio::test]
async fn a_full_disk_fails_a_create_with_the_reason_and_a_delete_clears_it() {
    let disk = match MemoryDisk::mount(400) {
        Ok(disk) => disk,
        Err(error) => return required_or_skip(&format!("no disk can be mounted: {error:#}")).unwrap(),
    };
    let toygres = Toygres::new().unwrap();
    let toygres = toygres.with("TOYGRES_STATE_DIR", disk.path().join("state")).with("TOYGRES_POOL_SIZE", "0");
    toygres.ok(&["create", "first"]).await.unwrap();
    // Room for a part of a data directory.
    let filler = disk.path().join("filler");
    fill(disk.path(), &filler, 20).unwrap();
    let run = toygres.fails(1, &["create", "demo"]).await.unwrap();
    assert!(run.stderr.contains("No space left") || run.stderr.contains("full"), "the reason is missing: {run}");
    let instance = toygres.json(&["get", "demo"]).await.unwrap();
    assert_eq!(instance["state"], "failed", "{instance}");
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    toygres.expect_nothing_of("demo").await.unwrap();
    std::fs::remove_file(filler).unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    toygres.api().unwrap().log_in("first").await.unwrap();
}

/// Writes a file that leaves that many megabytes of a disk.
fn fill(disk: &std::path::Path, filler: &std::path::Path, megabytes: u64) -> anyhow::Result<()> {
    let output = std::process::Command::new("df").args(["-P", "-m"]).arg(disk).output()?;
    let text = String::from_utf8(output.stdout)?;
    let free: u64 = text.lines().nth(1).and_then(|line| line.split_whitespace().nth(3)).unwrap_or("0").parse()?;
    let block = vec![1_u8; 1 << 20];
    let mut file = std::fs::File::create(filler)?;
    for _ in megabytes..free {
        std::io::Write::write_all(&mut file, &block)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_first_start_on_a_full_disk_is_told_and_works_when_there_is_room() {
    let disk = match MemoryDisk::mount(12) {
        Ok(disk) => disk,
        Err(error) => return required_or_skip(&format!("no disk can be mounted: {error:#}")).unwrap(),
    };
    let toygres = Toygres::new().unwrap();
    let toygres = toygres.with("TOYGRES_STATE_DIR", disk.path().join("state"));
    let run = toygres.fails(1, &["create", "demo"]).await.unwrap();
    assert!(run.stderr.contains("No space left") || run.stderr.contains("full"), "the reason is missing: {run}");
    // An initdb that was ended has children, which notice that a moment later.
    let ended = || process::working_below(toygres.state_dir()).is_empty();
    wait_until("all of the failed start to end", SOON, ended).await.unwrap();
    disk.resize(600).unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
}

#[tokio::test]
async fn a_control_database_of_a_newer_toygres_is_left_alone() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap().create("demo").await.unwrap();
    let control = toygres.control().await.unwrap();
    sqlx::query(
        "INSERT INTO toygres._sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'from the future', true, '\\x00', 0)",
    )
    .execute(&control)
    .await
    .unwrap();
    control.close().await;
    toygres.ok(&["server", "stop"]).await.unwrap();
    let run = toygres.fails(1, &["list"]).await.unwrap();
    assert!(run.stderr.contains("newer") && run.stderr.contains("9999"), "{run}");
    assert!(process::servers_on(toygres.state_dir()).is_empty(), "a server that can't work still runs");
    toygres.only_postmaster("demo").await.unwrap();
    toygres.fails(1, &["server", "start"]).await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_not_there_is_told_without_its_password() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:9/nowhere");
    let run = toygres.fails(1, &["list"]).await.unwrap();
    assert!(run.stderr.contains("metadata store") && !run.text().contains("hunter2"), "{run}");
    let log = std::fs::read_to_string(toygres.state_dir().join("server.log")).unwrap();
    assert!(!log.contains("hunter2"), "{log}");
    let bad = toygres.with("TOYGRES_DATABASE_URL", "mysql://me:hunter2@h/d").fails(2, &["list"]).await.unwrap();
    assert!(bad.stderr.contains("TOYGRES_DATABASE_URL") && !bad.text().contains("hunter2"), "{bad}");
}

#[tokio::test]
async fn one_server_at_a_time_works_on_a_state_directory() {
    let toygres = Toygres::new().unwrap();
    // Five commands at once on a fresh directory: one server, and all are served.
    let commands = ["list", "versions", "operations", "list", "operations"];
    let runs = commands.map(|command| {
        let mut command = toygres.command(&[command]);
        tokio::spawn(async move { command.output().await })
    });
    for run in runs {
        let output = run.await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let pid = toygres.server_pid().unwrap();
    wait_until("the losers to end", SOON, || process::servers_on(toygres.state_dir()) == [pid]).await.unwrap();
    // A second one is refused, wherever it is to listen, and says which process is there and what to do.
    let second = toygres.fails(1, &["server", "run", "--listen", "127.0.0.1:0"]).await.unwrap();
    assert!(second.stderr.contains(&format!("process {pid}")) && second.stderr.contains("--state-dir"), "{second}");
    assert_eq!(toygres.all_postmasters().len(), 1, "one control database");
    assert_eq!(toygres.server_pid().unwrap(), pid, "the second one took the first one's record");
    toygres.ok(&["list"]).await.unwrap();
}

#[tokio::test]
async fn a_state_directory_of_any_name_works_through_a_link_too() {
    let toygres = Toygres::new().unwrap();
    let odd = toygres.folder().join("Jo's \"état\", 50% #1");
    std::fs::create_dir(&odd).unwrap();
    std::fs::set_permissions(&odd, std::fs::Permissions::from_mode(0o711)).unwrap();
    let link = toygres.folder().join("link");
    std::os::unix::fs::symlink(&odd, &link).unwrap();
    for place in [odd, link] {
        let toygres = Toygres::new().unwrap().with("TOYGRES_STATE_DIR", place.canonicalize().unwrap());
        toygres.ok(&["create", "demo"]).await.unwrap();
        let uri = toygres.ok(&["connect", "demo"]).await.unwrap().stdout;
        toygres_e2e::api::log_in(uri.trim_end()).await.unwrap();
        if std::process::Command::new("psql").arg("--version").output().is_ok() {
            assert_eq!(toygres.ok(&["psql", "demo", "-XAtc", "select 1"]).await.unwrap().stdout, "1\n");
        }
        let postmaster = toygres.only_postmaster("demo").await.unwrap();
        // By the other name it is the same directory.
        let place = place.to_string_lossy().into_owned();
        assert_eq!(toygres.json(&["--state-dir", &place, "get", "demo"]).await.unwrap()["state"], "running");
        toygres.ok(&["server", "stop"]).await.unwrap();
        toygres.ok(&["--state-dir", &place, "list"]).await.unwrap();
        assert_eq!(toygres.only_postmaster("demo").await.unwrap(), postmaster);
        toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
        toygres.expect_nothing_of("demo").await.unwrap();
    }
}

#[tokio::test]
async fn another_database_can_hold_the_metadata() {
    let Some(programs) = Programs::installed() else {
        return required_or_skip("no PostgreSQL is installed on this machine").unwrap();
    };
    let database = Server::create(&programs, toygres_e2e::place::temporary_folder().unwrap()).await.unwrap();
    let toygres = Toygres::new().unwrap().with("TOYGRES_DATABASE_URL", database.url());
    toygres.ok(&["create", "demo"]).await.unwrap();
    toygres.api().unwrap().log_in("demo").await.unwrap();
    assert!(!toygres.state_dir().join("control/data").exists(), "a control database was made that nobody needs");
    toygres.ok(&["server", "stop"]).await.unwrap();
    assert_eq!(toygres.json(&["get", "demo"]).await.unwrap()["state"], "running");
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    toygres.expect_nothing_made_of("demo").unwrap();
    toygres.ok(&["server", "stop"]).await.unwrap();
    database.remove().await.unwrap();
}

#[tokio::test]
async fn an_ordinary_user_needs_nobody_else() {
    if !is_root() {
        // Then every other test is of an ordinary user.
        return;
    }
    let Some(toygres) = Toygres::new().unwrap().as_another_user().await.unwrap() else {
        return required_or_skip("there is no ordinary user who can run the program").unwrap();
    };
    toygres.ok(&["create", "demo"]).await.unwrap();
    let uri = toygres.ok(&["connect", "demo"]).await.unwrap().stdout;
    toygres_e2e::api::log_in(uri.trim_end()).await.unwrap();
    let postmaster = toygres.only_postmaster("demo").await.unwrap();
    let refused = toygres
        .fails(1, &["--run-as-user", "postgres", "--state-dir", &toygres.folder().join("other").to_string_lossy(), "list"])
        .await
        .unwrap();
    assert!(refused.stderr.contains("only root"), "{refused}");
    toygres.ok(&["server", "stop"]).await.unwrap();
    toygres.ok(&["list"]).await.unwrap();
    assert_eq!(toygres.only_postmaster("demo").await.unwrap(), postmaster);
    // Root's own toygres keeps off.
    let root = Toygres::new().unwrap();
    let state_dir = toygres.state_dir().to_string_lossy().into_owned();
    toygres.kill_server().await.unwrap();
    let refused = root.fails(1, &["--state-dir", &state_dir, "list"]).await.unwrap();
    assert!(refused.stderr.contains("another user"), "{refused}");
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    toygres.expect_nothing_made_of("demo").unwrap();
}

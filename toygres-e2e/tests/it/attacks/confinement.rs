//! A superuser of an instance who tries to get out of it: by its server, and by programs that it runs.

use std::path::Path;

use anyhow::{Result, ensure};
use sqlx::{Executor, PgConnection};
use toygres_activities::platform::local::{Confinement, confinement};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually, place, process, required_or_skip};

use super::intruder::program;

/// Run by root, and run by an ordinary user, whom all servers have in common then.
async fn both() -> Result<Vec<Toygres>> {
    let mut found = vec![Toygres::new()?];
    match Toygres::new()?.as_another_user().await? {
        Some(toygres) if place::is_root() => found.push(toygres),
        _ => required_or_skip("there is no other user to run toygres as")?,
    }
    Ok(found)
}

/// Whether this kernel keeps all limits; a machine of CI has to.
fn is_confined() -> Result<bool> {
    if confinement() == Confinement::Full {
        return Ok(true);
    }
    required_or_skip("this kernel has no Landlock, or an old one")?;
    Ok(false)
}

/// Landlock calls what it refuses to move another device.
const REFUSALS: [&str; 4] =
    ["Permission denied", "Operation not permitted", "Address family not supported", "Invalid cross-device link"];

fn is_refusal(said: &str) -> bool {
    REFUSALS.iter().any(|words| said.contains(words))
}

/// Two instances, and a session of the first one's superuser.
async fn scene(toygres: &Toygres) -> Result<(Api, PgConnection)> {
    let api = toygres.serve().await?;
    for name in ["evil", "victim"] {
        api.create(name).await?;
    }
    let session = api.log_in_as_superuser("evil").await?;
    Ok((api, session))
}

async fn expect_refusal(session: &mut PgConnection, command: &str) -> Result<()> {
    let said = program(session, command).await?;
    ensure!(is_refusal(&said), "{command}: {said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_of_anybody_else_s_is_read() {
    if !is_confined().unwrap() {
        return;
    }
    for toygres in both().await.unwrap() {
        let (_api, mut session) = scene(&toygres).await.unwrap();
        let (state, victim) = (toygres.state_dir(), toygres.only_postmaster("victim").await.unwrap());
        let mut files: Vec<_> = ["token", "ca.key", "client-ca.key", "api-ca.key", "control/password", "secrets/default/victim"]
            .iter()
            .chain(&["instances/default/victim/data/PG_VERSION", "instances/default/victim/server.key"])
            .map(|file| state.join(file))
            .collect();
        files.extend([victim, toygres.server_pid().unwrap()].map(|pid| format!("/proc/{pid}/environ").into()));
        files.extend(["/etc/shadow".into(), toygres.folder().join("config.toml")]);
        let data = toygres.instance_dir("evil").join("data");
        for file in files {
            let (file, data) = (file.display(), data.display());
            expect_refusal(&mut session, &format!("cat {file}")).await.unwrap();
            expect_refusal(&mut session, &format!("ln -sf {file} {data}/link; cat {data}/link")).await.unwrap();
            for path in [file.to_string(), "link".to_owned()] {
                let read = sqlx::query_scalar::<_, String>("SELECT pg_read_file($1)").bind(&path).fetch_one(&mut session).await;
                let error = read.map(|_| "it was read".to_owned()).unwrap_or_else(|error| error.to_string());
                assert!(is_refusal(&error), "{path}: {error}");
            }
        }
        let folders = [state, &state.join("run"), &toygres.instance_dir("victim"), toygres.folder()];
        for folder in folders.into_iter().chain(["/root", "/tmp", "/dev/shm", "/proc", "/var/lib"].map(Path::new)) {
            expect_refusal(&mut session, &format!("ls {}", folder.display())).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outside_the_data_and_the_log_is_written() {
    if !is_confined().unwrap() {
        return;
    }
    for toygres in both().await.unwrap() {
        let (_api, mut session) = scene(&toygres).await.unwrap();
        let (own, victim) = (toygres.instance_dir("evil"), toygres.instance_dir("victim"));
        for folder in [&own, &victim.join("data"), &toygres.state_dir().join("run"), Path::new("/tmp"), Path::new("/dev/shm")] {
            expect_refusal(&mut session, &format!("echo x > {}/new", folder.display())).await.unwrap();
            let copy = format!("COPY (SELECT 1) TO '{}/new'", folder.display());
            let error = session.execute(copy.as_str()).await.unwrap_err().to_string();
            assert!(is_refusal(&error), "{error}");
        }
        for file in ["toygres.conf", "pg_hba.conf", "server.key", "server.crt", "instance.json"] {
            let file = own.join(file);
            expect_refusal(&mut session, &format!("echo x >> {}", file.display())).await.unwrap();
            expect_refusal(&mut session, &format!("mv {} {}", file.display(), own.join("data").display())).await.unwrap();
        }
        for way in ["ln", "mv"] {
            let (log, data) = (victim.join("data/PG_VERSION"), own.join("data"));
            expect_refusal(&mut session, &format!("{way} {} {}/stolen", log.display(), data.display())).await.unwrap();
        }
        // A program of his own, and an interpreter's of the system: neither gets more rights.
        let data = own.join("data");
        let own_program = format!("cp /bin/true {0}/program && chmod 755 {0}/program && {0}/program", data.display());
        expect_refusal(&mut session, &own_program).await.unwrap();
        let status = program(&mut session, "grep NoNewPrivs /proc/self/status || echo unreadable").await.unwrap();
        assert!(status.contains("unreadable"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_of_anybody_else_s_is_signalled() {
    if !is_confined().unwrap() {
        return;
    }
    for toygres in both().await.unwrap() {
        let (api, mut session) = scene(&toygres).await.unwrap();
        for pid in [toygres.only_postmaster("victim").await.unwrap(), toygres.server_pid().unwrap()] {
            for signal in ["0", "9", "STOP"] {
                expect_refusal(&mut session, &format!("kill -{signal} {pid}")).await.unwrap();
            }
            assert!(process::is_alive(pid));
        }
        expect_refusal(&mut session, "kill -9 1").await.unwrap();
        // All that he may signal: those of his own instance, whose server starts anew.
        let _ = program(&mut session, "kill -9 -1").await;
        api.log_in("victim").await.unwrap();
        eventually("his instance to work again", 2 * SOON, async || Ok(api.log_in("evil").await.ok())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_socket_and_no_port_but_his_own_is_his() {
    if !is_confined().unwrap() {
        return;
    }
    for toygres in both().await.unwrap() {
        let (api, mut session) = scene(&toygres).await.unwrap();
        let run = toygres.state_dir().join("run");
        let psql = format!("psql -w -h {} -p 5432 -U toygres -d postgres -Atc 'select 1'", run.display());
        expect_refusal(&mut session, &psql).await.unwrap();
        if !program(&mut session, "perl -e 'print 1'").await.unwrap().contains('1') {
            return required_or_skip("there is no perl to open sockets with").unwrap();
        }
        let socket = |how: &str| {
            format!("perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(Proto => \"tcp\", {how}) ? \"open\" : $!'")
        };
        for address in ["127.0.0.1", "0.0.0.0"] {
            let listen = socket(&format!("Listen => 1, LocalAddr => \"{address}\", LocalPort => 45678"));
            expect_refusal(&mut session, &listen).await.unwrap();
        }
        let abstract_socket =
            r#"perl -MSocket -e 'socket($s, AF_UNIX, SOCK_STREAM, 0) or die $!; bind($s, pack_sockaddr_un("\0x")) or die $!'"#;
        expect_refusal(&mut session, abstract_socket).await.unwrap();
        // Foreign servers and subscriptions stay possible: who listens there asks for a secret.
        let uri: sqlx::postgres::PgConnectOptions = api.uri("victim").await.unwrap().parse().unwrap();
        let connect = socket(&format!("PeerAddr => \"127.0.0.1\", PeerPort => {}", uri.get_port()));
        assert_eq!(program(&mut session, &connect).await.unwrap(), "open");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_superuser_started_ends_with_his_instance() {
    let ids = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !place::is_root() || !ids.contains("4294967295") {
        return required_or_skip("only root gives each instance a user of its own, where it has all ids").unwrap();
    }
    let toygres = Toygres::new().unwrap();
    let (_api, mut session) = scene(&toygres).await.unwrap();
    let data = toygres.instance_dir("evil").join("data");
    // Out of the server's session, its process group and its folder, one of them under another name.
    for seconds in ["86399", "86398"] {
        program(&mut session, &format!("cd /; setsid sleep {seconds} > {}/out 2>&1 &", data.display())).await.unwrap();
    }
    let sleeping = || {
        let system = process::all();
        let is_its = |process: &&sysinfo::Process| process.cmd().iter().any(|word| word == "86399" || word == "86398");
        system.processes().values().filter(is_its).count()
    };
    assert_eq!(sleeping(), 2);
    let uids: Vec<_> = ["evil", "victim"]
        .iter()
        .map(|name| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(toygres.instance_dir(name).join("data")).unwrap()))
        .collect();
    assert!(uids[0] != uids[1] && uids.iter().all(|uid| *uid >= 2_100_000_000), "{uids:?}");
    toygres.ok(&["delete", "evil", "--yes"]).await.unwrap();
    assert_eq!(sleeping(), 0, "what its superuser started runs on");
    toygres.only_postmaster("victim").await.unwrap();
}

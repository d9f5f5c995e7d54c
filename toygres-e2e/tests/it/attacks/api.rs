//! Other users of the machine who want the server's token, or stand in its place.

use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use anyhow::Result;
use sysinfo::Signal;
use tokio::net::{TcpListener, UnixListener};
use tokio::process::Command;
use tokio::time::timeout;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Run, Toygres, eventually, place, process, required_or_skip};

/// A command of somebody else, who knows the state directory. `None` if there is no such user.
async fn of_another_user(toygres: &Toygres, arguments: &[&str]) -> Result<Option<Run>> {
    let user = ["daemon", "postgres"].into_iter().find_map(place::user).filter(|_| place::is_root());
    let Some((uid, gid)) = user else { return Ok(None) };
    let run = |arguments: &[&str]| {
        let mut command = toygres.command(arguments);
        command.uid(uid).gid(gid);
        Run::of(command, None)
    };
    let can_run = run(&["--version"]).await.is_ok_and(|run| run.code == Some(0));
    Ok(if can_run { Some(run(arguments).await?) } else { None })
}

#[tokio::test]
async fn who_takes_a_killed_servers_port_is_not_even_spoken_to() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    let url = toygres.url().unwrap();
    toygres.kill_server().await.unwrap();
    assert!(toygres.socket().exists(), "the kill left nothing");
    let address = url.strip_prefix("http://").unwrap().to_owned();
    let squatter = eventually("the port", SOON, async || Ok(TcpListener::bind(&address).await.ok())).await.unwrap();
    let status = toygres.fails(1, &["server", "status"]).await.unwrap();
    assert!(status.stdout.contains("not running"), "{status}");
    let stop = toygres.ok(&["server", "stop"]).await.unwrap();
    assert!(stop.stderr.contains("no toygres server runs"), "{stop}");
    toygres.run(&["doctor"]).await.unwrap();
    // This one starts another server, which takes another port.
    toygres.ok(&["list"]).await.unwrap();
    assert_ne!(toygres.url().unwrap(), url);
    toygres.ok(&["server", "stop"]).await.unwrap();
    assert!(!toygres.socket().exists(), "a server that was stopped left its socket");
    let asked = timeout(Duration::from_millis(200), squatter.accept()).await;
    assert!(asked.is_err(), "the squatter was spoken to");
}

#[tokio::test]
async fn another_user_gets_nothing_by_the_socket() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    // Nor is it told by TCP what the socket tells without a token.
    api.get("/server").await.unwrap().expect_problem(404).unwrap();
    for arguments in [&["list"][..], &["server", "status"], &["server", "stop"]] {
        let Some(run) = of_another_user(&toygres, arguments).await.unwrap() else {
            return required_or_skip("there is no other user, or none that can run the program").unwrap();
        };
        let run = run.expect_code(1).unwrap().expect_humane().unwrap();
        assert!(run.stderr.contains("another user"), "{run}");
    }
    toygres.ok(&["list"]).await.unwrap();
}

#[tokio::test]
async fn nothing_is_sent_to_a_socket_that_another_user_put_there() {
    if !place::is_root() {
        return required_or_skip("only root can give files away").unwrap();
    }
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    toygres.kill_server().await.unwrap();
    let folder = toygres.state_dir().join("api");
    std::fs::remove_file(toygres.socket()).unwrap();
    let squatter = UnixListener::bind(toygres.socket()).unwrap();
    let expect_refused = async |words: &str| {
        for arguments in [&["list"][..], &["server", "status"], &["server", "stop"]] {
            let run = toygres.fails(1, arguments).await.unwrap();
            assert!(run.stderr.contains(words), "no {words:?}: {run}");
        }
    };
    chown(toygres.socket(), Some(1), None).unwrap();
    expect_refused("belongs to another user").await;
    chown(toygres.socket(), Some(0), None).unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
    expect_refused("can be written to by others").await;
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).unwrap();
    chown(&folder, Some(1), None).unwrap();
    expect_refused("belongs to another user").await;
    // A connection may have been made to see whose it is: nothing came by it.
    while let Ok(Ok((connection, _))) = timeout(Duration::from_millis(200), squatter.accept()).await {
        let mut byte = [0];
        assert_eq!(connection.try_read(&mut byte).unwrap(), 0, "something was sent");
    }
    // What was there is the next server's to clear away, once the folder is its own again.
    chown(&folder, Some(0), None).unwrap();
    drop(squatter);
    toygres.ok(&["list"]).await.unwrap();
}

#[tokio::test]
async fn a_server_is_known_by_its_socket_whatever_its_program_is_called() {
    let toygres = Toygres::new().unwrap().named("tg").unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    let status = toygres.json(&["server", "status"]).await.unwrap();
    assert_eq!(
        (&status["running"], &status["ready"], &status["pid"]),
        (&true.into(), &"ok".into(), &toygres.server_pid().unwrap().into())
    );
    toygres.ok(&["list"]).await.unwrap();
    let pid = toygres.server_pid().unwrap();
    toygres.ok(&["server", "stop"]).await.unwrap();
    assert!(!process::is_alive(pid));
    toygres.fails(1, &["server", "status"]).await.unwrap();
}

#[tokio::test]
async fn a_server_that_hangs_is_told_and_stop_signals_it_and_no_other() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    let pid = toygres.server_pid().unwrap();
    // What the files name is nobody's business: it may be out of date.
    let mut bystander = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
    std::fs::write(toygres.state_dir().join("server.lock"), bystander.id().unwrap().to_string()).unwrap();
    process::send(pid, Signal::Stop).unwrap();
    let list = toygres.fails(1, &["list"]).await.unwrap();
    assert!(list.stderr.contains(&format!("process {pid}")) && list.stderr.contains("does not answer"), "{list}");
    let (stop, ()) = tokio::join!(toygres.ok(&["server", "stop"]), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        process::send(pid, Signal::Continue).unwrap();
    });
    stop.unwrap();
    assert!(!process::is_alive(pid) && bystander.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn stop_waits_for_a_server_that_is_starting_or_stopping() {
    let toygres = Toygres::new().unwrap();
    let (start, stop) = tokio::join!(toygres.run(&["server", "start"]), async {
        // From when it has its state directory.
        let lock = toygres.state_dir().join("server.lock");
        eventually("a server to begin", SOON, async || Ok(lock.exists().then_some(()))).await?;
        toygres.ok(&["server", "stop"]).await
    });
    let (start, stop) = (start.unwrap(), stop.unwrap());
    assert!(stop.stdout.contains("is stopped"), "{stop}\n{start}");
    assert!(process::servers_on(toygres.state_dir()).is_empty());
    toygres.serve().await.unwrap();
    let (one, other) = tokio::join!(toygres.ok(&["server", "stop"]), toygres.ok(&["server", "stop"]));
    assert!([one.unwrap(), other.unwrap()].iter().any(|run| run.stdout.contains("is stopped")));
    assert!(process::servers_on(toygres.state_dir()).is_empty());
}

#[tokio::test]
async fn a_relative_state_directory_is_one_below_the_current_folder() {
    let toygres = Toygres::new().unwrap().without("TOYGRES_STATE_DIR");
    toygres.ok(&["--state-dir", "state", "server", "start"]).await.unwrap();
    toygres.server_pid().unwrap();
    let elsewhere = toygres.folder().join("home");
    let mut command = toygres.command(&["--state-dir", "../state", "-o", "json", "server", "status"]);
    command.current_dir(&elsewhere);
    let status = Run::of(command, None).await.unwrap().expect_code(0).unwrap().json().unwrap();
    assert_eq!(status["running"], true, "{status}");
    toygres.ok(&["--state-dir", "./state", "server", "stop"]).await.unwrap();
}

#[tokio::test]
async fn a_server_in_the_foreground_keeps_no_secret_of_its_users_other_programs() {
    let toygres = Toygres::new().unwrap();
    let secret = "ghp_find-me";
    let mut command = toygres.command(&["server", "run"]);
    let mut server = command.env("GITHUB_TOKEN", secret).kill_on_drop(true).spawn().unwrap();
    let pid = eventually("the server to listen", SOON, async || Ok(toygres.server_pid().ok())).await.unwrap();
    assert_eq!(server.id(), Some(pid));
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains(secret));
    toygres.ok(&["server", "stop"]).await.unwrap();
    assert!(server.wait().await.unwrap().success());
}

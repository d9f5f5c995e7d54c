//! The whole cluster out of reach for a while, in the middle of toygres's work.
//!
//! These tests disturb whatever else uses the cluster, so they run only where
//! `TOYGRES_TEST_KUBERNETES_OUTAGES=1` says so, besides `TOYGRES_TEST_KUBERNETES=1` and KUBECONFIG, and
//! one after the other:
//!
//! - One stops the API server's process, and lets it go on: the one whose id is in
//!   `TOYGRES_TEST_API_SERVER_PID`, or else in `run/apiserver.pid` beside the kubeconfig.
//! - One takes down the network link to the cluster, and up again with its routes:
//!   `TOYGRES_TEST_CLUSTER_LINK`, or else `toygres0`.
//!
//! Both put back what they did, also when they fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use toygres_activities::platform::Platform;
use toygres_models::Failure;

use crate::support::kubernetes::Kubernetes;
use crate::support::{Subject, ask, key};

/// How long the cluster is away.
const OUTAGE: Duration = Duration::from_secs(20);
/// How long all may take, the outage and what the cluster needs to recover included.
const RETRY_TIMEOUT: Duration = Duration::from_secs(180);
/// Two outages at once would be another test.
static ONE_BY_ONE: Mutex<()> = Mutex::const_new(());

async fn subject() -> Option<Kubernetes> {
    if std::env::var_os("TOYGRES_TEST_KUBERNETES_OUTAGES").is_none_or(|value| value != "1") {
        // Past the capture of output, which would hide it from those who read "ok".
        let _ = writeln!(std::io::stderr(), "\nSKIPPED: set TOYGRES_TEST_KUBERNETES_OUTAGES=1 to have the cluster's API cut off");
        return None;
    }
    Kubernetes::new("17").await
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {}", arguments.join(" "));
}

/// Something that is away as long as this value lives.
trait Outage {
    fn begin() -> Self;
}

/// The API server, stopped.
struct Stopped(String);

impl Outage for Stopped {
    fn begin() -> Self {
        let pid = std::env::var("TOYGRES_TEST_API_SERVER_PID").unwrap_or_else(|_| {
            let beside = PathBuf::from(std::env::var_os("KUBECONFIG").unwrap()).parent().unwrap().join("run/apiserver.pid");
            std::fs::read_to_string(beside).expect("TOYGRES_TEST_API_SERVER_PID is needed")
        });
        let stopped = Self(pid.trim().to_owned());
        run("kill", &["-STOP", &stopped.0]);
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.0]).status();
    }
}

/// The link to the cluster, down.
struct Unplugged {
    link: String,
    /// Those that go with the link.
    routes: Vec<String>,
}

impl Outage for Unplugged {
    fn begin() -> Self {
        let link = std::env::var("TOYGRES_TEST_CLUSTER_LINK").unwrap_or_else(|_| "toygres0".to_owned());
        let shown = Command::new("ip").args(["route", "show", "dev", &link]).output().unwrap();
        let routes = String::from_utf8(shown.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect();
        run("ip", &["link", "set", &link, "down"]);
        Self { link, routes }
    }
}

impl Drop for Unplugged {
    fn drop(&mut self) {
        let ip = |arguments: &[&str]| {
            let _ = Command::new("ip").args(arguments).status();
        };
        ip(&["link", "set", &self.link, "up"]);
        for route in &self.routes {
            // What it says of the link's own state isn't to be set.
            let words = route.split_whitespace().filter(|word| *word != "linkdown");
            let arguments: Vec<_> = ["route", "replace"].into_iter().chain(words).chain(["dev", self.link.as_str()]).collect();
            ip(&arguments);
        }
    }
}

/// Repeats what may pass, as workflows do; how many attempts it took.
async fn repeat<T, Attempt>(mut attempt: impl FnMut() -> Attempt) -> (T, usize)
where
    Attempt: Future<Output = Result<T, Failure>>,
{
    let begun = Instant::now();
    for number in 1.. {
        match attempt().await {
            Ok(value) => return (value, number),
            Err(failure) => {
                assert!(
                    failure.retryable && begun.elapsed() < RETRY_TIMEOUT,
                    "attempt {number}, {:.1?}: {failure}",
                    begun.elapsed()
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    unreachable!("numbers don't end")
}

/// One life with an outage `pause` after the begin of its creation, and one of its removal.
async fn a_life_with<Away: Outage>(subject: &Kubernetes, pause: Duration) {
    let (platform, wanted) = (subject.platform.clone(), subject.real_spec("demo"));
    let making = tokio::spawn({
        let (platform, wanted) = (platform.clone(), wanted.clone());
        async move {
            let begun = Instant::now();
            let (_, made) = repeat(|| platform.ensure(&wanted)).await;
            let looks = async || loop {
                let (seen, _) = repeat(|| platform.wait_ready(&wanted.key, Duration::from_secs(5))).await;
                if seen.ready {
                    return;
                }
                assert!(begun.elapsed() < RETRY_TIMEOUT, "{seen:?}");
            };
            looks().await;
            (begun.elapsed(), made)
        }
    });
    tokio::time::sleep(pause).await;
    away::<Away>().await;
    let (took, attempts) = making.await.unwrap();
    eprintln!("{pause:?}: ready after {took:.1?}, {attempts} attempts to make it");
    ask(subject, "demo", "SELECT 'x'").await;

    let removing = tokio::spawn(async move {
        let begun = Instant::now();
        let (_, attempts) = repeat(|| platform.remove(&wanted.key)).await;
        (begun.elapsed(), attempts)
    });
    tokio::time::sleep(pause).await;
    away::<Away>().await;
    let (took, attempts) = removing.await.unwrap();
    eprintln!("{pause:?}: removed after {took:.1?}, {attempts} attempts");
    assert!(!subject.platform().remove(&key("demo")).await.unwrap());
    assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]), "{pause:?}");
}

async fn away<Away: Outage>() {
    let outage = Away::begin();
    tokio::time::sleep(OUTAGE).await;
    drop(outage);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_for_a_while_is_waited_for() {
    let _alone = ONE_BY_ONE.lock().await;
    let Some(subject) = subject().await else { return };
    for pause_ms in [30, 1000] {
        a_life_with::<Stopped>(&subject, Duration::from_millis(pause_ms)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cable_that_is_cut_for_a_while_is_waited_for() {
    let _alone = ONE_BY_ONE.lock().await;
    let Some(subject) = subject().await else { return };
    for pause_ms in [30, 1000] {
        a_life_with::<Unplugged>(&subject, Duration::from_millis(pause_ms)).await;
    }
}

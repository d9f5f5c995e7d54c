//! How fast toygres is, against doing the same by hand in the same run: `cargo bench -p toygres-e2e`.
//!
//! By hand means `initdb` with its defaults and `postgres` until it answers, as the same user on
//! the same disk; rounds of both alternate and medians are compared. `TOYGRES_BENCH_ROUNDS` is the
//! number of rounds (7), `TOYGRES_TEST_DIR` names another disk than the one of the temporary
//! folder. With `TOYGRES_BENCH_STRICT` a limit that isn't kept is a failure.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sqlx::Connection;
use tokio::task::JoinSet;
use toygres_e2e::by_hand::{Programs, Server};
use toygres_e2e::measure::{self, Measure, Pair, calm, median, milliseconds, note};
use toygres_e2e::place::temporary_folder_on_disk;
use toygres_e2e::{Api, Toygres, process};

/// Directories that toygres keeps ready unless told otherwise.
const POOL_SIZE: usize = 8;
const MANY: usize = 20;
const IDLE: Duration = Duration::from_secs(20);
/// Linux counts processor time in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() -> ExitCode {
    measure::run(run())
}

async fn run() -> Result<Vec<Measure>> {
    let rounds = measure::rounds(7)?;
    let programs = Programs::installed().context("no PostgreSQL is installed to compare with")?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "\n{cores} cores, {rounds} rounds, medians; files in {}\n",
        temporary_folder_on_disk()?.path().parent().unwrap_or("/".as_ref()).display()
    );
    let mut measures = warm_and_delete(&programs, rounds).await?;
    measures.push(cold(&programs, rounds.min(5)).await?);
    measures.push(many_at_once(&programs).await?);
    measures.extend(at_rest(rounds).await?);
    Ok(measures)
}

/// Create and delete on a server that runs, its pool full.
async fn warm_and_delete(programs: &Programs, rounds: usize) -> Result<Vec<Measure>> {
    let toygres = Toygres::for_measurement()?;
    let api = toygres.serve().await?;
    let (mut creates, mut deletes) = (Pair::default(), Pair::default());
    for round in 0..rounds {
        note(&format!("create and delete, round {} of {rounds}", round + 1));
        let folder = temporary_folder_on_disk()?;
        let began = calm().await?;
        let by_hand = Server::create(programs, folder).await?;
        creates.by_hand.push(began.elapsed());
        let began = Instant::now();
        by_hand.remove().await?;
        deletes.by_hand.push(began.elapsed());

        toygres.wait_pool(POOL_SIZE).await?;
        let name = format!("demo-{round}");
        let began = calm().await?;
        create(&api, &name).await?;
        creates.ours.push(began.elapsed());
        let began = Instant::now();
        api.delete(&name).await?;
        deletes.ours.push(began.elapsed());
        toygres.expect_nothing_of(&name).await?;
    }
    let ratio = creates.ratio();
    let (ours, by_hand) = (median(&deletes.ours), median(&deletes.by_hand));
    let more = ours.as_secs_f64() * 1e3 - by_hand.as_secs_f64() * 1e3;
    Ok(vec![
        creates.measure("warm create, HTTP to `SELECT 1` over TLS", "at most 0.25", ratio <= 0.25),
        Measure {
            name: "delete",
            ours: milliseconds(ours),
            by_hand: milliseconds(by_hand),
            reached: format!("{more:+.0} ms"),
            limit: "at most +150 ms",
            is_met: more <= 150.0,
        },
    ])
}

/// `toygres create` with no server and an empty state directory.
async fn cold(programs: &Programs, rounds: usize) -> Result<Measure> {
    let mut times = Pair::default();
    for round in 0..rounds {
        note(&format!("cold create, round {} of {rounds}", round + 1));
        let folder = temporary_folder_on_disk()?;
        let began = calm().await?;
        let by_hand = Server::create(programs, folder).await?;
        times.by_hand.push(began.elapsed());
        by_hand.remove().await?;

        let toygres = Toygres::for_measurement()?;
        let began = calm().await?;
        toygres.ok(&["create", "demo"]).await?;
        let uri = toygres.ok(&["connect", "demo"]).await?.stdout;
        toygres_e2e::api::log_in(uri.trim_end()).await?;
        times.ours.push(began.elapsed());
    }
    let ratio = times.ratio();
    Ok(times.measure("cold `toygres create`, nothing there, no server", "at most 2.5", ratio <= 2.5))
}

/// Twenty requests at once, against twenty by hand one after the other; both ways first once.
async fn many_at_once(programs: &Programs) -> Result<Measure> {
    let mut times = Pair::default();
    for ours_first in [true, false] {
        note(&format!("{MANY} creates at once, {MANY} by hand"));
        // What is made first stays until both are measured: removing so much slows the disk.
        let (_toygres, _by_hand) = if ours_first {
            let toygres = many_of_ours(&mut times).await?;
            (toygres, many_by_hand(programs, &mut times).await?)
        } else {
            let by_hand = many_by_hand(programs, &mut times).await?;
            (many_of_ours(&mut times).await?, by_hand)
        };
    }
    let throughput = 1.0 / times.ratio();
    Ok(Measure {
        reached: format!("{throughput:.2} times the throughput"),
        ..times.measure("20 creates at once, 20 by hand in sequence", "at least 2", throughput >= 2.0)
    })
}

async fn many_by_hand(programs: &Programs, times: &mut Pair) -> Result<Vec<Server>> {
    let mut made = Vec::new();
    let began = calm().await?;
    for _ in 0..MANY {
        made.push(Server::create(programs, temporary_folder_on_disk()?).await?);
    }
    times.by_hand.push(began.elapsed());
    Ok(made)
}

async fn many_of_ours(times: &mut Pair) -> Result<Toygres> {
    let toygres = Toygres::for_measurement()?;
    let api = toygres.serve().await?;
    toygres.wait_pool(POOL_SIZE).await?;
    let began = calm().await?;
    let mut creates = JoinSet::new();
    for number in 0..MANY {
        let api = api.clone();
        creates.spawn(async move { create(&api, &format!("demo-{number}")).await });
    }
    for created in creates.join_all().await {
        created?;
    }
    times.ours.push(began.elapsed());
    Ok(toygres)
}

/// What the server costs while nothing is asked of it, and how fast the program starts.
async fn at_rest(rounds: usize) -> Result<Vec<Measure>> {
    let toygres = Toygres::for_measurement()?;
    toygres.ok(&["create", "demo"]).await?;
    let mut lists = Vec::new();
    for _ in 0..rounds.max(3) * 3 {
        lists.push(toygres.ok(&["list"]).await?.took);
    }
    toygres.wait_pool(POOL_SIZE).await?;
    note(&format!("idle for {} s", IDLE.as_secs()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, began) = (processor_time(&toygres)?, Instant::now());
    tokio::time::sleep(IDLE).await;
    let percent = (processor_time(&toygres)? - before) / began.elapsed().as_secs_f64() * 100.0;
    let megabytes = process::memory_bytes(toygres.server_pid()?)? as f64 / 1e6;
    let list = median(&lists);
    let absolute = |name, ours, reached, limit, is_met| Measure { name, ours, by_hand: "-".into(), reached, limit, is_met };
    Ok(vec![
        absolute(
            "idle: server and control database together",
            format!("{percent:.2} % of a core"),
            format!("{percent:.2} %"),
            "under 2 %",
            percent < 2.0,
        ),
        absolute(
            "memory of the server",
            format!("{megabytes:.0} MB"),
            format!("{megabytes:.0} MB"),
            "under 60 MB",
            megabytes < 60.0,
        ),
        absolute(
            "`toygres list`, the program's start included",
            milliseconds(list),
            milliseconds(list),
            "under 50 ms",
            list.as_millis() < 50,
        ),
    ])
}

/// From the request until a client that checks the certificate has an answer.
async fn create(api: &Api, name: &str) -> Result<()> {
    let operation = api.post_instance(&json!({ "name": name })).await?.expect(202)?;
    api.wait_success(operation["id"].as_str().context("an operation without an id")?).await?;
    Ok(api.log_in(name).await?.close().await?)
}

/// Seconds of processor time that the server and the control database have used so far.
fn processor_time(toygres: &Toygres) -> Result<f64> {
    let mut pids = process::working_below(&toygres.state_dir().join("control"));
    ensure!(!pids.is_empty(), "the control database doesn't run");
    pids.push(toygres.server_pid()?);
    let mut ticks = 0.0;
    for pid in pids {
        // One that just ended is in its parent's count.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        // Own time and that of children that ended: fields 14 to 17 of proc(5).
        ticks += fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(ticks / TICKS_PER_SECOND)
}

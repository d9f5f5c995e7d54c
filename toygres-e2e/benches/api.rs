//! How fast the control plane answers: `cargo bench -p toygres-e2e --bench api`.
//!
//! Server, database and the load itself share this machine's cores. What can be compared is compared
//! in the same run: a page with the SQL query behind it, operations with the same calls of the
//! platform and the store made by hand. Environment as for the bench `speed`.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use futures::future::try_join_all;
use reqwest::header::{ACCEPT, AUTHORIZATION};
use serde_json::json;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::{Barrier, mpsc};
use tokio::task::JoinSet;
use toygres_activities::platform::local::{DirectoryPorts, LocalConfig, LocalHost, LocalPlatform};
use toygres_activities::platform::{Deployment, Platform};
use toygres_e2e::measure::{self, Measure, Pair, calm, median, note};
use toygres_e2e::place::temporary_folder_on_disk;
use toygres_e2e::store_database::{database, key, new_instance, to_state};
use toygres_e2e::{Api, Toygres, api, process};
use toygres_models::store::{Created, Instance};
use toygres_models::{InstanceSpec, InstanceState, PlatformName};

const CONNECTIONS: usize = 64;
const LOAD: Duration = Duration::from_secs(8);
const INSTANCES: i32 = 10_000;
/// As many as a server has.
const STORE_CONNECTIONS: u32 = 16;
const OPERATIONS: usize = 100;
/// Enough to keep the cores busy.
const AT_ONCE: usize = 16;
const STREAMS: usize = 1_000;
const EVENTS: usize = 20;

fn main() -> ExitCode {
    measure::run(run())
}

async fn run() -> Result<Vec<Measure>> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("\n{cores} cores, shared by server, database and load\n");
    let mut measures = reads().await?;
    measures.push(operations().await?);
    measures.push(streams().await?);
    Ok(measures)
}

fn absolute(name: &'static str, ours: String, reached: String, limit: &'static str, is_met: bool) -> Measure {
    Measure { name, ours, by_hand: "-".into(), reached, limit, is_met }
}

/// `GET` of one instance by many at once, and of a page among many instances.
async fn reads() -> Result<Vec<Measure>> {
    let toygres = Toygres::for_measurement()?;
    let api = toygres.serve().await?;
    api.create("demo").await?;
    let control = toygres.control().await?;
    note(&format!("{CONNECTIONS} connections for {} s", LOAD.as_secs()));
    let (times, took) = load(&toygres, "/v1/instances/demo").await?;
    let rate = times.len() as f64 / took.as_secs_f64();
    let p99 = times[times.len() * 99 / 100];
    note(&format!("a page of 100 among {INSTANCES}"));
    fill(&control).await?;
    let page = "/v1/instances?limit=100&cursor=default%2Fbench-04999";
    let first = api.get(page).await?.expect(200)?;
    ensure!(first["items"].as_array().is_some_and(|items| items.len() == 100), "no page of 100");
    let pages = Pair { ours: load(&toygres, page).await?.0, by_hand: queries(&control.connect_options()).await? };
    let micros = |times: &[Duration]| format!("{:.2} ms", median(times).as_secs_f64() * 1e3);
    let ratio = pages.ratio();
    Ok(vec![
        absolute(
            "`GET` of one instance, 64 connections",
            format!("{rate:.0}/s"),
            format!("p99 {:.1} ms", p99.as_secs_f64() * 1e3),
            "at least 3000/s, p99 under 30 ms",
            rate >= 3000.0 && p99 < Duration::from_millis(30),
        ),
        Measure {
            ours: micros(&pages.ours),
            by_hand: micros(&pages.by_hand),
            ..pages.measure("a page of 100 among 10,000, 64 connections; the SQL query alone", "at most 2", ratio <= 2.0)
        },
    ])
}

/// The rows that a page needs, by as many at once, through as many connections to the database as a server has.
async fn queries(options: &PgConnectOptions) -> Result<Vec<Duration>> {
    let pool = PgPoolOptions::new().max_connections(STORE_CONNECTIONS).connect_with(options.clone()).await?;
    let mut clients = JoinSet::new();
    let began = Instant::now();
    for _ in 0..CONNECTIONS {
        let pool = pool.clone();
        clients.spawn(async move {
            let mut times = Vec::new();
            while began.elapsed() < LOAD {
                let sent = Instant::now();
                let rows: Vec<Instance> = sqlx::query_as(
                    "SELECT * FROM toygres.instances WHERE state <> 'deleted' AND (namespace, name) > ('default', 'bench-04999')
                     ORDER BY namespace, name LIMIT 101",
                )
                .fetch_all(&pool)
                .await?;
                times.push(sent.elapsed());
                ensure!(rows.len() == 101, "no 101 rows");
            }
            Ok(times)
        });
    }
    Ok(clients.join_all().await.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

/// Every answer's time, in order, and how long all of it took.
async fn load(toygres: &Toygres, path: &str) -> Result<(Vec<Duration>, Duration)> {
    let (url, authorization) = (format!("{}{path}", toygres.url()?), authorization(toygres)?);
    let begin = Arc::new(Barrier::new(CONNECTIONS + 1));
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        // A client of its own is a connection of its own.
        let client = reqwest::Client::builder().pool_max_idle_per_host(1).build()?;
        let request = client.get(&url).header(AUTHORIZATION, &authorization).build()?;
        let begin = begin.clone();
        clients.spawn(async move {
            begin.wait().await;
            let (began, mut times) = (Instant::now(), Vec::new());
            while began.elapsed() < LOAD {
                let sent = Instant::now();
                let answer = client.execute(request.try_clone().context("a request without a body")?).await?;
                ensure!(answer.status() == 200, "{}", answer.text().await?);
                answer.bytes().await?;
                times.push(sent.elapsed());
            }
            Ok(times)
        });
    }
    begin.wait().await;
    let began = Instant::now();
    let mut times = Vec::new();
    for client in clients.join_all().await {
        times.extend(client?);
    }
    times.sort_unstable();
    Ok((times, began.elapsed()))
}

fn authorization(toygres: &Toygres) -> Result<String> {
    Ok(format!("Bearer {}", std::fs::read_to_string(toygres.state_dir().join("token"))?.trim()))
}

/// Records of instances that aren't there: a list doesn't look.
async fn fill(control: &PgPool) -> Result<()> {
    sqlx::query(
        "INSERT INTO toygres.instances (id, namespace, name, spec, generation, state, status)
         SELECT gen_random_uuid(), 'default', 'bench-' || to_char(n, 'FM00000'), $2, 1, 'running', $3 FROM generate_series(1, $1) n",
    )
    .bind(INSTANCES)
    .bind(json!({ "platform": "local", "postgres_version": "17.4", "labels": { "team": "a" } }))
    .bind(json!({ "ip_connection_string": "postgresql://app@127.0.0.1:20001/app?sslmode=verify-full" }))
    .execute(control)
    .await?;
    sqlx::query("ANALYZE toygres.instances").execute(control).await?;
    Ok(())
}

/// A hundred creates at once, by operations and by hand; each way first once.
async fn operations() -> Result<Measure> {
    let mut times = Pair::default();
    for ours_first in [true, false] {
        note(&format!("{OPERATIONS} creates at once, {OPERATIONS} by hand"));
        if ours_first {
            times.ours.push(by_operations().await?);
            times.by_hand.push(by_hand().await?);
        } else {
            times.by_hand.push(by_hand().await?);
            times.ours.push(by_operations().await?);
        }
    }
    let throughput = 1.0 / times.ratio();
    Ok(Measure {
        reached: format!("{:.0} % of the throughput", throughput * 100.0),
        ..times.measure("100 creates at once; the same calls without workflows", "at least 70 %", throughput >= 0.7)
    })
}

async fn by_operations() -> Result<Duration> {
    let toygres = Toygres::for_measurement()?.with("TOYGRES_PORT_RANGE", "11000-11499").with("TOYGRES_POOL_SIZE", "0");
    let api = toygres.serve().await?;
    let began = calm().await?;
    let create = async |number: usize| -> Result<()> {
        let operation = api.post_instance(&json!({ "name": format!("demo-{number}") })).await?.expect(202)?;
        api.wait_success(operation["id"].as_str().context("an operation without an id")?).await?;
        Ok(())
    };
    try_join_all((0..OPERATIONS).map(create)).await?;
    Ok(began.elapsed())
}

/// What a create's activities do: the platform's verbs, a log-in, and the store's two writes.
async fn by_hand() -> Result<Duration> {
    let store_database = database().await?.context("no PostgreSQL is installed to compare with")?;
    let store = &store_database.store;
    let folder = temporary_folder_on_disk()?;
    let config = LocalConfig {
        state_dir: folder.path().join("state"),
        cache_dir: folder.path().join("cache"),
        port_range: 11_500..=11_999,
        pool_size: 0,
        ..LocalConfig::default()
    };
    let host = LocalHost::open(config).await.map_err(anyhow::Error::msg)?;
    let platform = LocalPlatform::new(host.clone(), Arc::new(DirectoryPorts::new(&host)));
    let version = platform.resolve_version(None).await?;
    let began = calm().await?;
    let create = async |number: usize| -> Result<()> {
        let new = new_instance("default", &format!("demo-{number}"));
        let Created::New(operation) = store.create_instance(&new).await? else {
            anyhow::bail!("it is there already");
        };
        let deployment = Deployment {
            key: new.key.clone(),
            instance_id: Some(operation.instance_id),
            spec: InstanceSpec::new(PlatformName::Local, version),
            password: "by-hand".into(),
            data_exists: false,
        };
        platform.ensure(&deployment).await?;
        platform.wait_ready(&new.key, Duration::from_secs(60)).await?;
        let endpoint = platform.endpoint(&new.key).await?;
        let uri = endpoint.address.owner_uri(&deployment.spec).with_secret(&"by-hand".into());
        api::log_in(secrecy::ExposeSecret::expose_secret(&uri)).await?;
        store.update_metadata(&to_state(&operation, InstanceState::Running)).await?;
        Ok(())
    };
    let made: Vec<Result<()>> = futures::stream::iter((0..OPERATIONS).map(create)).buffer_unordered(AT_ONCE).collect().await;
    made.into_iter().collect::<Result<()>>()?;
    let took = began.elapsed();
    for number in 0..OPERATIONS {
        platform.remove(&key("default", &format!("demo-{number}"))).await?;
    }
    Ok(took)
}

/// A thousand open streams: what they take, and how soon each has an event.
async fn streams() -> Result<Measure> {
    let toygres = Toygres::for_measurement()?;
    let _: Api = toygres.serve().await?;
    let control = toygres.control().await?;
    let (url, authorization) = (format!("{}/v1/events", toygres.url()?), authorization(&toygres)?);
    let before = resident_bytes(toygres.server_pid()?)?;
    note(&format!("{STREAMS} streams, {EVENTS} events"));
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let mut readers = JoinSet::new();
    for _ in 0..STREAMS {
        let client = reqwest::Client::builder().build()?;
        let mut answer =
            client.get(&url).header(AUTHORIZATION, &authorization).header(ACCEPT, "text/event-stream").send().await?;
        ensure!(answer.status() == 200, "{}", answer.text().await?);
        let arrived = arrived.clone();
        readers.spawn(async move {
            while let Ok(Some(chunk)) = answer.chunk().await {
                // A message without data only says where the stream is.
                for line in String::from_utf8_lossy(&chunk).lines().filter(|line| line.starts_with("data:")) {
                    let _ = arrived.send((line.to_owned(), Instant::now()));
                }
            }
            // The client holds the connection.
            drop(client);
        });
    }
    let mut slowest = Duration::ZERO;
    for number in 0..EVENTS {
        let began = Instant::now();
        sqlx::query("INSERT INTO toygres.events (kind, message, cause) VALUES ('bench', $1, 'bench')")
            .bind(number.to_string())
            .execute(&control)
            .await?;
        let mut told = BTreeSet::new();
        for _ in 0..STREAMS {
            let (event, at) = tokio::time::timeout(Duration::from_secs(20), arrivals.recv())
                .await
                .context("an event did not reach every stream")?
                .context("no readers")?;
            told.insert(event);
            slowest = slowest.max(at.duration_since(began));
        }
        ensure!(told.len() == 1, "other events came: {told:?}");
    }
    let megabytes = (resident_bytes(toygres.server_pid()?)? as f64 - before as f64) / 1e6;
    Ok(absolute(
        "1,000 event streams: the server's memory, the slowest delivery",
        format!("{megabytes:.0} MB"),
        format!("{:.0} ms", slowest.as_secs_f64() * 1e3),
        "under 100 MB, within 250 ms",
        megabytes < 100.0 && slowest < Duration::from_millis(250),
    ))
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let system = process::all();
    Ok(system.process(sysinfo::Pid::from_u32(pid)).context("the server doesn't run")?.memory())
}

//! Days on which the database that the server was given is bad: it hangs, is gone, takes nobody in, is
//! migrated half-way. Meanwhile clear answers; full service once the cause is gone.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use toygres_e2e::by_hand::{Programs, Server};
use toygres_e2e::place::{required_or_skip, temporary_folder};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually, process, wait_until};

/// Long enough for every lock on work to run out.
const GONE: Duration = Duration::from_secs(30);

/// A database server for this test, and a toygres that uses it. `None` if no PostgreSQL is installed.
async fn set_up() -> Result<Option<(Server, Toygres)>> {
    let Some(programs) = Programs::installed() else {
        required_or_skip("no PostgreSQL is installed on this machine")?;
        return Ok(None);
    };
    let server = Server::create(&programs, temporary_folder()?).await?;
    let toygres = Toygres::new()?.with("TOYGRES_DATABASE_URL", server.url());
    Ok(Some((server, toygres)))
}

/// Without its database the server says so, says when to try again, and says nothing of its insides.
async fn expect_unavailable(api: &Api) -> Result<()> {
    for path in ["/readyz", "/v1/instances", "/v1/instances/demo", "/v1/operations"] {
        let answer = api.get(path).await?;
        let detail = answer.expect_problem(503)?;
        ensure!(answer.headers.contains_key("retry-after"), "{path} doesn't say when to try again");
        for word in ["sqlx", "pool", "postgres:", "SQLSTATE", "os error", ".rs"] {
            ensure!(!answer.text.contains(word), "{path}: {detail}");
        }
    }
    api.get("/healthz").await?.expect(200)?;
    Ok(())
}

async fn expect_full_service(api: &Api, name: &str) -> Result<()> {
    eventually("it to be ready", SOON, async || Ok(api.get("/readyz").await?.expect(200).ok())).await?;
    // Ready by one free connection; the others may still be going.
    let create = eventually("a create to be taken", SOON, async || api.begin_create(name).await.map(Some)).await?;
    api.wait_success(&create).await?;
    api.log_in(name).await?;
    api.delete(name).await?;
    Ok(())
}

#[tokio::test]
async fn a_database_that_is_gone_for_a_while_delays_and_loses_nothing() {
    let Some((mut server, toygres)) = set_up().await.unwrap() else { return };
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut operations = Vec::new();
    for number in 0..4 {
        operations.push(api.begin_create(&format!("during-{number}")).await.unwrap());
    }
    server.stop().await.unwrap();
    let gone = Instant::now();
    expect_unavailable(&api).await.unwrap();
    let list = toygres.fails(1, &["list"]).await.unwrap();
    assert!(list.stderr.contains("the metadata store") && !list.stderr.contains("repeat"), "{list}");
    let doctor = toygres.run(&["doctor"]).await.unwrap();
    assert!(doctor.code == Some(1) && doctor.stdout.contains("isn't ready"), "{doctor}");
    // The instances don't notice.
    let uri = std::fs::read_to_string(toygres.secret_file("demo")).unwrap();
    assert!(!uri.is_empty() && toygres.postmasters("demo").len() == 1);
    // Whoever asks meanwhile is told so, however many they are.
    let ask = async |path: &str| -> Result<usize> {
        let mut answers = 0;
        while gone.elapsed() < GONE {
            api.get(path).await?.expect_problem(503)?;
            answers += 1;
        }
        Ok(answers)
    };
    let paths = ["/readyz", "/v1/instances", "/v1/instances/demo", "/v1/events"];
    let answers = try_join_all(paths.repeat(8).into_iter().map(ask)).await.unwrap();
    println!("{} answers while it was gone", answers.iter().sum::<usize>());
    server.start().await.unwrap();
    let back = Instant::now();
    for operation in &operations {
        let answer = async || api.wait_success(operation).await.map(Some);
        eventually("the operation to succeed", SOON, answer).await.unwrap();
    }
    println!("what was under way ended {:.1} s after the database was back", back.elapsed().as_secs_f64());
    expect_full_service(&api, "after").await.unwrap();
    for number in 0..4 {
        toygres.only_postmaster(&format!("during-{number}")).await.unwrap();
    }
}

/// Connections until the server takes no more.
async fn take_all(options: &PgConnectOptions, taken: &mut Vec<PgConnection>) {
    while let Ok(connection) = options.connect().await {
        taken.push(connection);
    }
}

#[tokio::test]
async fn a_database_whose_connections_others_took_is_waited_for() {
    let Some((server, toygres)) = set_up().await.unwrap() else { return };
    let mut admin = server.options().connect().await.unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut taken = Vec::new();
    take_all(&server.options(), &mut taken).await;
    assert!(taken.len() > 20, "{}", taken.len());
    // With those that it has the server goes on. Then it loses them, and others are faster.
    api.items("/v1/instances").await.unwrap();
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND (application_name = 'toygres' OR query LIKE '%duroxide%')";
    eventually("the server to get no connection", SOON, async || {
        sqlx::query(kill).execute(&mut admin).await?;
        take_all(&server.options(), &mut taken).await;
        expect_unavailable(&api).await.map(Some)
    })
    .await
    .unwrap();
    drop(taken);
    expect_full_service(&api, "after").await.unwrap();
}

#[tokio::test]
async fn a_migration_that_was_cut_off_half_way_is_done_anew() {
    let Some((server, toygres)) = set_up().await.unwrap() else { return };
    let mut admin = server.options().connect().await.unwrap();
    // The last migration stops in its middle, at its first index, as long as the test holds a lock.
    admin
        .execute(
            "CREATE FUNCTION public.hold_up() RETURNS event_trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF current_query() LIKE '%tokens_live_name%' THEN PERFORM pg_advisory_xact_lock_shared(4711); END IF;
             END $$;
             CREATE EVENT TRIGGER hold_up ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION public.hold_up();
             SELECT pg_advisory_lock(4711)",
        )
        .await
        .unwrap();
    let held_up = async |admin: &mut PgConnection| -> Result<Option<()>> {
        let (waits,): (bool,) =
            sqlx::query_as("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted)")
                .fetch_one(admin)
                .await?;
        Ok(waits.then_some(()))
    };
    let mut command = toygres.command(&["server", "start"]);
    let mut starting = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    eventually("the migration to be in its middle", SOON, async || held_up(&mut admin).await).await.unwrap();
    toygres.kill_servers().await.unwrap();
    starting.wait().await.unwrap();
    let (tokens,): (bool,) =
        sqlx::query_as("SELECT to_regclass('toygres.tokens') IS NOT NULL").fetch_one(&mut admin).await.unwrap();
    assert!(!tokens, "half of a migration is to be seen");

    // The next one waits for what is left of it, and then does all of it.
    let (served, ()) = tokio::join!(toygres.serve(), async {
        wait_until("the server to start", SOON, || !process::servers_on(toygres.state_dir()).is_empty()).await.unwrap();
        admin.execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
    });
    expect_full_service(&served.unwrap(), "demo").await.unwrap();
    admin.close().await.unwrap();
}

//! What a confined server has to do all the same.

use anyhow::{Context, Result, ensure};
use sqlx::{Connection, Executor, PgConnection, Row};
use toygres_e2e::by_hand::Programs;
use toygres_e2e::place::required_or_skip;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually, process};

async fn plan(session: &mut PgConnection, statement: &str) -> Result<String> {
    let rows = session.fetch_all(format!("EXPLAIN (ANALYZE, COSTS OFF) {statement}").as_str()).await?;
    Ok(rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n"))
}

async fn expect_plan(session: &mut PgConnection, statement: &str, words: &[&str]) -> Result<()> {
    let plan = plan(session, statement).await.with_context(|| statement.to_owned())?;
    for word in words {
        ensure!(plan.contains(word), "no {word:?} in the plan of {statement}:\n{plan}");
    }
    Ok(())
}

/// Work that takes shared memory, files, processes and libraries.
async fn expect_work(api: &Api, session: &mut PgConnection) -> Result<()> {
    session
        .execute(
            "CREATE TABLE numbers AS SELECT n, repeat(md5(n::text), 2) AS text FROM generate_series(1, 200000) n; ANALYZE numbers;
             SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
             SET min_parallel_table_scan_size = 0; SET enable_mergejoin = off; SET enable_nestloop = off; SET jit = off",
        )
        .await?;
    let join = "SELECT count(*) FROM numbers one JOIN numbers two USING (n)";
    expect_plan(session, join, &["Parallel Hash", "Workers Launched: 2"]).await?;
    session.execute("SET work_mem = '64kB'").await?;
    expect_plan(session, join, &["Parallel Hash", "Batches: "]).await?;
    let sort = "SELECT text FROM numbers ORDER BY text";
    session.execute("SET max_parallel_workers_per_gather = 0").await?;
    expect_plan(session, sort, &["external merge  Disk"]).await?;
    session
        .execute("SET maintenance_work_mem = '1MB'; SET max_parallel_maintenance_workers = 2; CREATE INDEX ON numbers (text)")
        .await?;
    if sqlx::query_scalar("SELECT pg_jit_available()").fetch_one(&mut *session).await? {
        session
            .execute("SET jit = on; SET jit_above_cost = 0; SET jit_inline_above_cost = 0; SET jit_optimize_above_cost = 0")
            .await?;
        expect_plan(session, "SELECT sum(n + 1) FROM numbers", &["JIT:"]).await?;
    }
    let contrib: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM pg_available_extensions
         WHERE name IN ('pg_trgm', 'pgcrypto', 'hstore', 'ltree', 'postgres_fdw', 'dblink', 'pg_stat_statements', 'uuid-ossp')",
    )
    .fetch_all(&mut *session)
    .await?;
    for name in &contrib {
        session.execute(format!("CREATE EXTENSION \"{name}\"").as_str()).await.with_context(|| name.clone())?;
    }
    if contrib.iter().any(|name| name == "pgcrypto") {
        session.execute("SELECT gen_random_bytes(8), crypt('x', gen_salt('bf'))").await?;
    }
    session.execute("SET timezone = 'Europe/Berlin'; SELECT now()").await?;
    let zones: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_timezone_names").fetch_one(&mut *session).await?;
    ensure!(zones > 100, "there are {zones} time zones");
    let has_icu: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_collation WHERE collname = 'de-x-icu')")
        .fetch_one(&mut *session)
        .await?;
    if has_icu {
        let order: String =
            sqlx::query_scalar("SELECT string_agg(x, '' ORDER BY x COLLATE \"de-x-icu\") FROM unnest('{z,ä,a}'::text[]) x")
                .fetch_one(&mut *session)
                .await?;
        ensure!(order == "aäz", "{order}");
    }
    session.execute("CREATE DATABASE another").await?;
    if contrib.iter().any(|name| name == "dblink") {
        // Another instance, over the network.
        let uri: sqlx::postgres::PgConnectOptions = api.uri("other").await?.parse()?;
        let link =
            format!("SELECT dblink_connect('hostaddr=127.0.0.1 port={} user=nobody password=x sslmode=require')", uri.get_port());
        let error = session.execute(link.as_str()).await.err().context("the log-in should be refused")?.to_string();
        ensure!(error.contains("could not establish connection"), "{error}");
    }
    Ok(())
}

/// A copy of the whole server, by one of its superusers. (The owner has no right to that: all databases are in it.)
async fn expect_base_backup(toygres: &Toygres) -> Result<()> {
    let Some(program) = Programs::installed().map(|programs| programs.path("pg_basebackup")).filter(|path| path.exists()) else {
        return required_or_skip("there is no pg_basebackup on this machine");
    };
    let target = toygres.folder().join("backup");
    let back_up = async |flags: &[&str]| -> Result<std::process::Output> {
        let uri = toygres.ok(&[&["connect", "demo"], flags].concat()).await?.stdout;
        let mut command = tokio::process::Command::new(&program);
        command.args(["--checkpoint=fast", "--no-sync", "-d", uri.trim_end(), "-D"]).arg(&target);
        Ok(command.output().await?)
    };
    let refused = back_up(&[]).await?;
    ensure!(!refused.status.success(), "an owner copies the whole server");
    let made = back_up(&["--superuser"]).await?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    ensure!(target.join("PG_VERSION").exists() && !target.join("server.key").exists(), "it isn't the data directory");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_server_does_all_that_postgresql_does() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    for name in ["demo", "other"] {
        api.create(name).await.unwrap();
    }
    let mut session = api.log_in_as_superuser("demo").await.unwrap();
    let kind: String = sqlx::query_scalar("SHOW dynamic_shared_memory_type").fetch_one(&mut session).await.unwrap();
    assert_eq!(kind, "mmap");
    let complaints = "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL";
    let complaints: i64 = sqlx::query_scalar(complaints).fetch_one(&mut session).await.unwrap();
    assert_eq!(complaints, 0, "a reload would complain");
    expect_work(&api, &mut session).await.unwrap();
    expect_base_backup(&toygres).await.unwrap();
    // A backend that is killed, and the server itself: it recovers, with its shared memory's files gone.
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut session).await.unwrap();
    process::kill(u32::try_from(backend).unwrap()).await.unwrap();
    eventually("it to recover", SOON, async || Ok(api.log_in("demo").await.ok())).await.unwrap();
    process::kill(toygres.only_postmaster("demo").await.unwrap()).await.unwrap();
    let mut session =
        eventually("it to be started again", 2 * SOON, async || Ok(api.log_in_as_superuser("demo").await.ok())).await.unwrap();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM numbers").fetch_one(&mut session).await.unwrap();
    assert_eq!(rows, 200_000);
    session.close().await.unwrap();
    let left = std::fs::read_dir(toygres.instance_dir("demo").join("data/pg_dynshmem")).unwrap().count();
    assert!(left <= 2, "{left} files of shared memory are left");
    toygres.ok(&["restart", "demo"]).await.unwrap();
}

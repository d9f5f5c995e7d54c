//! What the server of an instance answers to toygres, and writes into its log: both are its superuser's.

use std::time::Instant;

use anyhow::Result;
use sqlx::Executor;
use sqlx::postgres::PgConnection;
use toygres_e2e::api::log_in;
use toygres_e2e::wait::{SOON, eventually};
use toygres_e2e::{Api, Toygres, process};

/// Puts a function of his own in the place of `version()`, which toygres asks for.
fn instead_of_version(body: &str) -> String {
    format!(
        "SET allow_system_table_mods = on;
         ALTER FUNCTION pg_catalog.version() RENAME TO version_before;
         CREATE FUNCTION pg_catalog.version() RETURNS text LANGUAGE plpgsql AS $$ BEGIN {body}; END $$"
    )
}

/// A superuser's session in the owner's database.
async fn superuser_of_app(api: &Api, name: &str) -> Result<PgConnection> {
    log_in(&api.superuser_uri(name).await?.replace("/postgres?", "/app?")).await
}

#[tokio::test]
async fn an_answer_of_any_length_is_cut_off_and_nobody_else_waits_for_it() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    for name in ["long", "endless", "wordy", "other"] {
        api.create(name).await.unwrap();
    }
    for (name, body) in [
        ("long", "RETURN repeat('x', 3000000)"),
        ("endless", "RETURN repeat('x', 200000000)"),
        ("wordy", "RAISE EXCEPTION USING MESSAGE = repeat('E', 3000000), ERRCODE = '28P01'"),
    ] {
        let mut session = superuser_of_app(&api, name).await.unwrap();
        session.execute(instead_of_version(body).as_str()).await.unwrap();
    }
    let server = toygres.server_pid().unwrap();
    let before = process::memory_bytes(server).unwrap();
    toygres.ok(&["rotate-password", "long"]).await.unwrap();
    let rotation = toygres.json(&["rotate-password", "endless", "--no-wait"]).await.unwrap();
    let path = format!("/v1/operations/{}", rotation["id"].as_str().unwrap());
    eventually("an attempt to fail", SOON, async || {
        let operation = api.get(&path).await?.expect(200)?;
        Ok(operation["steps"].to_string().contains("could not be used").then_some(()))
    })
    .await
    .unwrap();
    let refused = toygres.fails(1, &["rotate-password", "wordy"]).await.unwrap();
    assert!(refused.stderr.len() < 20_000, "{} bytes of an error", refused.stderr.len());
    let after = process::memory_bytes(server).unwrap();
    assert!(after < before + (100 << 20), "the server's memory grew from {before} to {after} bytes");
    for path in ["/v1/operations", "/v1/events", "/v1/instances", "/v1/instances/wordy/why"] {
        let answer = api.get(path).await.unwrap().text;
        assert!(answer.len() < 200_000, "{path} has {} bytes", answer.len());
    }
    let begun = Instant::now();
    toygres.ok(&["rotate-password", "other"]).await.unwrap();
    assert!(begun.elapsed() < SOON, "another instance's operation took {:.1?}", begun.elapsed());
    toygres.ok(&["delete", "endless", "--yes"]).await.unwrap();
}

#[tokio::test]
async fn a_log_of_any_length_is_read_from_its_end_alone() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap().create("demo").await.unwrap();
    let newest = toygres.log_files("demo").unwrap().pop().unwrap();
    std::fs::OpenOptions::new().write(true).open(newest).unwrap().set_len(4 << 40).unwrap();
    let begun = Instant::now();
    toygres.ok(&["logs", "demo", "--tail", "5"]).await.unwrap();
    toygres.ok(&["why", "demo"]).await.unwrap();
    assert!(begun.elapsed() < SOON, "it took {:.1?}", begun.elapsed());
}

#[tokio::test]
async fn a_tenants_words_begin_no_line_of_the_servers_log() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let forged = "2026-11-29T19:00:00.000000Z ERROR forged";
    let mut owner = api.log_in("demo").await.unwrap();
    owner.execute(format!("ALTER ROLE app SET default_table_access_method = E'y\n{forged}'").as_str()).await.unwrap();
    let mut superuser = superuser_of_app(&api, "demo").await.unwrap();
    let raise = format!("RAISE EXCEPTION USING MESSAGE = E'y\\n{forged}', ERRCODE = '28P01'");
    superuser.execute(instead_of_version(&raise).as_str()).await.unwrap();
    toygres.fails(1, &["rotate-password", "demo"]).await.unwrap();
    let log = std::fs::read_to_string(toygres.state_dir().join("server.log")).unwrap();
    assert!(log.contains("forged"), "the failure isn't in the log: {log}");
    assert!(!log.lines().any(|line| line.starts_with(forged)), "{log}");
}

#[tokio::test]
async fn an_owners_operators_are_not_used_in_a_superusers_session() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut owner = api.log_in("demo").await.unwrap();
    owner
        .execute(
            "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO public;
             CREATE FUNCTION evil.oideq(oid, oid) RETURNS bool LANGUAGE plpgsql SET search_path = pg_catalog AS $$ BEGIN
                 BEGIN EXECUTE 'ALTER ROLE app SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN $1 = $2; END $$;
             CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.oideq);
             ALTER DATABASE app SET search_path = evil, pg_catalog, public",
        )
        .await
        .unwrap();
    for words in [&["-d", "app", "-c", "\\dx"][..], &["-d", "app", "-c", "SELECT 1::oid = 1::oid"]] {
        toygres.ok(&[&["psql", "--superuser", "demo"], words].concat()).await.unwrap();
    }
    let (is_superuser,): (bool,) =
        sqlx::query_as("SELECT rolsuper FROM pg_roles WHERE rolname = 'app'").fetch_one(&mut owner).await.unwrap();
    assert!(!is_superuser, "the owner has become a superuser");
}

#[tokio::test]
async fn an_odd_answer_to_a_probe_is_a_matter_of_its_instance_alone() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_HEALTH_INTERVAL_SECONDS", "1");
    let api = toygres.serve().await.unwrap();
    // In this order they are looked at.
    for name in ["a-odd", "b-other"] {
        api.create(name).await.unwrap();
    }
    let mut session = log_in(&api.superuser_uri("a-odd").await.unwrap()).await.unwrap();
    for statement in [
        "SET allow_system_table_mods = on",
        "ALTER VIEW pg_catalog.pg_stat_replication RENAME TO pg_stat_replication_before",
        r#"CREATE VIEW pg_catalog.pg_stat_replication AS SELECT 1 AS pid, '"a\u0000\u001b[2Jb"'::json AS application_name,
            NULL::inet AS client_addr, repeat('x', 1000000) AS state, pg_current_wal_lsn() AS replay_lsn, NULL::interval AS replay_lag"#,
    ] {
        session.execute(statement).await.unwrap();
    }
    eventually("the odd answer to be refused", SOON, async || {
        let odd = api.get("/v1/instances/a-odd/health").await?.expect(200)?;
        Ok(odd.to_string().contains("something else than PostgreSQL").then_some(()))
    })
    .await
    .unwrap();
    session.execute("CREATE OR REPLACE VIEW pg_catalog.pg_stat_replication AS SELECT 1 AS pid, '\"a\\u0000\\u001b[2Jb\"'::json AS application_name,
        NULL::inet AS client_addr, 'x'::text AS state, pg_current_wal_lsn() AS replay_lsn, NULL::interval AS replay_lag").await.unwrap();
    eventually("it to be told", SOON, async || {
        let page = api.get("/v1/metrics").await?.text;
        Ok(page.contains("application_name=\"a[2Jb\"").then_some(page))
    })
    .await
    .unwrap();
    // The other one is looked at all the time.
    let mut other = log_in(&api.superuser_uri("b-other").await.unwrap()).await.unwrap();
    other.execute("ALTER SYSTEM SET default_transaction_read_only = on").await.unwrap();
    other.execute("SELECT pg_reload_conf()").await.unwrap();
    eventually("what happens to the other one", SOON, async || {
        let listed = toygres.json(&["health"]).await?;
        let found = listed
            .as_array()
            .into_iter()
            .flatten()
            .any(|health| health["name"] == "b-other" && health["health_status"] == "unhealthy");
        Ok(found.then_some(()))
    })
    .await
    .unwrap();
}

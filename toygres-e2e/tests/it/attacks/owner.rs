//! An instance's owner, who is no superuser: what it is refused, what it can do, and who becomes superuser.

use anyhow::Result;
use sqlx::{Connection, Executor, PgConnection};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Toygres, eventually};

/// Each would lead out of the database, to another role's rights, or to toygres's own log-in.
const REFUSED: &[&str] = &[
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "COPY kept FROM PROGRAM 'id'",
    "COPY kept FROM '/etc/passwd'",
    "COPY kept TO '/tmp/toygres-owner'",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT pg_read_binary_file('/etc/passwd')",
    "SELECT pg_ls_dir('.')",
    "SELECT pg_stat_file('PG_VERSION')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT pg_reload_conf()",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_hba_file_rules",
    "ALTER SYSTEM SET archive_command = 'id'",
    "SET session_preload_libraries = 'x'",
    "SET log_statement = 'none'",
    "LOAD '/tmp/x.so'",
    "CREATE FUNCTION x() RETURNS int LANGUAGE c AS '/tmp/x', 'x'",
    "CREATE FUNCTION x() RETURNS int LANGUAGE internal AS 'pg_read_file_all'",
    "CREATE EXTENSION file_fdw",
    "CREATE EXTENSION adminpack",
    "CREATE EVENT TRIGGER x ON ddl_command_start EXECUTE FUNCTION pg_catalog.version()",
    "CREATE TABLESPACE x LOCATION '/tmp'",
    "GRANT pg_execute_server_program TO app",
    "GRANT pg_read_server_files TO app",
    "GRANT postgres TO app",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION toygres",
    "CREATE ROLE x SUPERUSER",
    "CREATE ROLE x REPLICATION",
    "ALTER ROLE app SUPERUSER",
    "ALTER ROLE app BYPASSRLS",
    "ALTER ROLE postgres LOGIN PASSWORD 'x'",
    "ALTER ROLE toygres NOLOGIN",
    "ALTER ROLE toygres SET role = 'app'",
    "ALTER DATABASE postgres OWNER TO app",
    "ALTER DATABASE postgres SET search_path = public",
    "DROP DATABASE postgres",
];

/// What an owner is for.
const ALLOWED: &[&str] = &[
    "CREATE TABLE kept (word text)",
    "CREATE SCHEMA own",
    "CREATE EXTENSION pg_trgm",
    "CREATE DATABASE second",
    "CREATE FUNCTION double(n int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 2 * n; END'",
    "CREATE TABLE public.own AS SELECT double(21)",
    "SELECT query FROM pg_stat_activity",
    "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE usename = 'app' AND pid <> pg_backend_pid()",
    "ALTER ROLE app SET work_mem = '8MB'",
    "ALTER DATABASE app SET statement_timeout = '1min'",
];

async fn role(session: &mut PgConnection) -> Result<String> {
    Ok(sqlx::query_scalar("SELECT current_user::text").fetch_one(session).await?)
}

#[tokio::test]
async fn an_owner_has_its_database_and_no_way_out_of_it() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut session = api.log_in("demo").await.unwrap();
    for statement in ALLOWED {
        session.execute(*statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    for statement in REFUSED {
        let error = session.execute(*statement).await.map(drop).expect_err(statement);
        let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        // Insufficient privilege, a reserved name, a program or file that isn't there; never a success.
        assert!(["42501", "42939", "0LP01", "58P01", "0A000", "22023"].contains(&code.as_str()), "{statement}: {code} {error}");
    }
    session.close().await.unwrap();
    // Whatever it did to its role, toygres works with the instance.
    toygres.ok(&["restart", "demo"]).await.unwrap();
}

#[tokio::test]
async fn owner_and_database_are_named_by_the_spec() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo", "--owner", "blog", "--database", "user"]).await.unwrap();
    let api = toygres.api().unwrap();
    let uri = api.uri("demo").await.unwrap();
    assert!(uri.starts_with("postgresql://blog:") && uri.contains("/user?"), "another owner or database");
    let mut session = api.log_in("demo").await.unwrap();
    assert_eq!(role(&mut session).await.unwrap(), "blog");
    session.execute("CREATE TABLE kept AS SELECT 42 AS answer").await.unwrap();
    drop(session);
    toygres.ok(&["rotate-password", "demo"]).await.unwrap();
    api.expect_42("demo").await.unwrap();
    for (flag, value) in [("--owner", "postgres"), ("--owner", "pg_x"), ("--database", "template1"), ("--database", "a\"; DROP")]
    {
        let refused = toygres.fails(2, &["create", "other", flag, value]).await.unwrap();
        assert!(refused.stderr.contains(flag), "{refused}");
    }
    let changed = toygres.run_with_input(&["apply", "-f", "-"], b"name: demo\nowner: other\n").await.unwrap();
    assert!(changed.code != Some(0) && changed.stderr.contains("owner"), "{changed}");
}

#[tokio::test]
async fn a_superuser_is_for_admins_for_an_hour_and_an_event() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    // Before anybody asked for it, there is no such log-in.
    let owner = api.uri("demo").await.unwrap();
    let guess = owner.replacen("postgresql://app:", "postgresql://postgres:", 1);
    toygres_e2e::api::log_in(&guess).await.unwrap_err();
    let connection = toygres.json(&["connect", "demo", "--superuser", "--format", "json"]).await.unwrap();
    let first = connection["uri"].as_str().unwrap();
    let mut session = toygres_e2e::api::log_in(first).await.unwrap();
    assert_eq!(role(&mut session).await.unwrap(), "postgres");
    let hours: f64 = sqlx::query_scalar(
        "SELECT extract(epoch FROM rolvaliduntil - now())::float8 / 3600 FROM pg_roles WHERE rolname = 'postgres'",
    )
    .fetch_one(&mut session)
    .await
    .unwrap();
    assert!((0.9..=1.0).contains(&hours), "its password lets in for {hours} hours");
    assert!(api.kinds_of_events("demo").await.unwrap().contains(&"superuser_requested".to_owned()));
    // The next one ends the first, and not its sessions.
    let mut second = api.log_in_as_superuser("demo").await.unwrap();
    toygres_e2e::api::log_in(first).await.unwrap_err();
    session.execute("SELECT 1").await.unwrap();
    // One that is over lets nobody in.
    let third = toygres.ok(&["connect", "demo", "--superuser"]).await.unwrap().stdout;
    second.execute("ALTER ROLE postgres VALID UNTIL 'yesterday'").await.unwrap();
    eventually("the password to be over", SOON, async || Ok(toygres_e2e::api::log_in(third.trim()).await.is_err().then_some(())))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_server_can_hand_out_no_superuser_at_all() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_SUPERUSER", "never");
    toygres.ok(&["create", "demo"]).await.unwrap();
    let refused = toygres.fails(1, &["connect", "demo", "--superuser"]).await.unwrap();
    assert!(refused.stderr.contains("never"), "{refused}");
    let api = toygres.api().unwrap();
    assert!(!api.kinds_of_events("demo").await.unwrap().contains(&"superuser_requested".to_owned()));
    let session = api.log_in("demo").await.unwrap();
    session.close().await.unwrap();
}

#[tokio::test]
async fn extensions_that_need_a_superuser_are_made_and_removed_by_toygres() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let document = b"name: demo\nextensions: [earthdistance, pg_trgm]\n";
    let made = toygres.run_with_input(&["apply", "-f", "-"], document).await.unwrap();
    assert_eq!(made.code, Some(0), "{made}");
    let mut session = api.log_in("demo").await.unwrap();
    let mut installed = async || {
        let names = "SELECT string_agg(extname, ' ' ORDER BY extname) FROM pg_extension";
        sqlx::query_scalar::<_, String>(names).fetch_one(&mut session).await.unwrap()
    };
    assert_eq!(installed().await, "cube earthdistance pg_trgm plpgsql");
    // A schema of the owner's with functions of its own changes nothing for toygres's session.
    let mut owner = api.log_in("demo").await.unwrap();
    for statement in [
        "ALTER DATABASE app SET search_path = evil, public",
        "ALTER DATABASE app SET default_transaction_read_only = on",
        "ALTER DATABASE app SET role = 'app'",
    ] {
        owner.execute(statement).await.unwrap();
    }
    toygres.ok(&["extension", "add", "demo", "postgres_fdw"]).await.unwrap();
    owner.execute("CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw").await.unwrap();
    // What something needs stays, and so does the spec.
    let refused = toygres.fails(1, &["extension", "remove", "demo", "postgres_fdw"]).await.unwrap();
    assert!(refused.stderr.contains("server elsewhere depends on"), "{refused}");
    assert_eq!(installed().await, "cube earthdistance pg_trgm plpgsql postgres_fdw");
    toygres.ok(&["extension", "remove", "demo", "earthdistance"]).await.unwrap();
    assert_eq!(installed().await, "pg_trgm plpgsql postgres_fdw");
    // Its library is loaded at the start. The owner sees what runs, and not what toygres set a password with.
    toygres.ok(&["extension", "add", "demo", "pg_stat_statements"]).await.unwrap();
    toygres.ok(&["rotate-password", "demo"]).await.unwrap();
    let mut owner = api.log_in("demo").await.unwrap();
    let seen: Vec<String> = sqlx::query_scalar("SELECT query FROM pg_stat_statements").fetch_all(&mut owner).await.unwrap();
    assert!(seen.iter().any(|query| query.contains("pg_extension")), "{seen:?}");
    assert!(!seen.iter().any(|query| query.contains("SCRAM") || query.contains("PASSWORD")), "{seen:?}");
    for (extension, why) in [
        ("file_fdw", "reads the server's files"),
        ("plpython3u", "run as the server's user"),
        ("dblink", "read and write the server's files"),
    ] {
        let refused = toygres.fails(2, &["extension", "add", "demo", extension]).await.unwrap();
        assert!(refused.stderr.contains(why), "{refused}");
    }
    let missing = toygres.fails(1, &["extension", "add", "demo", "vector"]).await.unwrap();
    assert!(missing.stderr.contains("isn't in this build"), "{missing}");
    // Of one that is stopped it shows only when it starts.
    toygres.ok(&["stop", "demo"]).await.unwrap();
    let later = toygres.ok(&["extension", "add", "demo", "vector"]).await.unwrap();
    assert!(later.stdout.contains("when it starts"), "{later}");
    toygres.fails(1, &["start", "demo"]).await.unwrap();
    let why = toygres.ok(&["why", "demo"]).await.unwrap();
    assert!(why.stdout.contains("toygres extension remove demo"), "{why}");
    toygres.ok(&["extension", "remove", "demo", "vector"]).await.unwrap();
    toygres.ok(&["start", "demo"]).await.unwrap();
}

#[tokio::test]
async fn an_owner_who_spoils_his_database_is_told_so_at_once() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let elsewhere = api.uri("demo").await.unwrap().replace("/app?", "/postgres?");
    let mut session = toygres_e2e::api::log_in(&elsewhere).await.unwrap();
    for (spoil, mend, words) in [
        ("ALTER DATABASE app ALLOW_CONNECTIONS false", "ALTER DATABASE app ALLOW_CONNECTIONS true", "not currently accepting"),
        ("ALTER DATABASE app SET local_preload_libraries = 'nonsense'", "ALTER DATABASE app RESET ALL", "nonsense"),
        ("ALTER DATABASE app RENAME TO other", "ALTER DATABASE other RENAME TO app", "does not exist"),
    ] {
        session.execute(spoil).await.unwrap();
        let refused = toygres.fails(1, &["extension", "add", "demo", "pg_trgm"]).await.unwrap();
        assert!(refused.stderr.contains(words) && refused.stderr.contains("can't use the database app"), "{spoil}: {refused}");
        let operations = toygres.json(&["operations", "demo"]).await.unwrap();
        let steps = operations[0]["steps"].as_array().unwrap();
        assert!(steps.iter().all(|step| step["attempts"] == 1), "{spoil}: it was tried again: {steps:#?}");
        // Nothing else needs his database.
        toygres.ok(&["stop", "demo"]).await.unwrap();
        toygres.ok(&["start", "demo"]).await.unwrap();
        session = toygres_e2e::api::log_in(&elsewhere).await.unwrap();
        session.execute(mend).await.unwrap();
    }
    toygres.ok(&["extension", "add", "demo", "pg_trgm"]).await.unwrap();
}

//! A superuser of an instance who tries to get out of it, or to shut toygres out.

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, Executor};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Toygres, eventually, place};

use super::intruder::program;

#[tokio::test]
async fn no_socket_lets_a_server_s_user_into_anything() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    for name in ["evil", "victim"] {
        api.create(name).await.unwrap();
    }
    let mut evil = api.log_in_as_superuser("evil").await.unwrap();
    let run = toygres.state_dir().join("run");
    let sockets = program(&mut evil, &format!("ls -A {}", run.display())).await.unwrap();
    assert!(!sockets.contains(".s.PGSQL.2"), "an instance has a socket: {sockets}");
    for user in ["postgres", "toygres", "root"] {
        let psql = format!("psql -w -h {} -p 5432 -U {user} -d postgres -Atc 'select 1'", run.display());
        let said = program(&mut evil, &psql).await.unwrap();
        let refusals = ["no password supplied", "Permission denied", "Address family not supported"];
        assert!(refusals.iter().any(|refusal| said.contains(refusal)), "{user}: {said}");
    }
    if place::is_root() {
        for file in ["control/password", "token", "ca.key", "client-ca.key", "api-ca.key", "secrets/default/victim"] {
            let said = program(&mut evil, &format!("cat {}", toygres.state_dir().join(file).display())).await.unwrap();
            assert!(said.contains("Permission denied"), "{file}: {said}");
        }
        for file in ["toygres.conf", "pg_hba.conf", "server.key", "server.crt", "instance.json"] {
            let write = format!("sh -c 'echo x >> {}'", toygres.instance_dir("evil").join(file).display());
            let said = program(&mut evil, &write).await.unwrap();
            assert!(said.contains("Permission denied"), "{file}: {said}");
        }
    }
}

#[tokio::test]
async fn nobody_but_toygres_logs_in_as_toygres() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut session = api.log_in_as_superuser("demo").await.unwrap();
    // He may give the role a password, and has a certificate of toygres's CA.
    session.execute("ALTER ROLE toygres PASSWORD 'known'").await.unwrap();
    let uri: PgConnectOptions = api.uri("demo").await.unwrap().parse().unwrap();
    let plain = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(uri.get_port()).database("postgres");
    let plain = plain.username("toygres").password("known");
    let home = toygres.instance_dir("demo");
    for (what, options) in [
        ("with a password", plain.clone().ssl_mode(PgSslMode::Require)),
        ("in plain text", plain.clone().ssl_mode(PgSslMode::Disable)),
        (
            "with the server's own certificate",
            plain.ssl_mode(PgSslMode::Require).ssl_client_cert(home.join("server.crt")).ssl_client_key(home.join("server.key")),
        ),
    ] {
        assert!(options.connect().await.is_err(), "toygres logs in {what}");
    }
    session.execute("DROP ROLE toygres").await.unwrap_err();
}

#[tokio::test]
async fn what_a_user_does_to_his_role_shuts_toygres_out_of_nothing() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut session = api.log_in_as_superuser("demo").await.unwrap();
    session.execute("ALTER ROLE app PASSWORD NULL NOLOGIN; ALTER ROLE postgres PASSWORD NULL NOLOGIN").await.unwrap();
    session.close().await.unwrap();
    toygres.ok(&["restart", "demo"]).await.unwrap_err();
    // Its server runs, and a new password lets him in again.
    toygres.only_postmaster("demo").await.unwrap();
    toygres.ok(&["rotate-password", "demo"]).await.unwrap();
    api.log_in("demo").await.unwrap();
}

#[tokio::test]
async fn where_a_server_listens_and_whom_it_lets_in_is_not_its_superuser_s_to_say() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let data = toygres.instance_dir("demo").join("data");
    let mut session = api.log_in_as_superuser("demo").await.unwrap();
    program(&mut session, &format!("sh -c 'echo host all all 0.0.0.0/0 trust > {}/own_hba.conf'", data.display())).await.unwrap();
    for setting in [
        "listen_addresses = '*'".to_owned(),
        "ssl = off".to_owned(),
        format!("hba_file = '{}/own_hba.conf'", data.display()),
        "unix_socket_directories = '/tmp'".to_owned(),
        "log_line_prefix = ''".to_owned(),
        "port = 5432".to_owned(),
    ] {
        // Some can't even be named.
        let _ = session.execute(format!("ALTER SYSTEM SET {setting}").as_str()).await;
    }
    session.close().await.unwrap();
    toygres.ok(&["restart", "demo"]).await.unwrap();
    let mut session = eventually("it to answer", SOON, async || Ok(api.log_in("demo").await.ok())).await.unwrap();
    for (setting, expected) in [("listen_addresses", "127.0.0.1"), ("ssl", "on"), ("unix_socket_directories", "")] {
        let value: String = sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(&mut session).await.unwrap();
        assert_eq!(value, expected, "{setting}");
    }
    let uri: PgConnectOptions = api.uri("demo").await.unwrap().parse().unwrap();
    let plain = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(uri.get_port()).username("app");
    assert!(plain.ssl_mode(PgSslMode::Disable).connect().await.is_err(), "it lets in without TLS or a password");
}

#[tokio::test]
async fn a_superuser_who_locks_toygres_out_is_told_the_statement_that_lets_it_in() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let superuser = api.superuser_uri("demo").await.unwrap();
    for (taken, remedy) in [
        ("ALTER ROLE toygres NOLOGIN", "ALTER ROLE toygres LOGIN SUPERUSER"),
        ("ALTER ROLE toygres RENAME TO other", "CREATE ROLE toygres LOGIN SUPERUSER"),
    ] {
        toygres_e2e::api::log_in(&superuser).await.unwrap().execute(taken).await.unwrap();
        let refused = toygres.fails(1, &["restart", "demo"]).await.unwrap();
        assert!(refused.stderr.contains("lets toygres in no more") && refused.stderr.contains(remedy), "{refused}");
        let told = toygres.json(&["why", "demo"]).await.unwrap();
        assert!(told["verdict"]["likely_cause"] == "locked_out" && told.to_string().contains(remedy), "{told:#}");
        // Users notice nothing, and the one command mends it.
        api.log_in("demo").await.unwrap();
        toygres_e2e::api::log_in(&superuser).await.unwrap().execute(remedy).await.unwrap();
        toygres.ok(&["restart", "demo"]).await.unwrap();
    }
}

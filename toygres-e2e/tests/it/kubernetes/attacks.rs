//! A superuser of an instance runs programs in its pod: what they find and reach.

use toygres_e2e::Cluster;

#[tokio::test]
async fn a_program_in_a_pod_finds_no_credential_and_reaches_nothing() {
    let Some(cluster) = Cluster::new("attack").await.unwrap() else { return };
    for name in ["evil", "victim"] {
        cluster.create(name, &[]).await.unwrap();
    }
    let run = async |script: &str| cluster.namespace.kubectl(&["exec", "evil-0", "--", "bash", "-c", script]).await.unwrap();
    // What there is to find.
    assert_eq!(run("id -u").await.trim(), "999", "not as the server");
    assert_eq!(run("ls /var/run/secrets 2>/dev/null; true").await, "", "a service account's token");
    let files = run("find /etc/toygres -type f").await;
    assert!(files.contains("tls.key") && files.contains("client-ca.crt") && !files.contains("password"), "{files}");
    for name in ["evil", "victim"] {
        let connection = cluster.json(&["connect", name, "--format", "json"]).await.unwrap();
        let password = connection["password"].as_str().unwrap();
        let everything =
            run("env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline $(find /etc/toygres /tmp -type f) 2>/dev/null; true").await;
        assert!(everything.contains("PGDATA=") && !everything.contains(password), "the password of {name}");
    }
    let written = run("for file in /etc/toygres/config/pg_hba.conf /etc/toygres/tls/tls.key /usr/bin/evil; do echo x 2>&1 >>$file && echo WRITTEN; done; true").await;
    assert!(!written.contains("WRITTEN"), "{written}");
    for user in ["postgres", "toygres"] {
        let said = run(&format!("psql -w -U {user} -c 'select 1' 2>&1; true")).await;
        assert!(said.contains("no password supplied"), "{user}: {said}");
    }
    // What there is to reach: the other instance by its pod and its Service, the API server, DNS, the node.
    let address = async |object: &str, path: &str| {
        cluster.namespace.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")]).await.unwrap()
    };
    let victim = [address("pod/victim-0", ".status.podIP").await, address("service/victim", ".spec.clusterIP").await];
    let node = address("pod/victim-0", ".status.hostIP").await;
    let targets = [
        (victim[0].as_str(), 5432),
        (victim[1].as_str(), 5432),
        ("10.96.0.1", 443),
        ("10.96.0.10", 53),
        (node.as_str(), 6443),
        (node.as_str(), 10250),
    ];
    for (host, port) in targets {
        let said = run(&format!("timeout 2 bash -c 'echo >/dev/tcp/{host}/{port}' 2>&1 && echo REACHED; true")).await;
        assert!(!said.contains("REACHED"), "{host}:{port} is reached");
    }
    // The check would see it: it reaches itself.
    let said = run("timeout 2 bash -c 'echo >/dev/tcp/127.0.0.1/5432' 2>&1 && echo REACHED; true").await;
    assert!(said.contains("REACHED"), "{said}");
    for name in ["evil", "victim"] {
        cluster.delete(name).await.unwrap();
    }
}

#[tokio::test]
async fn an_owner_in_a_pod_is_no_superuser_and_may_make_roles() {
    let Some(cluster) = Cluster::new("owner").await.unwrap() else { return };
    cluster.create("demo", &["--owner", "blog", "--database", "posts"]).await.unwrap();
    let psql =
        async |statement: &str| cluster.run(&["psql", "demo", "-v", "ON_ERROR_STOP=1", "-XAtqc", statement]).await.unwrap();
    assert_eq!(psql("SELECT current_user, current_database()").await.stdout.trim(), "blog|posts");
    // From PostgreSQL 16 on, who makes roles has no power over others.
    for allowed in ["CREATE ROLE other LOGIN", "GRANT pg_monitor TO other", "CREATE EXTENSION pg_trgm", "CHECKPOINT"] {
        let said = psql(allowed).await;
        assert_eq!(said.code, Some(0), "{allowed}: {said}");
    }
    for refused in [
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "SELECT pg_read_file('/etc/toygres/tls/tls.key')",
        "GRANT pg_execute_server_program TO other",
        "GRANT pg_write_server_files TO blog",
        "GRANT toygres TO other",
        "ALTER ROLE other SUPERUSER",
        "ALTER ROLE postgres LOGIN PASSWORD 'x'",
        "SET ROLE postgres",
    ] {
        let said = psql(refused).await;
        assert!(said.code == Some(1) && said.stderr.contains("permission denied"), "{refused}: {said}");
    }
    cluster.run(&["extension", "add", "demo", "postgres_fdw"]).await.unwrap().expect_code(0).unwrap();
    assert_eq!(psql("CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw").await.code, Some(0));
    cluster.run(&["extension", "add", "demo", "pg_stat_statements"]).await.unwrap().expect_code(0).unwrap();
    assert_eq!(psql("SELECT count(*) > 0 FROM pg_stat_statements").await.stdout.trim(), "t");
    // An admin's superuser, and what it does not change.
    let id = cluster.run(&["psql", "--superuser", "demo", "-XAtqc", "SELECT current_user"]).await.unwrap();
    assert_eq!(id.stdout.trim(), "postgres", "{id}");
    assert_eq!(psql("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").await.stdout.trim(), "f");
    cluster.delete("demo").await.unwrap();
}

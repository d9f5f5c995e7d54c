//! Streams of events from outside: over kills and restarts, from another server, with readers that don't
//! read, and many of them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use toygres_e2e::api::EVENTS;
use toygres_e2e::by_hand::{Programs, Server};
use toygres_e2e::event_stream::{ids_after, settled_ids_after, write_events};
use toygres_e2e::place::temporary_folder;
use toygres_e2e::wait::SOON;
use toygres_e2e::{EventStream, Toygres, eventually, process, required_or_skip};

#[tokio::test]
async fn a_stream_goes_on_after_its_server_was_killed_among_creates() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let mut stream = EventStream::open(&api, "", None).await.unwrap();
    let begun = stream.last_id;
    let mut operations = Vec::new();
    for number in 0..6 {
        operations.push(api.begin_create(&format!("demo-{number}")).await.unwrap());
    }
    // Killed when some of it was told, and work is going on.
    let mut told = stream.ids(4).await.unwrap();
    toygres.kill_server().await.unwrap();
    while let Some(event) = stream.next_event().await.unwrap() {
        told.push(event["id"].as_i64().unwrap());
    }
    let last = stream.last_id;
    // What is written while nobody tells it.
    write_events(&control, 5, 10).await.unwrap();
    let api = toygres.serve().await.unwrap();
    let mut stream = EventStream::open(&api, "", Some(last)).await.unwrap();
    assert_eq!(stream.last_id, last);
    let deletes = operations.iter().enumerate().map(|(number, operation)| {
        let api = api.clone();
        async move {
            api.wait_success(operation).await.unwrap();
            api.delete(&format!("demo-{number}")).await.unwrap();
        }
    });
    let (_, ids) = tokio::join!(join_all(deletes), async {
        // Six creates and deletes, asked for and ended, and what was written by hand.
        stream.ids(6 * 4 + 5 - told.len()).await.unwrap()
    });
    told.extend(ids);
    let there = settled_ids_after(&control, begun).await.unwrap();
    println!(
        "{} events told over a kill, of which {} before it; {there:?}",
        told.len(),
        told.iter().filter(|id| **id <= last).count()
    );
    assert_eq!(told, there[..told.len()]);
}

/// Two servers on one database.
async fn two_servers() -> Option<(Server, Toygres, Toygres)> {
    let Some(programs) = Programs::installed() else {
        required_or_skip("no PostgreSQL is installed on this machine").unwrap();
        return None;
    };
    let database = Server::create(&programs, temporary_folder().unwrap()).await.unwrap();
    let server = || Toygres::new().unwrap().with("TOYGRES_DATABASE_URL", database.url());
    let (one, two) = (server(), server());
    Some((database, one, two))
}

#[tokio::test]
async fn another_server_goes_on_where_a_killed_one_was_cut_off_under_load() {
    let Some((database, one, two)) = two_servers().await else { return };
    let (first, second) = (one.serve().await.unwrap(), two.serve().await.unwrap());
    let pool = sqlx::PgPool::connect_with(database.options()).await.unwrap();
    let mut stream = EventStream::open(&first, "", None).await.unwrap();
    let begun = stream.last_id;
    let writers = join_all((0..8).map(|_| async {
        for _ in 0..250 {
            write_events(&pool, 1, 100).await.unwrap();
        }
    }));
    let reader = async {
        let mut told = stream.ids(300).await.unwrap();
        one.kill_server().await.unwrap();
        while let Some(event) = stream.next_event().await.unwrap() {
            told.push(event["id"].as_i64().unwrap());
        }
        let before = told.len();
        let mut stream = EventStream::open(&second, "", Some(stream.last_id)).await.unwrap();
        told.extend(stream.ids(2000 - before).await.unwrap());
        (told, before)
    };
    let (_, (told, before)) = tokio::join!(writers, reader);
    println!("2000 events by 8 writers: {before} from the first server, the others from the second");
    assert_eq!(told, ids_after(&pool, begun).await.unwrap());
    // A stream with a filter gets what is meant for it, and no more.
    let mut other =
        EventStream::open(&second, "?kind=nothing_like_it,written_by_hand&namespace=default&last=2", None).await.unwrap();
    assert_eq!(other.ids(2).await.unwrap(), told[1998..]);
    let mut none = EventStream::open(&second, "?namespace=team&after=0", None).await.unwrap();
    write_events(&pool, 1, 1).await.unwrap();
    assert_eq!(other.ids(1).await.unwrap().len(), 1);
    // Nothing but where it is, while nothing is for it.
    assert_eq!(none.next().await.unwrap(), Some(None), "the place is told in silence");
    assert_eq!(none.last_id, *ids_after(&pool, begun).await.unwrap().last().unwrap());
    two.ok(&["server", "stop"]).await.unwrap();
    assert_eq!(none.next().await.unwrap(), None, "a stream ends with its server");
}

#[tokio::test]
async fn a_server_whose_own_listening_was_cut_tells_everything() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let mut stream = EventStream::open(&api, "", None).await.unwrap();
    let begun = stream.last_id;
    for _ in 0..3 {
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
        let (cut,): (i64,) = sqlx::query_as(cut).fetch_one(&control).await.unwrap();
        assert!(cut >= 1, "nobody listens");
        write_events(&control, 3, 10).await.unwrap();
        stream.ids(3).await.unwrap();
    }
    assert_eq!(stream.last_id, *ids_after(&control, begun).await.unwrap().last().unwrap());
}

#[tokio::test]
async fn what_is_kept_no_more_is_410_and_a_bad_place_is_422() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    write_events(&control, 10, 10).await.unwrap();
    let ids = ids_after(&control, 0).await.unwrap();
    sqlx::query("DELETE FROM toygres.events WHERE id <= $1").bind(ids[6]).execute(&control).await.unwrap();
    sqlx::query("UPDATE toygres.event_horizon SET pruned_through = $1").bind(ids[6]).execute(&control).await.unwrap();
    let gone = api.ask_for_stream("/v1/events", EVENTS, Some(&ids[3].to_string())).await.unwrap();
    assert_eq!(gone.status().as_u16(), 410);
    let problem: Value = serde_json::from_str(&gone.text().await.unwrap()).unwrap();
    println!("{problem:#}");
    assert_eq!(problem["type"], "urn:toygres:problem:events_pruned");
    assert!(problem["detail"].as_str().unwrap().contains(&ids[7].to_string()), "{problem}");
    let mut all = EventStream::open(&api, "?after=0", None).await.unwrap();
    assert_eq!(all.ids(3).await.unwrap(), ids[7..]);
    let mut rest = EventStream::open(&api, "", Some(ids[7])).await.unwrap();
    assert_eq!(rest.ids(2).await.unwrap(), ids[8..]);
    // What the header says is nearer to the client than the query.
    let mut both = EventStream::open(&api, "?after=0", Some(ids[8])).await.unwrap();
    assert_eq!(both.ids(1).await.unwrap(), ids[9..]);
    for query in
        ["?after=-1", "?last=1001", "?limit=3", "?cursor=1", "?after=1&last=1", "?after=99999999", "?since=yesterday", "?x=y"]
    {
        let refused = api.ask_for_stream(&format!("/v1/events{query}"), EVENTS, None).await.unwrap();
        assert_eq!(refused.status().as_u16(), 422, "{query}");
    }
    let page = api.get(&format!("/v1/events?limit=2&after={}", ids[6])).await.unwrap().expect(200).unwrap();
    assert_eq!((page["items"].as_array().unwrap().len(), page["next_cursor"].as_str()), (2, Some(ids[8].to_string().as_str())));
    let last = api.items("/v1/events?last=1").await.unwrap();
    assert_eq!(last[0]["id"], ids[9]);
}

#[tokio::test]
async fn a_stream_tells_what_its_token_may_see_and_ends_with_it() {
    let toygres = Toygres::new().unwrap();
    let root = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let body = r#"{"name": "eve", "role": "viewer", "namespaces": ["default"]}"#;
    let made = root.send(Method::POST, "/v1/tokens", Some(body.into())).await.unwrap().expect(201).unwrap();
    let eve = root.with_token(made["secret"].as_str());
    let mut all = EventStream::open(&root, "?after=0", None).await.unwrap();
    let mut own = EventStream::open(&eve, "?after=0", None).await.unwrap();
    assert_eq!(all.next_event().await.unwrap().unwrap()["kind"], "token_created");
    sqlx::query("INSERT INTO toygres.events (namespace, kind, message, cause) VALUES ('team', 'secret_plan', '', '')")
        .execute(&control)
        .await
        .unwrap();
    write_events(&control, 1, 1).await.unwrap();
    assert_eq!(all.ids(2).await.unwrap().len(), 2);
    assert_eq!(own.next_event().await.unwrap().unwrap()["kind"], "written_by_hand");
    assert_eq!(eve.items("/v1/events").await.unwrap().len(), 1);
    eve.get("/v1/events?namespace=team").await.unwrap().expect_problem(403).unwrap();
    root.send(Method::DELETE, "/v1/tokens/eve", None).await.unwrap().expect(200).unwrap();
    assert_eq!(own.next_event().await.unwrap(), None, "a revoked token's stream goes on");
    eve.get("/v1/events").await.unwrap().expect_problem(401).unwrap();
    assert_eq!(all.next_event().await.unwrap().unwrap()["kind"], "token_revoked");
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_nothing_and_misses_nothing() {
    const EVENTS: i32 = 10_000;
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let url = api.url().strip_prefix("http://").unwrap().to_owned();
    let token = std::fs::read_to_string(toygres.state_dir().join("token")).unwrap();
    // One that goes on reading tells when all was told.
    let mut quick = EventStream::open(&api, "", None).await.unwrap();
    let begun = quick.last_id;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut socket = TcpStream::connect(&url).await.unwrap();
        let request = format!(
            "GET /v1/events HTTP/1.0\r\nHost: {url}\r\nAccept: text/event-stream\r\nAuthorization: Bearer {}\r\n\r\n",
            token.trim()
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        socket.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.0 200");
        slow.push(socket);
    }
    let server = toygres.server_pid().unwrap();
    let before = process::memory_bytes(server).unwrap();
    for _ in 0..EVENTS / 500 {
        write_events(&control, 500, 2000).await.unwrap();
    }
    let told = quick.ids(EVENTS as usize).await.unwrap();
    let after = process::memory_bytes(server).unwrap();
    let grown = after.saturating_sub(before) / (1 << 20);
    println!("20 readers that don't read, {EVENTS} events of 2 kB: the server's memory grew by {grown} MB");
    assert!(grown < 60, "{grown} MB");
    assert_eq!(told, ids_after(&control, begun).await.unwrap());
    // One of them begins to read.
    let mut lines = BufReader::new(slow.pop().unwrap()).lines();
    let mut read = Vec::new();
    while read.len() < told.len() {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap().unwrap();
        if let Some(id) = line.strip_prefix("id: ") {
            read.push(id.parse::<i64>().unwrap());
        }
    }
    assert_eq!(read[0], begun, "where it began");
    while read.len() <= told.len() {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap().unwrap();
        read.extend(line.strip_prefix("id: ").map(|id| id.parse::<i64>().unwrap()));
    }
    assert_eq!(read[1..], told);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_are_told_at_once() {
    const STREAMS: usize = 1000;
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    let server = toygres.server_pid().unwrap();
    let before = process::memory_bytes(server).unwrap();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(EventStream::open(&api, "", None).await.unwrap());
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let began = Instant::now();
        let received = streams.iter_mut().map(|stream| async move {
            stream.ids(1).await.unwrap();
            Instant::now()
        });
        let (received, ()) = tokio::join!(join_all(received), async { write_events(&control, 1, 200).await.unwrap() });
        slowest = slowest.max(received.into_iter().max().unwrap() - began);
    }
    let grown = process::memory_bytes(server).unwrap().saturating_sub(before) / (1 << 20);
    println!("{STREAMS} streams: the server's memory grew by {grown} MB; the slowest was told after {slowest:?}");
    assert!(grown < 100, "{grown} MB");
}

#[tokio::test]
async fn following_on_the_command_line_goes_on_over_kills_and_restarts() {
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    write_events(&control, 3, 10).await.unwrap();
    let begun = ids_after(&control, 0).await.unwrap();
    let mut command = toygres.command(&["events", "--follow", "-o", "json", "--limit", "2"]);
    let mut follower = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut told = Vec::new();
    for round in 0..3 {
        let there = ids_after(&control, begun[0]).await.unwrap();
        while told.len() < there.len() {
            let line = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap().unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            told.push(event["id"].as_i64().unwrap());
        }
        assert_eq!(told, there);
        match round {
            0 => toygres.kill_server().await.unwrap(),
            1 => drop(toygres.ok(&["server", "stop"]).await.unwrap()),
            _ => break,
        }
        if round == 0 {
            write_events(&control, 4, 10).await.unwrap();
        }
        toygres.ok(&["server", "start"]).await.unwrap();
        let control = toygres.control().await.unwrap();
        write_events(&control, 2, 10).await.unwrap();
    }
    let pid = follower.id().unwrap();
    process::send(pid, sysinfo::Signal::Interrupt).unwrap();
    let ended = tokio::time::timeout(SOON, follower.wait_with_output()).await.unwrap().unwrap();
    // Nothing is told but a restart that takes long, as on a machine with much to do.
    let told = String::from_utf8_lossy(&ended.stderr).replacen("the server is away; going on when it is back\n", "", 2);
    assert_eq!((ended.status.code(), told.as_str()), (Some(0), ""), "{ended:?}");

    // Nobody reads on.
    let mut command = toygres.command(&["events", "--follow", "--since", "1h"]);
    let mut piped = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(piped.stdout.take().unwrap()).lines();
    let first = lines.next_line().await.unwrap().unwrap();
    assert!(first.contains("written_by_hand") && first.contains("default/written"), "{first}");
    drop(lines);
    let control = toygres.control().await.unwrap();
    let end = eventually("the end of a follower that nobody reads", SOON, async || {
        write_events(&control, 1, 10).await?;
        Ok(piped.try_wait()?)
    });
    assert!(end.await.unwrap().success());
}

#[tokio::test]
async fn what_is_older_than_the_retention_goes_with_its_workflows() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_EVENT_RETENTION", "2s");
    let api = toygres.serve().await.unwrap();
    api.create("kept").await.unwrap();
    api.create("demo").await.unwrap();
    api.delete("demo").await.unwrap();
    let control = toygres.control().await.unwrap();
    let left = async || {
        let counts: (i64, i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM toygres.events), (SELECT count(*) FROM toygres.operations),
                (SELECT count(*) FROM toygres.instances),
                (SELECT count(*) FROM duroxide.instances WHERE instance_id NOT LIKE 'health-%')",
        )
        .fetch_one(&control)
        .await?;
        Ok((counts == (0, 1, 1, 1)).then_some(()))
    };
    eventually("nothing but the instance that lives", SOON, left).await.unwrap();
    assert_eq!(api.instance("kept").await.unwrap()["state"], "running");
    // The same create again is still known.
    toygres.ok(&["create", "kept"]).await.unwrap();
    let refused = toygres.fails(2, &["--event-retention", "never", "list"]).await.unwrap();
    assert!(refused.stderr.contains("--event-retention") && refused.stderr.contains("30d"), "{refused}");
}

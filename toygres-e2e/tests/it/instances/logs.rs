//! Logs as streams: followed while the instance and toygres are killed, resumed to the very line, and never
//! held in memory.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use reqwest::Method;
use serde_json::Value;
use sqlx::Connection;
use sse_stream::Sse;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Follower, Toygres, eventually, process, wait_until};

fn follow(toygres: &Toygres, arguments: &[&str]) -> Command {
    toygres.command(&[&["logs", "demo", "--follow"], arguments].concat())
}

/// Has the server log a line.
async fn log(api: &Api, marker: &str) -> Result<()> {
    let mut connection = api.log_in("demo").await?;
    sqlx::raw_sql(&format!("DO $$ BEGIN RAISE LOG 'marker {marker}'; END $$")).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// Has the server log lines all the time, as far as it runs.
async fn chatter(uri: String, goes_on: Arc<AtomicBool>, count: Arc<AtomicU32>) {
    while goes_on.load(Ordering::Relaxed) {
        let Ok(mut connection) = toygres_e2e::api::log_in(&uri).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while goes_on.load(Ordering::Relaxed) {
            let number = count.fetch_add(1, Ordering::Relaxed);
            let marker = format!("DO $$ BEGIN RAISE LOG 'chatter {number}'; END $$");
            if sqlx::query(&marker).persistent(false).execute(&mut connection).await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn following_loses_and_doubles_no_line_whoever_is_killed() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    let api = toygres.api().unwrap();
    log(&api, "begin").await.unwrap();
    let follower = Follower::start(follow(&toygres, &["--tail", "1000"])).unwrap();
    follower.wait_for("marker begin", SOON).await.unwrap();

    let (goes_on, count) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let chatter = tokio::spawn(chatter(api.uri("demo").await.unwrap(), goes_on.clone(), count.clone()));
    let say_more = async || {
        let enough = count.load(Ordering::Relaxed) + 200;
        wait_until("more to be logged", SOON, || count.load(Ordering::Relaxed) >= enough).await.unwrap();
    };
    for round in 0..3 {
        say_more().await;
        process::kill(toygres.only_postmaster("demo").await.unwrap()).await.unwrap();
        say_more().await;
        // `logs --follow` starts the next server. The instance goes on logging meanwhile.
        toygres.kill_server().await.unwrap();
        say_more().await;
        if round == 1 {
            toygres.ok(&["server", "stop"]).await.unwrap();
            say_more().await;
        }
    }
    goes_on.store(false, Ordering::Relaxed);
    chatter.await.unwrap();
    toygres.ok(&["server", "start"]).await.unwrap();
    log(&toygres.api().unwrap(), "end").await.unwrap();
    follower.wait_for("marker end", SOON).await.unwrap();
    let truth = toygres.log("demo").unwrap();
    let seen = follower.lines();
    let truth: Vec<&str> = truth.lines().take(seen.len()).collect();
    if let Some(at) = truth.iter().zip(&seen).position(|(truth, seen)| truth != seen) {
        panic!("line {at}: {:?} was logged, {:?} printed", &truth[at], &seen[at]);
    }
    assert!(truth.last().unwrap().contains("marker end"));
    println!("{} lines, {} of them counted, each once", truth.len(), count.load(Ordering::Relaxed));

    // It ends with the instance.
    toygres.ok(&["delete", "demo", "--yes"]).await.unwrap();
    follower.wait_for("database system is shut down", SOON).await.unwrap();
    let (code, words) = follower.end().await.unwrap();
    assert_eq!(code, Some(0), "{words}");
}

#[tokio::test]
async fn following_ends_quietly_with_ctrl_c_and_when_nobody_reads_on() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    let api = toygres.api().unwrap();
    let follower = Follower::start(follow(&toygres, &["--tail", "1"])).unwrap();
    log(&api, "one").await.unwrap();
    follower.wait_for("marker one", SOON).await.unwrap();
    follower.interrupt().unwrap();
    assert_eq!(follower.end().await.unwrap(), (Some(0), String::new()));

    let mut command = follow(&toygres, &["--tail", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It may not have begun yet.
    let first = eventually("a line", SOON, async || {
        log(&api, "two").await?;
        Ok(tokio::time::timeout(Duration::from_millis(500), lines.next_line()).await.ok())
    });
    assert!(first.await.unwrap().unwrap().unwrap().contains("marker two"), "of what was there, nothing was wanted");
    drop(lines);
    log(&api, "three").await.unwrap();
    let output = tokio::time::timeout(SOON, child.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[tokio::test]
async fn the_part_that_is_wanted_may_be_said_by_lines_and_by_time() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    let api = toygres.api().unwrap();
    for marker in ["one", "two"] {
        log(&api, marker).await.unwrap();
    }
    // Another process of the server's writes them.
    let is_written = || toygres.log("demo").is_ok_and(|log| log.contains("STATEMENT:  DO $$ BEGIN RAISE LOG 'marker two'"));
    wait_until("the markers to be in the log", SOON, is_written).await.unwrap();
    let two = toygres.ok(&["logs", "demo", "--tail", "2"]).await.unwrap().stdout;
    assert!(two.lines().count() == 2 && two.contains("marker two"), "{two}");
    let all = toygres.ok(&["logs", "demo", "--since", "1h"]).await.unwrap().stdout;
    assert!(all.contains("starting PostgreSQL") && all.contains("marker one"), "{all}");
    let file = toygres.log("demo").unwrap();
    assert_eq!(all, file);
    // The time of a line, as it stands there.
    let line = all.lines().find(|line| line.contains("marker two")).unwrap();
    let since = format!("{}Z", line[..23].replacen(' ', "T", 1));
    let some = toygres.ok(&["logs", "demo", "--since", &since]).await.unwrap().stdout;
    assert!(!some.contains("starting PostgreSQL") && some.contains("marker two"), "{since}: {some}");
    let none = toygres.ok(&["logs", "demo", "--since", "2999-01-01T00:00:00Z"]).await.unwrap();
    assert!(none.stdout.is_empty() && none.stderr.contains("empty"), "{none}");
    let wrong = toygres.fails(2, &["logs", "demo", "--since", "yesterday"]).await.unwrap();
    assert!(wrong.stderr.contains("10m"), "{wrong}");
}

/// The next event that holds something; `None` at the stream's end.
async fn next(events: &mut (impl futures::Stream<Item = Result<Sse, sse_stream::Error>> + Unpin)) -> Result<Option<Sse>> {
    loop {
        match tokio::time::timeout(SOON, events.next()).await.context("no event comes")? {
            None => return Ok(None),
            Some(event) => match event? {
                Sse { data: None, .. } => {}
                event => return Ok(Some(event)),
            },
        }
    }
}

#[tokio::test]
async fn each_event_says_where_to_go_on_and_the_last_one_that_it_is_the_last() {
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    let api = toygres.api().unwrap();
    let path = "/v1/instances/demo/logs?tail_lines=1000";
    let mut stream = api.stream(path, None).await.unwrap();
    let mut lines = Vec::new();
    while let Some(event) = next(&mut stream).await.unwrap() {
        if event.event.is_some() {
            assert_eq!(event.event.as_deref(), Some("end"));
            assert!(next(&mut stream).await.unwrap().is_none());
            lines.push((String::new(), String::new()));
            break;
        }
        let line: Value = serde_json::from_str(&event.data.unwrap()).unwrap();
        lines.push((event.id.unwrap(), line["text"].as_str().unwrap().to_owned()));
    }
    assert_eq!(lines.pop(), Some(Default::default()), "it ended without a word");
    let file = toygres.log("demo").unwrap();
    assert!(file.lines().eq(lines.iter().map(|(_, text)| text.as_str())), "{lines:#?}");
    for (number, (id, _)) in lines.iter().enumerate() {
        let mut rest = api.stream(path, Some(id)).await.unwrap();
        let first = next(&mut rest).await.unwrap().unwrap();
        match lines.get(number + 1) {
            Some((id, _)) => assert_eq!(first.id.as_ref(), Some(id)),
            None => assert_eq!(first.event.as_deref(), Some("end")),
        }
    }
    let refused = api.send_with(&[("last-event-id", "nonsense")], Method::GET, path, None).await.unwrap();
    refused.expect_problem(422).unwrap();

    // One that follows is cut off without that word when the server stops, and keeps it from nothing.
    let mut stream = api.stream(&format!("{path}&follow=true"), None).await.unwrap();
    for _ in &lines {
        next(&mut stream).await.unwrap().unwrap();
    }
    let began = Instant::now();
    toygres.ok(&["server", "stop"]).await.unwrap();
    assert!(next(&mut stream).await.unwrap().is_none());
    // What is at work when it stops gets 25 s.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// Appends to a server's log as the server does.
fn append(path: &Path, megabytes: usize) -> Result<u64> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
    let line = format!("2026-01-01 00:00:00.000 UTC [1] 00000 postmaster: LOG:  {}\n", "x".repeat(143));
    let block = line.repeat(5000);
    for _ in 0..megabytes {
        file.write_all(block.as_bytes())?;
    }
    Ok((megabytes * block.len()) as u64)
}

/// Reads a stream until that many bytes have come; the most memory that the server had meanwhile.
async fn drain(mut response: reqwest::Response, server: u32, bytes: u64) -> Result<u64> {
    let (mut seen, mut most, mut next_look) = (0, 0, 0);
    while seen < bytes {
        let Some(chunk) = response.chunk().await? else { bail!("it ended after {seen} bytes") };
        seen += chunk.len() as u64;
        if seen >= next_look {
            most = most.max(process::memory_bytes(server)?);
            next_look = seen + (8 << 20);
        }
    }
    Ok(most)
}

#[tokio::test]
async fn a_log_of_200_mb_takes_no_memory() {
    const MOST_MORE: u64 = 16 << 20;
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo"]).await.unwrap();
    let (api, server) = (toygres.api().unwrap(), toygres.server_pid().unwrap());
    let path = toygres.log_files("demo").unwrap().pop().unwrap();
    // What the first stream costs once isn't the log's.
    toygres.ok(&["logs", "demo"]).await.unwrap();
    let before = process::memory_bytes(server).unwrap();
    let mut figures = Vec::new();

    // Followed while it grows; no other file is begun in the first minute.
    let logs = "/v1/instances/demo/logs";
    for kind in ["text/plain", "text/event-stream"] {
        let followed = api.open(&format!("{logs}?follow=true&tail_lines=1"), kind, None).await.unwrap();
        let writer = std::thread::spawn({
            let path = path.clone();
            move || append(&path, 100)
        });
        let began = Instant::now();
        let most = drain(followed, server, 99_000_000).await.unwrap();
        writer.join().unwrap().unwrap();
        figures.push((format!("followed as {kind}"), most, began.elapsed()));
    }
    for query in ["since=2000-01-01T00:00:00Z", "tail_lines=900000"] {
        let began = Instant::now();
        let whole = api.open(&format!("{logs}?{query}"), "text/plain", None).await.unwrap();
        let most = drain(whole, server, 179_000_000).await.unwrap();
        figures.push((query.to_owned(), most, began.elapsed()));
    }
    // Slow readers hold nothing up in memory.
    let mut slow = Vec::new();
    for _ in 0..5 {
        let mut stream = api.open(&format!("{logs}?since=2000-01-01T00:00:00Z&follow=true"), "text/plain", None).await.unwrap();
        stream.chunk().await.unwrap();
        slow.push(stream);
    }
    figures.push(("with five that don't read on".into(), process::memory_bytes(server).unwrap(), Duration::ZERO));
    for (what, most, took) in figures {
        println!("{what}: {} MB, before {} MB, {took:.1?}", most >> 20, before >> 20);
        assert!(most < before + MOST_MORE, "{what}: {most} bytes, before {before}");
    }
}

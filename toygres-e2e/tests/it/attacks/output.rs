//! What somebody puts into a server's log for those who read it.

use reqwest::Method;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Executor};
use toygres_e2e::terminal::Terminal;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Toygres, eventually, required_or_skip};

#[tokio::test]
async fn what_a_stranger_writes_to_a_log_is_no_command_to_a_terminal() {
    if !Terminal::is_there() {
        return required_or_skip("`script` of util-linux isn't there to make a terminal").unwrap();
    }
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let uri: PgConnectOptions = api.uri("demo").await.unwrap().parse().unwrap();
    let attack = "\x1b]0;OWNED\x07\x1b[2J\u{9b}2J\u{202e}";
    // A name that the server repeats when it refuses it.
    uri.database(attack).connect().await.unwrap_err();
    eventually("the log-in that failed to be in the log", SOON, async || {
        Ok(toygres.log("demo")?.contains("OWNED").then_some(()))
    })
    .await
    .unwrap();
    for command in ["logs", "why", "events"] {
        let (code, screen) = Terminal::open(&toygres, &[command, "demo"], &[]).unwrap().end().await.unwrap();
        assert_eq!(code, Some(0), "{screen}");
        for bad in ["\x1b]", "\x07", "\x1b[2J", "\u{9b}", "\u{202e}"] {
            assert!(!screen.contains(bad), "toygres {command} shows {bad:?}: {screen:?}");
        }
    }
    let (_, screen) = Terminal::open(&toygres, &["logs", "demo"], &[]).unwrap().end().await.unwrap();
    assert!(screen.contains(r"\u{1b}]0;OWNED\u{7}"), "{screen:?}");
    // A program that reads it gets what there is.
    assert!(toygres.ok(&["logs", "demo"]).await.unwrap().stdout.contains(attack));
}

#[tokio::test]
async fn a_viewer_is_shown_no_statement() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut session = api.log_in("demo").await.unwrap();
    session.execute("CREATE ROLE ann PASSWORD 'find-me' NONSENSE").await.unwrap_err();
    session.execute("DO $$ BEGIN RAISE WARNING 'find-me'; END $$").await.unwrap();
    let token = json!({ "name": "viewer", "role": "viewer" }).to_string();
    let token = api.send(Method::POST, "/v1/tokens", Some(token)).await.unwrap().json().unwrap();
    let viewer = api.with_token(Some(token["secret"].as_str().unwrap()));
    let path = "/v1/instances/demo/logs?tail_lines=1000";
    eventually("the statement to be in the log", SOON, async || Ok(api.get(path).await?.text.contains("find-me").then_some(())))
        .await
        .unwrap();
    let shown = viewer.get(path).await.unwrap();
    assert!(shown.text.contains("ready to accept connections"), "{}", shown.text);
    assert!(!shown.text.contains("find-me") && !shown.text.contains("STATEMENT"), "{}", shown.text);
    let mut events = viewer.stream(path, None).await.unwrap();
    while let Some(event) = futures::StreamExt::next(&mut events).await {
        let event = event.unwrap();
        assert!(!event.data.unwrap_or_default().contains("find-me"));
    }
}

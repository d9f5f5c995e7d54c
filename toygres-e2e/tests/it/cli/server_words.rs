//! What the server says of itself: its log and its settings.

use serde_json::Value;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Toygres, eventually};

#[tokio::test]
async fn the_server_s_log_is_shown_by_operation_and_in_json() {
    let toygres = Toygres::new().unwrap();
    let none = toygres.fails(1, &["server", "logs"]).await.unwrap();
    assert!(none.stderr.contains("no server has run"), "{none}");
    let toygres = toygres.with("TOYGRES_LOG_FORMAT", "json").with("TOYGRES_LOG", "debug");
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let operation = toygres.json(&["operations", "demo"]).await.unwrap()[0]["id"].as_str().unwrap().to_owned();
    let lines = eventually("the operation to be in the log", SOON, async || {
        let logs = toygres.ok(&["server", "logs", "--operation", &operation, "--tail", "50"]).await?;
        Ok(Some(logs.stdout).filter(|text| !text.is_empty()))
    })
    .await
    .unwrap();
    for line in lines.lines() {
        let object: Value = serde_json::from_str(line).unwrap();
        assert!(line.contains(&operation) && object["level"].is_string() && object["timestamp"].is_string(), "{line}");
    }
    let last = toygres.ok(&["server", "logs", "--tail", "1"]).await.unwrap();
    assert_eq!(last.stdout.lines().count(), 1, "{last}");
    toygres.fails(2, &["server", "logs", "--operation", "demo"]).await.unwrap();
    let refused = toygres.with("TOYGRES_LOG_FORMAT", "xml").fails(2, &["server", "config"]).await.unwrap();
    assert!(refused.stderr.contains("TOYGRES_LOG_FORMAT") && refused.stderr.contains("text, json"), "{refused}");
}

#[tokio::test]
async fn each_setting_is_shown_with_where_it_is_from_and_no_secret() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_TOKEN", "hunter2hunter2hunter2hunter2hunter2hunter2");
    let shown = toygres.run(&["server", "config", "--pool-size", "3"]).await.unwrap().expect_code(0).unwrap();
    let line = |key: &str| shown.stdout.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap().to_owned();
    assert!(line("pool_size").contains('3') && line("pool_size").contains("--pool-size"), "{shown}");
    assert!(line("listen").contains("the environment variable TOYGRES_LISTEN"), "{shown}");
    assert!(line("health_interval_seconds").contains("10") && line("health_interval_seconds").contains("default"), "{shown}");
    assert!(line("token").contains("(hidden)") && !shown.stdout.contains("hunter2"), "{shown}");
    let settings = toygres.json(&["server", "config"]).await.unwrap();
    assert!(settings.as_array().unwrap().iter().any(|setting| setting["key"] == "state_dir"), "{settings:#}");
}

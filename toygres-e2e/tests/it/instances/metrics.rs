//! Metrics: what Prometheus reads of the server and of instances, with the rules and the dashboard that are for it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sqlx::Executor;
use toygres_e2e::wait::{SOON, take_address};
use toygres_e2e::{Api, Toygres, eventually, process, required_or_skip};

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart/files");

fn has(program: &str) -> bool {
    std::process::Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// What promtool says of a page; it must at least be able to read it.
async fn expect_readable(page: &str) -> Result<()> {
    use tokio::io::AsyncWriteExt;
    let mut child = tokio::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no stdin")?.write_all(page.as_bytes()).await?;
    let output = child.wait_with_output().await?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    // Names are postgres_exporter's, some of which promtool finds unusual.
    let unusual = |line: &str| {
        line.contains("_total\" suffix")
            || line.contains("_count\" suffix")
            || line.starts_with("duroxide_") && line.contains("help")
    };
    let grave: Vec<_> = words.lines().filter(|line| !unusual(line) && !line.is_empty()).collect();
    ensure!(grave.is_empty(), "{grave:#?}");
    Ok(())
}

async fn page(api: &Api, path: &str) -> Result<String> {
    let answer = api.get(path).await?;
    ensure!(answer.status == 200, "{path}: {}", answer.text);
    Ok(answer.text)
}

fn value(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn an_instances_page_has_what_its_server_says_whatever_it_is_called() {
    let toygres = Toygres::new().unwrap().with("TOYGRES_HEALTH_INTERVAL_SECONDS", "1");
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let mut owner = api.log_in("demo").await.unwrap();
    owner.execute("CREATE DATABASE \"od\"\"d\\ name\nü\"").await.unwrap();
    owner.execute("CREATE TABLE t AS SELECT generate_series(1, 1000)").await.unwrap();
    eventually("the rows to be counted", SOON, async || {
        let page = page(&api, "/v1/instances/demo/metrics").await?;
        let inserted = value(&page, "pg_stat_database_tup_inserted{datname=\"app\"}").context("no rows")?;
        ensure!(inserted >= 1000.0 && page.contains(r#"datname="od\"d\\ name\nü""#), "{page}");
        ensure!(value(&page, "pg_up") == Some(1.0), "{page}");
        ensure!(value(&page, "toygres_instance_health{status=\"healthy\"}") == Some(1.0), "{page}");
        ensure!(value(&page, "toygres_volume_size_bytes").is_some_and(|size| size > 0.0), "{page}");
        ensure!(value(&page, "pg_stat_activity_count{state=\"idle\"}") == Some(1.0), "toygres's own is counted: {page}");
        Ok(Some(()))
    })
    .await
    .unwrap();
    // One that doesn't answer has a page, too.
    process::kill(toygres.postmasters("demo")[0]).await.unwrap();
    let all = page(&api, "/v1/metrics?shard=0/1").await.unwrap();
    assert!(all.contains("namespace=\"default\",instance=\"demo\""), "{all}");
    assert_eq!(page(&api, "/v1/metrics?shard=1/2").await.unwrap(), "");
    assert!(page(&api, "/v1/metrics?swept=true").await.unwrap().contains("pg_up{"));
    assert_eq!(page(&api, "/v1/metrics?swept=false").await.unwrap(), "");
    api.get("/v1/metrics?shard=2/2").await.unwrap().expect_problem(422).unwrap();

    let server = page(&api, "/metrics").await.unwrap();
    for name in ["toygres_instances{", "toygres_sweep_lag_seconds{", "toygres_http_requests_total{", "toygres_operations{"] {
        assert!(server.contains(name), "no {name}: {server}");
    }
    assert!(!server.contains("demo"), "an instance is named: {server}");
    if has("promtool") {
        for page in [&all, &server] {
            expect_readable(page).await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_servers_metrics_are_for_tokens_of_every_namespace() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let limited = toygres.ok(&["token", "create", "limited", "--role", "viewer", "--namespaces", "other"]).await.unwrap();
    let limited = api.with_token(Some(limited.stdout.trim_end()));
    limited.get("/metrics").await.unwrap().expect_problem(403).unwrap();
    limited.get("/v1/instances/demo/metrics").await.unwrap().expect_problem(403).unwrap();
    assert_eq!(page(&limited, "/v1/metrics").await.unwrap(), "");
    assert_eq!(limited.get("/v1/prometheus/targets").await.unwrap().expect(200).unwrap(), json!([]));
    let nobody = api.with_token(Some("nobody"));
    nobody.get("/metrics").await.unwrap().expect_problem(401).unwrap();
}

/// A Prometheus that reads a toygres server; ends with this value.
struct Prometheus {
    child: tokio::process::Child,
    url: String,
}

impl Prometheus {
    async fn start(folder: &Path, toygres: &str, token: &str) -> Result<Self> {
        let address = toygres.trim_start_matches("http://");
        let token_file = folder.join("token");
        std::fs::write(&token_file, token)?;
        let auth = json!({ "type": "Bearer", "credentials_file": token_file });
        let job = |name: &str, more: Value| {
            let mut job = json!({ "job_name": name, "scrape_interval": "1s", "authorization": auth });
            if let (Some(job), Some(more)) = (job.as_object_mut(), more.as_object()) {
                job.extend(more.clone());
            }
            job
        };
        let config = json!({
            "global": { "evaluation_interval": "1s" },
            "rule_files": [format!("{FILES}/rules.yaml")],
            "scrape_configs": [
                job("toygres", json!({ "static_configs": [{ "targets": [address] }] })),
                job("instances", json!({ "http_sd_configs": [{
                    "url": format!("{toygres}/v1/prometheus/targets"), "refresh_interval": "1s", "authorization": auth }] })),
            ],
        });
        // JSON is YAML.
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config.to_string())?;
        let port = take_address(("127.0.0.1", 0)).await?.local_addr()?.port();
        let child = tokio::process::Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("prometheus.log"))?)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child, url: format!("http://127.0.0.1:{port}") })
    }

    async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let url = format!("{}/api/v1/query", self.url);
        let answer: Value = reqwest::Client::new().get(url).query(&[("query", expression)]).send().await?.json().await?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }
}

#[tokio::test]
async fn prometheus_finds_the_instances_and_every_expression_of_the_dashboard_has_an_answer() {
    if !has("prometheus") {
        return required_or_skip("Prometheus isn't installed").unwrap();
    }
    let toygres = Toygres::new().unwrap().with("TOYGRES_HEALTH_INTERVAL_SECONDS", "1");
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    let rules =
        std::process::Command::new("promtool").args(["check", "rules"]).arg(format!("{FILES}/rules.yaml")).output().unwrap();
    assert!(rules.status.success(), "{rules:?}");
    let token = toygres.ok(&["token", "create", "prometheus", "--role", "viewer"]).await.unwrap();
    let folder: PathBuf = toygres.folder().join("prometheus");
    std::fs::create_dir(&folder).unwrap();
    let mut prometheus = Prometheus::start(&folder, api.url(), token.stdout.trim_end()).await.unwrap();
    eventually("both to be scraped", SOON, async || {
        let up = prometheus.query("up == 1").await?;
        ensure!(up.len() == 2, "{up:?}: {}", std::fs::read_to_string(folder.join("prometheus.log"))?);
        Ok(Some(()))
    })
    .await
    .unwrap();
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(format!("{FILES}/dashboard.json")).unwrap()).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    for target in targets {
        let expression = target["expr"].as_str().unwrap();
        let expression = expression.replace("$namespace", ".*").replace("$instance", ".*").replace("$__rate_interval", "10s");
        eventually(&format!("an answer to {expression}"), SOON, async || {
            Ok((!prometheus.query(&expression).await?.is_empty()).then_some(()))
        })
        .await
        .unwrap();
    }
    // An alert, with the instance's name.
    let mut admin = toygres_e2e::api::log_in(&api.superuser_uri("demo").await.unwrap()).await.unwrap();
    admin.execute("ALTER SYSTEM SET default_transaction_read_only = on").await.unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
    eventually("an alert", SOON, async || {
        let alerts = prometheus.query("ALERTS{alertname=\"ToygresInstanceUnhealthy\",instance=\"default/demo\"}").await?;
        Ok((!alerts.is_empty()).then_some(()))
    })
    .await
    .unwrap();
    prometheus.child.kill().await.unwrap();
}

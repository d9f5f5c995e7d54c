use axum::extract::{Path, Query};
use axum::http::{HeaderMap, StatusCode as Status};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::collections::HashMap;

use toygres_models::store::EventStart;

use super::*;

/// A server of these routes, on a free port.
async fn serve(router: Router) -> Client {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base: Url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    Client::new(&base, Some(&"t0ken".into())).unwrap()
}

fn key(name: &str) -> InstanceKey {
    InstanceKey::parse("team", name).unwrap()
}

fn problem() -> Problem {
    let detail = "there is no instance demo".into();
    Problem { kind: "not_found".into(), title: "Not found".into(), status: 404, detail, field: None }
}

#[tokio::test]
async fn sends_the_token_and_the_query_and_reads_pages_to_the_end() {
    let events = |Path(name): Path<String>, Query(query): Query<HashMap<String, String>>, headers: HeaderMap| async move {
        assert_eq!((name.as_str(), query["namespace"].as_str()), ("demo", "team"));
        assert_eq!(headers[AUTHORIZATION], "Bearer t0ken");
        let event = |id: i64| {
            json!({ "id": id, "instance_id": Uuid::nil(), "namespace": "team", "instance_name": "demo", "kind": "k",
                    "message": "m", "cause": "c", "operation_id": null, "created_at": "2026-01-01T00:00:00Z" })
        };
        Json(match query.get("cursor").map(String::as_str) {
            None => json!({ "items": [event(3), event(2)], "next_cursor": "a b&c" }),
            Some("a b&c") => json!({ "items": [event(1)], "next_cursor": null }),
            Some(other) => panic!("{other}"),
        })
    };
    let client = serve(Router::new().route("/v1/instances/{name}/events", get(events))).await;
    let ids = |limit| async move {
        let events = all_pages(limit, async |page: &PageRequest| client.events(&key("demo"), EventStart::After(0), page).await)
            .await
            .unwrap();
        events.iter().map(|event| event.id).collect::<Vec<_>>()
    };
    assert_eq!(ids.clone()(None).await, [3, 2, 1]);
    assert_eq!(ids(Some(2)).await, [3, 2]);
}

#[tokio::test]
async fn a_problem_is_told_in_the_servers_words() {
    let refuse = async || (Status::NOT_FOUND, Json(problem()));
    let client = serve(Router::new().route("/v1/instances/{name}", get(refuse))).await;
    let error = client.instance(&key("demo")).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no instance demo");
    assert!(matches!(&error, ClientError::Refused(refused) if **refused == problem()) && !error.is_passing());
}

#[tokio::test]
async fn what_is_not_toygres_is_told_apart_and_never_gets_the_token_by_a_health_check() {
    let page = async |headers: HeaderMap| {
        assert!(!headers.contains_key(AUTHORIZATION));
        "<html>a stranger</html>"
    };
    let client = serve(Router::new().route("/healthz", get(page)).route("/v1/versions", get(async || Status::IM_A_TEAPOT))).await;
    assert!(matches!(client.health().await.unwrap_err(), ClientError::Foreign { .. }));
    assert!(matches!(client.versions(None).await.unwrap_err(), ClientError::Foreign { .. }));
}

#[tokio::test]
async fn a_proxy_whose_server_is_away_is_waited_for() {
    let client = serve(Router::new().route("/v1/versions", get(async || (Status::BAD_GATEWAY, "<html>")))).await;
    let error = client.versions(None).await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }) && error.is_passing(), "{error}");
}

#[tokio::test]
async fn a_server_that_is_away_is_unreachable() {
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = Client::new(&format!("http://{port}").parse().unwrap(), None).unwrap();
    let error = client.health().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }) && error.is_passing());
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn a_create_tells_whether_it_began_something() {
    let spec = json!({ "platform": "local", "postgres_version": "17" });
    let operation = json!({ "id": Uuid::nil(), "kind": "create", "instance_id": Uuid::nil(), "namespace": "team",
        "instance_name": "demo", "place": "local", "summary": "create", "input": {}, "spec_before": spec, "spec": spec,
        "generation": 1, "state_before": "creating", "reverting": false, "state": "pending", "cause": "c", "actor": "root",
        "error": null, "revision": 1, "created_at": "2026-01-01T00:00:00Z", "started_at": null, "finished_at": null, "steps": [] });
    let create = |Json(body): Json<Value>| async move {
        let status = if body["name"] == "demo" { Status::ACCEPTED } else { Status::OK };
        (status, Json(operation))
    };
    let client = serve(Router::new().route("/v1/instances", post(create))).await;
    let namespace = "team".parse().unwrap();
    let body = |name: &str| InstanceManifest { name: name.into(), ..InstanceManifest::default() };
    assert!(client.create_instance(&namespace, &body("demo")).await.unwrap().is_new);
    assert!(!client.create_instance(&namespace, &body("other")).await.unwrap().is_new);
}

#[test]
fn a_prefix_in_the_url_stays() {
    for base in ["http://h/behind/a/proxy", "http://h/behind/a/proxy/"] {
        let client = Client::new(&base.parse().unwrap(), None).unwrap();
        let url = client.instance_url(&key("demo"), &["logs"], &[("tail_lines", Some("5".into()))]).unwrap();
        assert_eq!(url.as_str(), "http://h/behind/a/proxy/v1/instances/demo/logs?namespace=team&tail_lines=5");
    }
}

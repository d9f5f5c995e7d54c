//! A server's HTTP interface, spoken to without the program's own client.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use sse_stream::SseStream;

use crate::run::humane;

/// What a stream of server-sent events is asked for by.
pub const EVENTS: &str = "text/event-stream";

/// How long an operation may take on a busy machine, repeats after a crash included.
const OPERATION_LIMIT: Duration = Duration::from_secs(90);

/// A server and a token for it.
#[derive(Debug, Clone)]
pub struct Api {
    client: Client,
    url: String,
    token: Option<String>,
    /// The namespace whose instances on Kubernetes are meant; else local ones in the default one.
    namespace: Option<String>,
    /// What requests are repeated by.
    idempotency_key: Option<String>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// If it isn't.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("the answer {} is not JSON: {}", self.status, self.text))
    }

    /// The JSON of an answer with that status.
    ///
    /// # Errors
    /// If it has another one.
    pub fn expect(&self, status: u16) -> Result<Value> {
        ensure!(self.status.as_u16() == status, "{status} was expected, not {}: {}", self.status, self.text);
        self.json()
    }

    /// The `detail` of an RFC 9457 problem document with that status.
    ///
    /// # Errors
    /// If it is no such document, or not written for people.
    pub fn expect_problem(&self, status: u16) -> Result<String> {
        let problem = self.expect(status)?;
        let kind = self.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        ensure!(kind == "application/problem+json", "a problem is sent as {kind:?}: {}", self.text);
        ensure!(problem["status"] == json!(status), "the document has another status: {problem}");
        ensure!(problem["type"].is_string() && problem["title"].is_string(), "it has no type or title: {problem}");
        let detail = problem["detail"].as_str().with_context(|| format!("it has no detail: {problem}"))?;
        humane(detail)?;
        Ok(detail.to_owned())
    }
}

impl Api {
    /// Speaks to the server at `url`.
    ///
    /// # Errors
    /// If the HTTP client can't be set up.
    pub fn new(url: &str, token: Option<&str>) -> Result<Self> {
        // An idle connection is given up well before the server does (after 20 s): a request on one that is just being
        // closed fails.
        let client = Client::builder().timeout(Duration::from_secs(100)).pool_idle_timeout(Duration::from_secs(5)).no_proxy();
        let client = client.build()?;
        Ok(Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
            token: token.map(ToOwned::to_owned),
            namespace: None,
            idempotency_key: None,
        })
    }

    /// The server's address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same server's instances on Kubernetes, in that namespace.
    #[must_use]
    pub fn on_kubernetes(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// The same server with another token, or none.
    #[must_use]
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self { token: token.map(ToOwned::to_owned), ..self.clone() }
    }

    /// The same server, every request with that `Idempotency-Key`.
    #[must_use]
    pub fn with_idempotency_key(&self, key: &str) -> Self {
        Self { idempotency_key: Some(key.to_owned()), ..self.clone() }
    }

    /// Sends a request and gives whatever comes back.
    ///
    /// # Errors
    /// If nothing comes back.
    pub async fn send(&self, method: Method, path: &str, body: Option<String>) -> Result<Answer> {
        self.send_with(&[], method, path, body).await
    }

    /// The same with more headers.
    ///
    /// # Errors
    /// If nothing comes back.
    pub async fn send_with(&self, headers: &[(&str, &str)], method: Method, path: &str, body: Option<String>) -> Result<Answer> {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = &self.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let response = request.send().await.with_context(|| format!("{method} {path}"))?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, text: response.text().await? })
    }

    /// PUT of an instance's document, with headers of the request's own.
    ///
    /// # Errors
    /// If nothing comes back.
    pub async fn put(&self, path: &str, document: &Value, headers: &[(&str, &str)]) -> Result<Answer> {
        self.send_with(headers, Method::PUT, path, Some(document.to_string())).await
    }

    /// GET.
    ///
    /// # Errors
    /// If nothing comes back.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, None).await
    }

    /// POST without a body.
    ///
    /// # Errors
    /// If nothing comes back.
    pub async fn post(&self, path: &str) -> Result<Answer> {
        self.send(Method::POST, path, None).await
    }

    /// Asks for a stream of that kind, after the event of that id, and gives whatever comes back.
    ///
    /// # Errors
    /// If nothing comes back.
    pub async fn ask_for_stream(&self, path: &str, accept: &str, last_event_id: Option<&str>) -> Result<Response> {
        // Without the client's limit on time: a stream is as long as what it tells of.
        let mut request = self.client.get(format!("{}{path}", self.url)).header(ACCEPT, accept);
        request = request.timeout(Duration::from_secs(600));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        request.send().await.with_context(|| format!("a stream of {path}"))
    }

    /// Opens a stream of server-sent events, after the event of that id.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn stream(&self, path: &str, last_event_id: Option<&str>) -> Result<SseStream<reqwest::Body>> {
        let response = self.open(path, EVENTS, last_event_id).await?;
        Ok(SseStream::new(reqwest::Body::from(response)))
    }

    /// Opens a stream of that kind, to be read by chunks.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn open(&self, path: &str, accept: &str, last_event_id: Option<&str>) -> Result<Response> {
        let response = self.ask_for_stream(path, accept, last_event_id).await?;
        ensure!(response.status() == StatusCode::OK, "the stream of {path} is refused: {}", response.status());
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        ensure!(kind.starts_with(accept), "a stream is sent as {kind:?}");
        Ok(response)
    }

    /// Asks for an instance.
    ///
    /// # Errors
    /// If nothing comes back.
    pub async fn post_instance(&self, body: &Value) -> Result<Answer> {
        self.send(Method::POST, &self.instances(""), Some(body.to_string())).await
    }

    /// Asks for an instance of that name; the operation's id.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn begin_create(&self, name: &str) -> Result<String> {
        let mut body = json!({ "name": name });
        if self.namespace.is_some() {
            body["platform"] = "kubernetes".into();
        }
        self.operation_of(self.post_instance(&body).await?)
    }

    /// Asks for an instance's deletion; the operation's id.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn begin_delete(&self, name: &str) -> Result<String> {
        self.operation_of(self.send(Method::DELETE, &self.instances(&format!("/{name}")), None).await?)
    }

    /// The kinds of an instance's events, oldest first.
    ///
    /// # Errors
    /// If they can't be read.
    pub async fn kinds_of_events(&self, name: &str) -> Result<Vec<String>> {
        let events = self.items(&format!("/v1/instances/{name}/events")).await?;
        Ok(events.iter().map(|event| event["kind"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// Logs in to an instance and expects the table `kept` with the answer 42.
    ///
    /// # Errors
    /// If it isn't so.
    pub async fn expect_42(&self, name: &str) -> Result<()> {
        let mut session = self.log_in(name).await?;
        let (answer,): (i32,) = sqlx::query_as("SELECT answer FROM kept").fetch_one(&mut session).await?;
        ensure!(answer == 42, "{name} has the answer {answer}");
        Ok(())
    }

    /// The path of the instances, or of something below.
    fn instances(&self, below: &str) -> String {
        let namespace = self.namespace.as_ref().map(|namespace| format!("?namespace={namespace}")).unwrap_or_default();
        format!("/v1/instances{below}{namespace}")
    }

    fn operation_of(&self, answer: Answer) -> Result<String> {
        let operation = answer.expect(202)?;
        let id = operation["id"].as_str().context("an operation without an id")?.to_owned();
        let location = answer.headers.get("location").and_then(|location| location.to_str().ok()).unwrap_or_default();
        ensure!(location == format!("/v1/operations/{id}"), "its Location is {location:?}");
        Ok(id)
    }

    /// Waits for an operation's end, and returns it as it ended.
    ///
    /// # Errors
    /// If it doesn't end.
    pub async fn wait(&self, id: &str) -> Result<Value> {
        self.wait_within(id, OPERATION_LIMIT).await
    }

    /// The same with another limit.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn wait_within(&self, id: &str, limit: Duration) -> Result<Value> {
        let began = Instant::now();
        loop {
            let operation = self.get(&format!("/v1/operations/{id}?wait=20s")).await?.expect(200)?;
            if matches!(operation["state"].as_str(), Some("succeeded" | "failed" | "cancelled")) {
                return Ok(operation);
            }
            if began.elapsed() > limit {
                bail!("the operation does not end: {operation:#}");
            }
        }
    }

    /// Waits for an operation that has to succeed.
    ///
    /// # Errors
    /// If it fails, or doesn't end.
    pub async fn wait_success(&self, id: &str) -> Result<Value> {
        let operation = self.wait(id).await?;
        ensure!(operation["state"] == "succeeded", "the operation failed: {operation:#}");
        Ok(operation)
    }

    /// Makes an instance and waits for it.
    ///
    /// # Errors
    /// If it fails.
    pub async fn create(&self, name: &str) -> Result<Value> {
        self.wait_success(&self.begin_create(name).await?).await
    }

    /// Removes an instance and waits until it is gone.
    ///
    /// # Errors
    /// If it fails.
    pub async fn delete(&self, name: &str) -> Result<Value> {
        self.wait_success(&self.begin_delete(name).await?).await
    }

    /// An instance's record.
    ///
    /// # Errors
    /// If there is none.
    pub async fn instance(&self, name: &str) -> Result<Value> {
        self.get(&self.instances(&format!("/{name}"))).await?.expect(200)
    }

    /// What a list holds; at most a hundred.
    ///
    /// # Errors
    /// If there is no such list.
    pub async fn items(&self, path: &str) -> Result<Vec<Value>> {
        let page = self.get(path).await?.expect(200)?;
        Ok(page["items"].as_array().with_context(|| format!("not a page: {page}"))?.clone())
    }

    /// An instance's connection URI, with its password.
    ///
    /// # Errors
    /// If it can't be connected to.
    pub async fn uri(&self, name: &str) -> Result<String> {
        let connection = self.get(&self.instances(&format!("/{name}/connection"))).await?.expect(200)?;
        Ok(connection["uri"].as_str().context("a connection without a URI")?.to_owned())
    }

    /// Logs in by the instance's URI.
    ///
    /// # Errors
    /// If that fails.
    pub async fn log_in(&self, name: &str) -> Result<PgConnection> {
        log_in(&self.uri(name).await?).await
    }

    /// The URI of an instance's superuser, with a new password.
    ///
    /// # Errors
    /// If the server or the instance refuses.
    pub async fn superuser_uri(&self, name: &str) -> Result<String> {
        let connection = self.post(&self.instances(&format!("/{name}/superuser"))).await?.expect(200)?;
        Ok(connection["uri"].as_str().context("a connection without a URI")?.to_owned())
    }

    /// Logs in to an instance as its superuser.
    ///
    /// # Errors
    /// If that fails.
    pub async fn log_in_as_superuser(&self, name: &str) -> Result<PgConnection> {
        log_in(&self.superuser_uri(name).await?).await
    }
}

/// Logs in by a URI, over TLS with the server's name checked, and tries it.
///
/// # Errors
/// If that fails, or the URI asks for less.
pub async fn log_in(uri: &str) -> Result<PgConnection> {
    ensure!(uri.contains("sslmode=verify-full"), "the URI doesn't ask for verify-full");
    // The error of a failed parse would show the URI, and that is the password.
    let options: PgConnectOptions = uri.parse().ok().context("the URI can't be read")?;
    let mut connection = options.disable_statement_logging().connect().await.context("log-in by the URI")?;
    let (one, encrypted): (i32, bool) =
        sqlx::query_as("SELECT 1, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetch_one(&mut connection).await?;
    ensure!(one == 1 && encrypted, "the connection isn't encrypted");
    Ok(connection)
}

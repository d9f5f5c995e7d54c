//! A small typed client of the server's HTTP API, for the command line and for tests.
//!
//! It stands on hyper rather than reqwest: building a reqwest client loads the system's
//! certificates (40 ms), which is most of the time that `toygres list` may take, and the server on
//! this machine is reached by its Unix socket. TLS is set up only where the URL asks for it.

mod error;
mod events;
mod instances;
mod logs;
mod namespaces;
mod operations;
mod pages;
mod tokens;
mod transport;

use std::error::Error as StdError;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_MATCH};
use hyper::{Method, Request, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use toygres_models::store::{Instance, Operation};
use toygres_models::{
    ClientSession, InstanceKey, InstanceName, InstanceState, LabelSelector, Namespace, OfferedVersion, PlatformName, SessionEnd,
};
use url::Url;
use uuid::Uuid;

pub use error::ClientError;
pub use events::{EventMessage, EventRequest, EventStream};
pub use instances::Applied;
pub use logs::LogLines;
pub use pages::{PageRequest, all_pages};

use crate::resources::{
    Connection, Health, InstanceActivity, InstanceDrift, InstanceHealth, InstanceManifest, KUBE_CONTEXT, LocalServer, Page,
    Problem, Usage,
};
use transport::Transport;

/// For everything but long polls. Listing versions may ask an archive on the internet.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A server that doesn't answer even this hangs, or isn't one.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// No answer of toygres comes near it; a stranger's could be endless.
const MAX_BODY_BYTES: usize = 64 << 20;

/// The operation that a request to create or delete an instance is carried out by.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// The operation.
    pub operation: Operation,
    /// Whether the request began it. If not, the same was asked for before.
    pub is_new: bool,
}

/// Which instances a list has; everything that is left out lets all through.
#[derive(Debug, Clone, Default)]
pub struct InstanceQuery {
    /// In this namespace.
    pub namespace: Option<Namespace>,
    /// On this platform.
    pub platform: Option<PlatformName>,
    /// In this state.
    pub state: Option<InstanceState>,
    /// With these labels.
    pub label_selector: Option<LabelSelector>,
}

/// A connection to a server's API. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    base: Url,
    /// The server as errors name it.
    name: Url,
    authorization: Option<HeaderValue>,
    kube_context: Option<HeaderValue>,
    /// Of single requests.
    headers: HeaderMap,
    transport: Transport,
}

impl Client {
    /// A client of the server at `base`, which over TLS is known by the system's CAs. Nothing is sent
    /// yet.
    ///
    /// # Errors
    /// If the token can't stand in an HTTP header.
    pub fn new(base: &Url, token: Option<&SecretString>) -> Result<Self, ClientError> {
        Self::trusting(base, token, None)
    }

    /// The same, where over TLS the server is known by this CA, in PEM, and by no other.
    ///
    /// # Errors
    /// If the token can't stand in an HTTP header, or the CA's certificate can't be read.
    pub fn trusting(base: &Url, token: Option<&SecretString>, ca_certificate: Option<&str>) -> Result<Self, ClientError> {
        let mut base = base.clone();
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let transport = if base.scheme() == "https" { Transport::tls(ca_certificate)? } else { Transport::plain() };
        Self::over(transport, base.clone(), base, token)
    }

    /// A client of the server on this machine whose Unix socket is in `folder`. Each connection is used only after the
    /// socket and the process that listens on it were found to be this user's or root's.
    ///
    /// # Errors
    /// If the token can't stand in an HTTP header.
    pub fn local(folder: &Path, token: Option<&SecretString>) -> Result<Self, ClientError> {
        let unsendable = |error: url::ParseError| ClientError::Unsendable(error.to_string());
        let name = Url::parse(&format!("unix:{}", folder.display())).map_err(unsendable)?;
        let base = Url::parse("http://localhost/").map_err(unsendable)?;
        Self::over(Transport::local(folder.to_owned()), base, name, token)
    }

    fn over(transport: Transport, base: Url, name: Url, token: Option<&SecretString>) -> Result<Self, ClientError> {
        let authorization = token.map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
                .map_err(|_| ClientError::Unsendable("the token has characters that a token can't have".into()))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let authorization = authorization.transpose()?;
        Ok(Self { base, name, authorization, kube_context: None, headers: HeaderMap::new(), transport })
    }

    /// The same, for a server that uses its kubeconfig with that context and no other.
    ///
    /// # Errors
    /// If the name can't stand in an HTTP header.
    pub fn with_kube_context(mut self, context: &str) -> Result<Self, ClientError> {
        let unsendable = |_| ClientError::Unsendable("the name of the context has characters that can't be sent".into());
        self.kube_context = Some(HeaderValue::try_from(context).map_err(unsendable)?);
        Ok(self)
    }

    /// The same for a change of what has still that generation or revision.
    pub fn expecting(&self, revision: i64) -> Result<Self, ClientError> {
        let etag = HeaderValue::try_from(format!("\"{revision}\""));
        let unsendable = |_| ClientError::Unsendable("the revision can't be sent".into());
        Ok(self.with_header(IF_MATCH, etag.map_err(unsendable)?))
    }

    fn with_header(&self, name: HeaderName, value: HeaderValue) -> Self {
        let mut with = self.clone();
        with.headers.insert(name, value);
        with
    }

    /// The server, as errors name it: its address, or the folder of its socket.
    #[must_use]
    pub fn name(&self) -> &Url {
        &self.name
    }

    /// Asks for an instance. Asking again for the same one gives the same operation.
    pub async fn create_instance(&self, namespace: &Namespace, body: &InstanceManifest) -> Result<Submitted, ClientError> {
        let url = self.url(&["v1", "instances"], &[("namespace", Some(namespace.to_string()))])?;
        self.submit(Method::POST, url, Self::encode(body)?).await
    }

    /// Asks for an instance's removal.
    pub async fn delete_instance(&self, key: &InstanceKey) -> Result<Submitted, ClientError> {
        self.submit(Method::DELETE, self.instance_url(key, &[], &[])?, Vec::new()).await
    }

    /// A page of the instances that `query` lets through.
    pub async fn instances(&self, query: &InstanceQuery, page: &PageRequest) -> Result<Page<Instance>, ClientError> {
        let query = [
            ("namespace", query.namespace.as_ref().map(ToString::to_string)),
            ("platform", query.platform.map(|platform| platform.to_string())),
            ("state", query.state.map(|state| state.to_string())),
            ("label_selector", query.label_selector.as_ref().map(ToString::to_string)),
            page.limit(),
            page.cursor(),
        ];
        self.get(self.url(&["v1", "instances"], &query)?).await
    }

    /// One instance.
    pub async fn instance(&self, key: &InstanceKey) -> Result<Instance, ClientError> {
        self.get(self.instance_url(key, &[], &[])?).await
    }

    /// How an instance is, and was.
    pub async fn instance_health(&self, key: &InstanceKey) -> Result<InstanceHealth, ClientError> {
        self.get(self.instance_url(key, &["health"], &[])?).await
    }

    /// The load of the instances, as last seen.
    pub async fn usage(&self, namespace: Option<&Namespace>) -> Result<Usage, ClientError> {
        self.get(self.url(&["v1", "usage"], &[("namespace", namespace.map(ToString::to_string))])?).await
    }

    /// The load of an instance, and what its clients do.
    pub async fn instance_activity(&self, key: &InstanceKey) -> Result<InstanceActivity, ClientError> {
        self.get(self.instance_url(key, &["activity"], &[])?).await
    }

    /// Cancels the statement of a session, or ends the session.
    pub async fn end_session(&self, key: &InstanceKey, session: &ClientSession, end: SessionEnd) -> Result<(), ClientError> {
        let how = match end {
            SessionEnd::Cancel => "cancel",
            SessionEnd::Terminate => "terminate",
        };
        let query = [("started_at", Some(session.started_at.to_rfc3339()))];
        let url = self.instance_url(key, &["sessions", &session.pid.to_string(), how], &query)?;
        self.send(Method::POST, url, Vec::new(), REQUEST_TIMEOUT).await?;
        Ok(())
    }

    /// What others changed of an instance.
    pub async fn instance_drift(&self, key: &InstanceKey) -> Result<InstanceDrift, ClientError> {
        self.get(self.instance_url(key, &["drift"], &[])?).await
    }

    /// How an instance is reached, its password included.
    pub async fn connection(&self, key: &InstanceKey) -> Result<Connection, ClientError> {
        self.get(self.instance_url(key, &["connection"], &[])?).await
    }

    /// How an instance is reached as its superuser, with a new password that lets in for an hour.
    pub async fn superuser_connection(&self, key: &InstanceKey) -> Result<Connection, ClientError> {
        let url = self.instance_url(key, &["superuser"], &[])?;
        let (_, body) = self.send(Method::POST, url, Vec::new(), REQUEST_TIMEOUT).await?;
        self.decode(&body)
    }

    /// A page of operations, newest first.
    pub async fn operations(
        &self,
        namespace: Option<&Namespace>,
        instance: Option<&InstanceName>,
        page: &PageRequest,
    ) -> Result<Page<Operation>, ClientError> {
        let namespace = ("namespace", namespace.map(ToString::to_string));
        let instance = ("instance_name", instance.map(ToString::to_string));
        self.get(self.url(&["v1", "operations"], &[namespace, instance, page.limit(), page.cursor()])?).await
    }

    /// One operation, as it is now.
    pub async fn operation(&self, id: Uuid) -> Result<Operation, ClientError> {
        self.get(self.url(&["v1", "operations", &id.to_string()], &[])?).await
    }

    /// The PostgreSQL versions that are available on a platform, newest first.
    pub async fn versions(&self, platform: Option<PlatformName>) -> Result<Page<OfferedVersion>, ClientError> {
        let platform = ("platform", platform.map(|platform| platform.to_string()));
        self.get(self.url(&["v1", "versions"], &[platform])?).await
    }

    /// Whether a server is there at all. Sends no token, so a stranger may be asked.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.health_at("healthz").await
    }

    /// Whether the server and what it needs are at work; what is wrong stands in the answer.
    pub async fn readiness(&self) -> Result<Health, ClientError> {
        self.health_at("readyz").await
    }

    /// What the server on this machine tells of itself, by its socket alone.
    pub async fn local_server(&self) -> Result<LocalServer, ClientError> {
        self.health_at("server").await
    }

    async fn health_at<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let anonymous = Self { authorization: None, ..self.clone() };
        let (_, body) = anonymous.send(Method::GET, self.url(&[path], &[])?, Vec::new(), HEALTH_TIMEOUT).await?;
        self.decode(&body)
    }

    async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<T, ClientError> {
        let (_, body) = self.send(Method::GET, url, Vec::new(), REQUEST_TIMEOUT).await?;
        self.decode(&body)
    }

    async fn submit(&self, method: Method, url: Url, body: Vec<u8>) -> Result<Submitted, ClientError> {
        let (status, body) = self.send(method, url, body, REQUEST_TIMEOUT).await?;
        Ok(Submitted { operation: self.decode(&body)?, is_new: status == StatusCode::ACCEPTED })
    }

    /// Sends a request, and turns every answer that isn't a success into an error.
    async fn send(&self, method: Method, url: Url, body: Vec<u8>, timeout: Duration) -> Result<(StatusCode, Bytes), ClientError> {
        let (status, body) = self.exchange(method, url, body, timeout).await?;
        if status.is_success() { Ok((status, body)) } else { Err(self.refused(status, &body)) }
    }

    /// The error that an answer with that status is.
    fn refused(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => ClientError::Refused(Box::new(problem)),
            // A proxy's words while the server behind it is away.
            Err(_) if matches!(status.as_u16(), 502..=504) => {
                ClientError::Broken { url: self.name.clone(), reason: format!("something before the server answered {status}") }
            }
            Err(_) => self.foreign(format!("it answered {status} without saying why")),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        url: Url,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let whole = async { self.read(self.open(method, url, body, &[(ACCEPT, "application/json")]).await?).await };
        match tokio::time::timeout(timeout, whole).await {
            Ok(answer) => answer,
            Err(_) => Err(self.timed_out(timeout)),
        }
    }

    /// Sends a request; its answer, of which the body is yet to come.
    async fn open(
        &self,
        method: Method,
        url: Url,
        body: Vec<u8>,
        headers: &[(HeaderName, &str)],
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder().method(method).uri(url.as_str());
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(context) = &self.kube_context {
            request = request.header(KUBE_CONTEXT, context);
        }
        let mut request = request.body(Full::from(body)).map_err(|error| ClientError::Unsendable(error.to_string()))?;
        request.headers_mut().extend(self.headers.clone());
        self.transport.send(request).await.map_err(|error| self.failed(&error, error.is_connect()))
    }

    async fn read(&self, response: Response<Incoming>) -> Result<(StatusCode, Bytes), ClientError> {
        let status = response.status();
        match Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(error) => Err(self.failed(error.as_ref(), false)),
        }
    }

    fn encode(body: &InstanceManifest) -> Result<Vec<u8>, ClientError> {
        serde_json::to_vec(body).map_err(|error| ClientError::Unsendable(error.to_string()))
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.foreign(error.to_string()))
    }

    fn foreign(&self, reason: String) -> ClientError {
        ClientError::Foreign { url: self.name.clone(), reason }
    }

    fn timed_out(&self, timeout: Duration) -> ClientError {
        ClientError::TimedOut { url: self.name.clone(), timeout }
    }

    fn failed(&self, error: &(dyn StdError + 'static), while_connecting: bool) -> ClientError {
        // hyper's own layers ("client error (Connect): tcp connect error") say nothing to a
        // person; the innermost error is the operating system's.
        let mut innermost = error;
        let (mut is_tls, mut is_no_http) = (false, false);
        while let Some(source) = innermost.source() {
            innermost = source;
            is_tls |= innermost.is::<native_tls::Error>();
            is_no_http |= innermost.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
        }
        let (url, reason) = (self.name.clone(), innermost.to_string());
        if is_no_http {
            return self.foreign(format!("it speaks no HTTP ({reason})"));
        }
        if is_tls {
            return ClientError::Untrusted { url, reason };
        }
        if while_connecting { ClientError::Unreachable { url, reason } } else { ClientError::Broken { url, reason } }
    }

    fn instance_url(&self, key: &InstanceKey, below: &[&str], query: &[QueryPair]) -> Result<Url, ClientError> {
        let path: Vec<&str> = ["v1", "instances", key.name.as_str()].iter().chain(below).copied().collect();
        let query: Vec<QueryPair> =
            std::iter::once(("namespace", Some(key.namespace.to_string()))).chain(query.iter().cloned()).collect();
        self.url(&path, &query)
    }

    fn url(&self, path: &[&str], query: &[QueryPair]) -> Result<Url, ClientError> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| ClientError::Unsendable(format!("{} is not a server's address", self.name)))?
            .pop_if_empty()
            .extend(path);
        let given = query.iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        if given.clone().next().is_some() {
            url.query_pairs_mut().extend_pairs(given);
        }
        Ok(url)
    }
}

type QueryPair = (&'static str, Option<String>);

#[cfg(test)]
mod tests;

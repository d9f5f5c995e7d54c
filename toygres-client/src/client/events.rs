//! Events: as pages, and as a stream that goes on where the last one ended.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt;
use hyper::Method;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderName};
use sse_stream::SseStream;
use toygres_models::store::{Event, EventStart};
use toygres_models::{InstanceKey, InstanceName, Namespace};

use super::{Client, ClientError, PageRequest, QueryPair, REQUEST_TIMEOUT};
use crate::explanation::Explanation;
use crate::resources::{LAST_EVENT_ID, Page};

/// A server says something at least every fifteen seconds; one that doesn't for so long is gone.
const SILENCE: Duration = Duration::from_secs(40);

/// Which events are wanted.
#[derive(Debug, Clone)]
pub struct EventRequest {
    /// Only in this namespace.
    pub namespace: Option<Namespace>,
    /// Only of instances of this name.
    pub instance_name: Option<InstanceName>,
    /// Where to begin.
    pub start: EventStart,
}

impl EventRequest {
    fn query(&self) -> [QueryPair; 5] {
        let [after, since, last] = start(self.start);
        [
            ("namespace", self.namespace.as_ref().map(ToString::to_string)),
            ("instance_name", self.instance_name.as_ref().map(ToString::to_string)),
            after,
            since,
            last,
        ]
    }
}

fn start(start: EventStart) -> [QueryPair; 3] {
    let time = |time: DateTime<Utc>| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let (after, since, last) = match start {
        EventStart::Now => (None, None, None),
        EventStart::After(id) => (Some(id.to_string()), None, None),
        EventStart::Since(at) => (None, Some(time(at)), None),
        EventStart::Last(count) => (None, None, Some(count.to_string())),
    };
    [("after", after), ("since", since), ("last", last)]
}

/// What a stream tells.
#[derive(Debug, Clone)]
pub struct EventMessage {
    /// Where the stream is; asked for with it, the next one goes on there.
    pub id: i64,
    /// What happened; none where only the place is told.
    pub event: Option<Event>,
}

/// A stream of events.
pub struct EventStream {
    client: Client,
    messages: SseStream<Incoming>,
}

impl EventStream {
    /// The next message. Every end of a stream is an error: its server is gone, or stops, and another one
    /// goes on.
    ///
    /// # Errors
    /// If the connection breaks, ends or is silent for too long.
    pub async fn next(&mut self) -> Result<EventMessage, ClientError> {
        loop {
            let message = match tokio::time::timeout(SILENCE, self.messages.next()).await {
                Err(_) => return Err(self.client.silent(SILENCE)),
                Ok(None) => return Err(self.client.cut_off()),
                Ok(Some(Err(error))) => return Err(self.client.failed(&error, false)),
                Ok(Some(Ok(message))) => message,
            };
            let Some(id) = message.id.as_deref().and_then(|id| id.parse().ok()) else { continue };
            let event = message.data.filter(|data| !data.is_empty());
            let event = event.map(|data| self.client.decode(data.as_bytes())).transpose()?;
            return Ok(EventMessage { id, event });
        }
    }
}

impl Client {
    /// A page of what happened, oldest first.
    pub async fn all_events(&self, request: &EventRequest, page: &PageRequest) -> Result<Page<Event>, ClientError> {
        let query = [&request.query()[..], &[page.limit(), page.cursor()]].concat();
        self.get(self.url(&["v1", "events"], &query)?).await
    }

    /// A page of what happened to an instance, oldest first; also of the last one that had the name.
    pub async fn events(&self, key: &InstanceKey, from: EventStart, page: &PageRequest) -> Result<Page<Event>, ClientError> {
        let query = [&start(from)[..], &[page.limit(), page.cursor()]].concat();
        self.get(self.instance_url(key, &["events"], &query)?).await
    }

    /// What happens, and what has happened since the event `last_event_id` if there is one.
    ///
    /// # Errors
    /// If the server refuses it or doesn't answer.
    pub async fn follow_events(&self, request: &EventRequest, last_event_id: Option<i64>) -> Result<EventStream, ClientError> {
        let url = self.url(&["v1", "events"], &request.query())?;
        let last_event_id = last_event_id.map(|id| id.to_string());
        let mut headers = vec![(ACCEPT, "text/event-stream")];
        headers.extend(last_event_id.as_deref().map(|id| (HeaderName::from_static(LAST_EVENT_ID), id)));
        let answer = async {
            let response = self.open(Method::GET, url, Vec::new(), &headers).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let (status, body) = self.read(response).await?;
            Err(self.refused(status, &body))
        };
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer).await;
        let response = answer.map_err(|_| self.silent(REQUEST_TIMEOUT))??;
        Ok(EventStream { client: self.clone(), messages: SseStream::new(response.into_body()) })
    }

    fn silent(&self, timeout: Duration) -> ClientError {
        ClientError::TimedOut { url: self.name.clone(), timeout }
    }

    fn cut_off(&self) -> ClientError {
        ClientError::Broken { url: self.name.clone(), reason: "the server ended the stream".into() }
    }

    /// Why an instance isn't what it should be.
    pub async fn why(&self, key: &InstanceKey) -> Result<Explanation, ClientError> {
        let url = self.instance_url(key, &["why"], &[])?;
        let (_, body) = self.send(Method::GET, url, Vec::new(), REQUEST_TIMEOUT).await?;
        self.decode(&body)
    }
}

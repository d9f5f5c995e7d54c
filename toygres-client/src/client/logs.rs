//! A log as a stream, which may last for as long as its server does.

use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use hyper::Method;
use hyper::header::{ACCEPT, HeaderName};
use sse_stream::SseStream;
use toygres_models::{InstanceKey, LogLine, LogRequest};

use super::{Client, ClientError, REQUEST_TIMEOUT};
use crate::resources::{LAST_EVENT_ID, LOG_END};

/// A server says something at least every ten seconds; one that doesn't for so long is gone.
const SILENCE: Duration = Duration::from_secs(30);

/// The lines of a log, as they come.
pub type LogLines = BoxStream<'static, Result<LogLine, ClientError>>;

impl Client {
    /// An instance's log. The stream ends where the log does; any other end is an error, after which the same
    /// can be asked for with [`after`](LogRequest::after), the position of the last line.
    ///
    /// # Errors
    /// If the server refuses it or doesn't answer; in the stream, if the connection breaks.
    pub async fn logs(&self, key: &InstanceKey, request: &LogRequest) -> Result<LogLines, ClientError> {
        let LogRequest { tail_lines, since, after, follow } = request;
        let query = [
            ("tail_lines", tail_lines.map(|lines| lines.to_string())),
            ("since", since.map(|since| since.to_rfc3339())),
            ("follow", follow.then(|| "true".to_owned())),
        ];
        let url = self.instance_url(key, &["logs"], &query)?;
        let mut headers = vec![(ACCEPT, "text/event-stream")];
        headers.extend(after.as_deref().map(|after| (HeaderName::from_static(LAST_EVENT_ID), after)));
        let answered = async {
            let response = self.open(Method::GET, url, Vec::new(), &headers).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let (status, body) = self.read(response).await?;
            Err(self.refused(status, &body))
        };
        let response = tokio::time::timeout(REQUEST_TIMEOUT, answered).await.map_err(|_| self.timed_out(REQUEST_TIMEOUT))??;
        let (client, events) = (self.clone(), SseStream::new(response.into_body()));
        let lines = stream::try_unfold((client, events), |(client, mut events)| async {
            loop {
                let event = match tokio::time::timeout(SILENCE, events.next()).await {
                    Err(_) => return Err(client.timed_out(SILENCE)),
                    Ok(None) => {
                        let reason = "it ended in the middle of the log".to_owned();
                        return Err(ClientError::Broken { url: client.name.clone(), reason });
                    }
                    Ok(Some(Err(error))) => return Err(client.failed(&error, false)),
                    Ok(Some(Ok(event))) => event,
                };
                match (event.event.as_deref(), event.data) {
                    (Some(LOG_END), _) => return Ok(None),
                    (None, Some(data)) => {
                        let line: LogLine = client.decode(data.as_bytes())?;
                        return Ok(Some((LogLine { position: event.id, ..line }, (client, events))));
                    }
                    _ => {}
                }
            }
        });
        Ok(lines.boxed())
    }
}

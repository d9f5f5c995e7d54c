//! `/v1/events` as server-sent events: one stream, from where it begins until its client is gone.
//!
//! A stream listens to the server's feed. What it has missed (it goes on after another stream, or its
//! client reads slowly) it reads from the store after the last event that it gave, and then listens
//! again. So it may fall behind by any number of events, holds few in memory, and loses none.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event as Message, Sse};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};
use toygres_models::store::EventFilter;

use crate::api::http::problem::ApiError;
use crate::api::state::AppState;
use crate::workers::event_feed::Told;

/// A stream that has nothing to tell says so this often: its client knows that it lives.
const SILENCE: Duration = Duration::from_secs(15);
/// How long clients are asked to wait before they come again.
const RECONNECT: Duration = Duration::from_secs(1);

/// Answers with a stream of what happens after the event `after`.
///
/// # Errors
/// If the server is stopping.
pub fn open(state: &Arc<AppState>, filter: EventFilter, after: i64) -> Result<Response, ApiError> {
    if state.stopping.is_cancelled() {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    let stream = EventStream {
        // Before the first look into the store, so that no event falls between the two.
        told: state.feed.subscribe(),
        state: state.clone(),
        filter,
        last: after,
        missed: VecDeque::new(),
        is_behind: true,
        last_sent: Instant::now(),
    };
    // A client that is cut off before the first event knows where to go on.
    let beginning = stream::once(async move { at(after).retry(RECONNECT) });
    let rest = stream::unfold(stream, async |mut stream| Some((stream.next().await?, stream)));
    Ok(Sse::new(beginning.chain(rest).map(Ok::<_, Infallible>)).into_response())
}

/// Tells no event, and where the stream is.
fn at(id: i64) -> Message {
    Message::default().id(id.to_string())
}

struct EventStream {
    state: Arc<AppState>,
    filter: EventFilter,
    told: Receiver<Arc<Told>>,
    /// The stream has told, or left out by its filter, everything up to here.
    last: i64,
    missed: VecDeque<(i64, Message)>,
    is_behind: bool,
    /// When it last said something.
    last_sent: Instant,
}

impl EventStream {
    /// The next message; `None` ends the stream, and the client comes again.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((id, message)) = self.missed.pop_front() {
                return self.emit(id, message);
            }
            if self.is_behind {
                self.catch_up().await?;
                continue;
            }
            tokio::select! {
                told = self.told.recv() => match told {
                    Ok(told) if told.event.id <= self.last => {}
                    Ok(told) if self.filter.lets_through(&told.event) => return self.emit(told.event.id, told.message.clone()),
                    Ok(told) => self.last = told.event.id,
                    Err(RecvError::Lagged(_)) => self.is_behind = true,
                    Err(RecvError::Closed) => return None,
                },
                () = sleep_until(self.last_sent + SILENCE) => {
                    self.last_sent = Instant::now();
                    return Some(at(self.last));
                }
                () = self.state.stopping.cancelled() => return None,
            }
        }
    }

    fn emit(&mut self, id: i64, message: Message) -> Option<Message> {
        (self.last, self.last_sent) = (id, Instant::now());
        Some(message)
    }

    async fn catch_up(&mut self) -> Option<()> {
        if self.state.stopping.is_cancelled() {
            return None;
        }
        match self.state.feed.missed(&self.filter, self.last).await {
            Ok(Some(missed)) => {
                self.missed = missed.messages;
                self.is_behind = !missed.is_all;
                Some(())
            }
            // Coming again, the client is told that some aren't kept any more.
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "a stream of events ends, as the events that it missed can't be read");
                None
            }
        }
    }
}

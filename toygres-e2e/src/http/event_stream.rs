//! A stream of a server's events, read without the program's own client.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use serde_json::Value;
use sqlx::PgPool;
use sse_stream::SseStream;

use crate::Api;
use crate::wait::SOON;

/// A stream that is open.
pub struct EventStream {
    messages: SseStream<reqwest::Body>,
    /// The id of the last message, one without an event too.
    pub last_id: i64,
}

impl EventStream {
    /// Opens one; its first message tells where it begins.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn open(api: &Api, query: &str, last_event_id: Option<i64>) -> Result<Self> {
        let last_event_id = last_event_id.map(|id| id.to_string());
        let messages = api.stream(&format!("/v1/events{query}"), last_event_id.as_deref()).await?;
        let mut stream = Self { messages, last_id: -1 };
        let first = stream.next().await?.context("it ended at once")?;
        ensure!(first.is_none(), "its first message is an event: {first:?}");
        Ok(stream)
    }

    /// The next message's event, `None` within for a message that only tells the place; `None` where the
    /// stream ends or breaks.
    ///
    /// # Errors
    /// If none comes for long, or it isn't as it should be.
    pub async fn next(&mut self) -> Result<Option<Option<Value>>> {
        let message = tokio::time::timeout(SOON, self.messages.next()).await.context("no message for a minute")?;
        let Some(Ok(message)) = message else { return Ok(None) };
        let id: i64 = message.id.context("a message without an id")?.parse()?;
        let Some(data) = message.data else {
            ensure!(id >= self.last_id, "the place goes back from {} to {id}", self.last_id);
            self.last_id = id;
            return Ok(Some(None));
        };
        ensure!(id > self.last_id, "the event {id} comes after {}", self.last_id);
        let event: Value = serde_json::from_str(&data)?;
        ensure!(event["id"] == id, "the message {id} has the event {event}");
        self.last_id = id;
        Ok(Some(Some(event)))
    }

    /// The next event; `None` where the stream ends or breaks.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn next_event(&mut self) -> Result<Option<Value>> {
        loop {
            match self.next().await? {
                None => return Ok(None),
                Some(Some(event)) => return Ok(Some(event)),
                Some(None) => {}
            }
        }
    }

    /// The ids of the next events, so many of them.
    ///
    /// # Errors
    /// If the stream ends before.
    pub async fn ids(&mut self, count: usize) -> Result<Vec<i64>> {
        let mut ids = Vec::new();
        while ids.len() < count {
            match self.next_event().await? {
                Some(event) => ids.push(event["id"].as_i64().context("an id that is no number")?),
                None => bail!("it ended after {} of {count} events", ids.len()),
            }
        }
        Ok(ids)
    }
}

/// Writes so many events straight into the database, all at once; their messages have that length.
///
/// # Errors
/// If the database refuses.
pub async fn write_events(control: &PgPool, count: i32, length: i32) -> Result<()> {
    sqlx::query(
        "INSERT INTO toygres.events (namespace, instance_name, kind, message, cause)
         SELECT 'default', 'written', 'written_by_hand', repeat('x', $2), 'a test' FROM generate_series(1, $1)",
    )
    .bind(count)
    .bind(length)
    .execute(control)
    .await?;
    Ok(())
}

/// The ids of all events after one, as the database has them.
///
/// # Errors
/// If the database doesn't answer.
pub async fn ids_after(control: &PgPool, id: i64) -> Result<Vec<i64>> {
    let rows: Vec<(i64,)> =
        sqlx::query_as("SELECT id FROM toygres.events WHERE id > $1 ORDER BY id").bind(id).fetch_all(control).await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// Waits until no event was written for a moment, and gives the ids of all after one.
///
/// # Errors
/// If they never end.
pub async fn settled_ids_after(control: &PgPool, id: i64) -> Result<Vec<i64>> {
    let mut before = Vec::new();
    crate::eventually("an end of events", SOON, async || {
        let now = ids_after(control, id).await?;
        let is_settled = now == before;
        before = now;
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(is_settled.then(|| before.clone()))
    })
    .await
}

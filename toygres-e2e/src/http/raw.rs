//! HTTP spoken byte by byte, as no client library would.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than the server takes to give up on any client.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A connection to a server.
#[derive(Debug)]
pub struct Raw(TcpStream);

impl Raw {
    /// Connects to the server at `url`.
    ///
    /// # Errors
    /// If nobody listens there.
    pub async fn connect(url: &str) -> Result<Self> {
        let address = url.split_once("://").map_or(url, |(_, address)| address).trim_end_matches('/');
        Ok(Self(TcpStream::connect(address).await.with_context(|| address.to_owned())?))
    }

    /// Sends bytes. The server may have hung up meanwhile, which its answer shows.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    /// Sends no more, and still reads.
    pub async fn send_no_more(&mut self) {
        let _ = self.0.shutdown().await;
    }

    /// What comes next.
    ///
    /// # Errors
    /// If nothing does.
    pub async fn some(&mut self) -> Result<String> {
        let mut bytes = [0; 4096];
        let length = timeout(ANSWER_LIMIT, self.0.read(&mut bytes)).await.context("no answer")??;
        Ok(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned())
    }

    /// Everything that comes until the server hangs up.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn rest(mut self) -> Result<String> {
        let mut answer = Vec::new();
        // An end by reset is one too.
        let _ = timeout(ANSWER_LIMIT, self.0.read_to_end(&mut answer)).await.context("the server does not hang up")?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Everything that comes until the server hangs up, while a byte is sent each second: never silent,
    /// and never done.
    ///
    /// # Errors
    /// If it doesn't hang up.
    pub async fn rest_while_dripping(self) -> Result<String> {
        let (mut reader, mut writer) = self.0.into_split();
        let mut answer = Vec::new();
        let dripping = async {
            while writer.write_all(b"a").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            // The server is gone, and the answer is being read.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            read = timeout(ANSWER_LIMIT, reader.read_to_end(&mut answer)) => { let _ = read.context("the server does not hang up")?; }
            () = dripping => {}
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// The status of an answer; `None` if there was none.
#[must_use]
pub fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ").or_else(|| answer.strip_prefix("HTTP/1.0 "))?.get(..3)?.parse().ok()
}

//! Waiting for a condition, with a deadline; never for a length of time.

use std::net::{TcpListener, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

const POLL: Duration = Duration::from_millis(10);

/// How long something may take that should happen soon, on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Looks again and again until `look` gives something, and returns that.
///
/// # Errors
/// After `limit`, with what was waited for and how the last look failed.
pub async fn eventually<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        let seen = look().await;
        if let Ok(Some(found)) = seen {
            return Ok(found);
        }
        if began.elapsed() >= limit {
            let late = || anyhow!("waited {} s in vain for {what}", limit.as_secs());
            return match seen {
                Ok(_) => Err(late()),
                Err(error) => Err(error).with_context(|| late().to_string()),
            };
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Looks again and again until `holds` says so.
///
/// # Errors
/// After `limit`, with what was waited for.
pub async fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    eventually(what, limit, async || Ok(holds().then_some(()))).await
}

/// Listens where a killed process did. Its last threads and children may hold its socket a moment longer.
///
/// # Errors
/// If the address doesn't become free.
pub async fn take_address(address: impl ToSocketAddrs) -> Result<TcpListener> {
    eventually("an address to be free", SOON, async || Ok(TcpListener::bind(&address).map(Some)?)).await
}

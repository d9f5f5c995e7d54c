//! Requests without a pause, spread over servers as a load balancer does: a server that says that it isn't
//! ready, or that refuses a connection, gets none. A request that was sent and got no answer was cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use reqwest::Method;
use tokio::sync::{Mutex, RwLock};
use tokio::task::JoinSet;

use crate::api::Api;

const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// A server that gets requests, and whether it is ready for them.
#[derive(Debug)]
struct Target {
    api: Api,
    ready: AtomicBool,
}

#[derive(Debug, Default)]
struct Shared {
    targets: RwLock<Vec<Arc<Target>>>,
    answered: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

/// Clients at work until it is ended or dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Begins with that many clients, each asking for one of `paths` in turn.
    #[must_use]
    pub fn begin(clients: usize, paths: &[&str]) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            let (shared, paths) = (shared.clone(), paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
            tasks.spawn(async move {
                for turn in client.. {
                    shared.ask(turn, &paths[turn % paths.len()]).await;
                }
            });
        }
        Self { shared, tasks }
    }

    /// Sends requests to this server too, when it is ready.
    pub async fn add(&mut self, api: &Api) {
        let target = Arc::new(Target { api: api.clone(), ready: AtomicBool::new(false) });
        self.shared.targets.write().await.push(target.clone());
        self.tasks.spawn(async move {
            loop {
                let ready = target.api.get("/readyz").await.is_ok_and(|answer| answer.status == 200);
                target.ready.store(ready, Ordering::SeqCst);
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        });
    }

    /// How many requests were answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Ends it; how many requests were answered.
    ///
    /// # Errors
    /// If a request was cut, or answered as if the server failed.
    pub async fn end(mut self) -> Result<u64> {
        self.tasks.shutdown().await;
        let wrong = self.shared.wrong.lock().await;
        match wrong.first() {
            None => Ok(self.answered()),
            Some(first) => bail!("{} requests of {} were cut, the first: {first}", wrong.len(), self.answered()),
        }
    }
}

impl Shared {
    async fn ask(&self, turn: usize, path: &str) {
        let ready: Vec<_> =
            self.targets.read().await.iter().filter(|target| target.ready.load(Ordering::SeqCst)).cloned().collect();
        if ready.is_empty() {
            return tokio::time::sleep(PROBE_INTERVAL).await;
        }
        let target = &ready[turn % ready.len()];
        match target.api.send(Method::GET, path, None).await {
            Ok(answer) if answer.status.is_server_error() => {
                self.wrong.lock().await.push(format!("GET {path}: {} {}", answer.status, answer.text));
            }
            Ok(_) => {
                self.answered.fetch_add(1, Ordering::SeqCst);
            }
            // Nobody listens there any more: it was never sent.
            Err(error) if error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect) => {
                target.ready.store(false, Ordering::SeqCst);
            }
            Err(error) => self.wrong.lock().await.push(format!("GET {path}: {error:#}")),
        }
    }
}

//! A way to the API server that a test can cut, or hold up before a request.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What is done before the next request is let through that begins with a text.
type Hook = Arc<Mutex<Option<(String, Box<dyn FnOnce() + Send>)>>>;

/// How many cuts there were, and whether the last one left all but watches alone.
type Cuts = (usize, bool);

pub struct Proxy {
    pub address: SocketAddr,
    hook: Hook,
    cuts: watch::Sender<Cuts>,
    watches_cut: Arc<AtomicUsize>,
    task: JoinHandle<()>,
    plain: Option<Plain>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

/// `kubectl proxy`: the API without TLS.
struct Plain(Child);

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Proxy {
    /// To `target`, byte for byte.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hook, cuts) = (Hook::default(), watch::Sender::new((0, false)));
        let watches_cut = Arc::new(AtomicUsize::new(0));
        let (kept, subscribe, counted) = (hook.clone(), cuts.clone(), watches_cut.clone());
        let task = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(carry(connection, target, kept.clone(), subscribe.subscribe(), counted.clone()));
            }
        });
        Self { address, hook, cuts, watches_cut, task, plain: None }
    }

    /// To the API without TLS, so that requests can be told apart.
    pub async fn plain() -> Self {
        let mut kubectl = Command::new("kubectl").args(["proxy", "--port=0"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(kubectl.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let target = line.trim().rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{line}"));
        let mut proxy = Self::to(target).await;
        proxy.plain = Some(Plain(kubectl));
        proxy
    }

    /// Ends every connection that is open now.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts = (cuts.0 + 1, false));
    }

    /// Ends every watch that is open now, and leaves other requests alone.
    pub fn cut_watches(&self) {
        self.cuts.send_modify(|cuts| *cuts = (cuts.0 + 1, true));
    }

    /// How many watches were ended.
    pub fn watches_cut(&self) -> usize {
        self.watches_cut.load(Ordering::Relaxed)
    }

    /// Does `action` before the next request is let through that begins with `beginning`.
    pub fn before(&self, beginning: &str, action: impl FnOnce() + Send + 'static) {
        *self.hook.lock().unwrap() = Some((beginning.to_owned(), Box::new(action)));
    }

    /// Whether the action is still to be done.
    pub fn is_armed(&self) -> bool {
        self.hook.lock().unwrap().is_some()
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr, hook: Hook, mut cut: watch::Receiver<Cuts>, counted: Arc<AtomicUsize>) {
    let mut watching = false;
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut from_server) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            _ = cut.changed() => {
                let watches_only = cut.borrow_and_update().1;
                if watching {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                if watching || !watches_only { return }
            }
            read = client.read(&mut from_client) => {
                let Ok(length @ 1..) = read else { return };
                let line = String::from_utf8_lossy(&from_client[..length]).lines().next().unwrap_or_default().to_owned();
                watching = line.contains("watch=true");
                let due = {
                    let mut hook = hook.lock().unwrap();
                    let is_due = hook.as_ref().is_some_and(|(beginning, _)| line.starts_with(beginning.as_str()));
                    if is_due { hook.take() } else { None }
                };
                if let Some((_, action)) = due {
                    tokio::task::spawn_blocking(action).await.unwrap();
                }
                if server.write_all(&from_client[..length]).await.is_err() { return }
            }
            read = server.read(&mut from_server) => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&from_server[..length]).await.is_err() { return }
            }
        }
    }
}

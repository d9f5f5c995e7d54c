//! The HTTP server: where it listens, and what a connection may cost.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum_server::accept::{Accept, DefaultAcceptor};
use futures::future::select_all;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::connections::{Place, Room};
use super::tls::Tls;
use crate::api::http::limits::hold_until_sent;
use crate::settings::{DEFAULT_LISTEN, ServerSettings};

/// Connections by TCP at once.
const MAX_CONNECTIONS: usize = 4096;
/// How many of them may come from one address, and from this machine: half, since many may stand behind one.
const PEERS_PART: usize = 2;
/// Connections by the Unix socket at once. Nobody who comes by TCP takes them.
const MAX_LOCAL_CONNECTIONS: usize = 256;
/// Files that the process may have open besides connections by TCP: the databases', workflows' and logs'.
const OTHER_FILES: usize = 1024 + MAX_LOCAL_CONNECTIONS;
/// As few connections as the operating system's limit of files may leave.
const MIN_CONNECTIONS: usize = 64;
/// How long a request's line and headers may take, and a connection may be idle.
const HEADER_LIMIT: Duration = Duration::from_secs(20);
/// More of a request's line and headers is never read. What is read is held against the API's own limit, which is smaller:
/// a connection's buffer is filled in steps, so that this one isn't exact.
const MAX_BUFFER_BYTES: usize = 64 * 1024;
/// How long a peer may leave what was sent unread, or unacknowledged. Then the connection ends.
const UNREAD_LIMIT: Duration = Duration::from_secs(30);
/// After the operating system refused a connection: it may have no more files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens where it was told to; at the usual place otherwise, or on a free port if that is taken.
///
/// # Errors
/// If the port can't be had, or others could read what goes over the wire.
pub async fn bind(settings: &ServerSettings) -> anyhow::Result<TcpListener> {
    let wanted = settings.listen.unwrap_or(DEFAULT_LISTEN);
    if !wanted.ip().is_loopback() && settings.tls.is_none() && !settings.allow_plaintext {
        bail!(
            "--listen {wanted}: without TLS others on the way would read the token and the passwords. Give --tls for a \
             certificate of toygres's own CA, or --tls-certificate and --tls-key for yours; or 127.0.0.1:PORT; or \
             --allow-plaintext where something in front of the server speaks TLS"
        );
    }
    let listener = match listen(wanted) {
        Ok(listener) => listener,
        Err(error) if settings.listen.is_none() && error.kind() == io::ErrorKind::AddrInUse => {
            info!(%wanted, "the usual port is taken by another program; listening on a free one");
            listen(SocketAddr::new(wanted.ip(), 0)).context("no free port to listen on")?
        }
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "the server can't listen on {wanted}; another program may have the port. Give another one with --listen, \
                     or leave it out"
                )
            });
        }
    };
    // Accepted connections inherit these.
    sockopt::set_tcp_nodelay(&listener, true)?;
    sockopt::set_socket_keepalive(&listener, true)?;
    sockopt::set_tcp_user_timeout(&listener, u32::try_from(UNREAD_LIMIT.as_millis())?)?;
    Ok(listener)
}

/// Where browsers and programs reach the server by TCP.
///
/// # Errors
/// If the listener has no address.
pub fn url(listener: &TcpListener, settings: &ServerSettings) -> anyhow::Result<String> {
    let mut address = listener.local_addr()?;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{address}"))
}

/// Listens with a queue for as many connections as there is room for: what the kernel's queue has no room for hangs.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As every server does: a connection that has just ended doesn't keep the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(MAX_CONNECTIONS as u32)
}

/// How many connections there is room for: each is an open file, and the usual soft limit is 1,024.
fn allow_connections() -> usize {
    let wanted = (MAX_CONNECTIONS + OTHER_FILES) as u64;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return MAX_CONNECTIONS;
    }
    limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit of open files stays low: there is room for fewer connections");
    }
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok()).unwrap_or(MAX_CONNECTIONS);
    files.saturating_sub(OTHER_FILES).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}

/// The HTTP server at work.
pub struct HttpServer {
    signals: Signals,
    listeners: Vec<JoinHandle<()>>,
    renewing: Option<JoinHandle<()>>,
}

/// What all connections hear of, and who waits for their ends.
#[derive(Clone, Default)]
struct Signals {
    /// No more connections, no more requests.
    stopping: CancellationToken,
    /// No more waiting for answers.
    aborting: CancellationToken,
    connections: TaskTracker,
}

impl HttpServer {
    /// Serves what comes in by TCP, over TLS where it is given, and by the Unix socket, each with routes of its own.
    pub fn start((tcp, routes): (TcpListener, Router), tls: Option<Tls>, (local, local_routes): (UnixListener, Router)) -> Self {
        let signals = Signals::default();
        let size = allow_connections();
        let room = Room::new(size, size / PEERS_PART);
        let local_room = Room::new(MAX_LOCAL_CONNECTIONS, MAX_LOCAL_CONNECTIONS);
        let local_serving =
            Serving { room: local_room, router: local_routes, acceptor: DefaultAcceptor::new(), signals: signals.clone() };
        let mut listeners = vec![tokio::spawn(local_serving.serve(local))];
        let renewing = match tls {
            Some(tls) => {
                let serving = Serving { room, router: routes, acceptor: tls.acceptor(), signals: signals.clone() };
                listeners.push(tokio::spawn(serving.serve(tcp)));
                Some(tokio::spawn(tls.keep_current()))
            }
            None => {
                let serving = Serving { room, router: routes, acceptor: DefaultAcceptor::new(), signals: signals.clone() };
                listeners.push(tokio::spawn(serving.serve(tcp)));
                None
            }
        };
        Self { signals, listeners, renewing }
    }

    /// Waits for an end that nobody asked for, and says why.
    pub async fn broke(&mut self) -> anyhow::Error {
        match select_all(&mut self.listeners).await.0 {
            Ok(()) => anyhow::anyhow!("the HTTP server ended"),
            Err(error) => anyhow::Error::new(error).context("the HTTP server broke"),
        }
    }

    /// Closes the listeners and idle connections, and ends the others when their requests are answered, or
    /// after `limit`: a client that stopped reading must not keep the server from stopping.
    ///
    /// A client that connects at this moment is refused or reset; it repeats its request.
    pub async fn stop(self, limit: Duration) {
        let Signals { stopping, aborting, connections } = self.signals;
        stopping.cancel();
        for listener in self.listeners {
            let _ = listener.await;
        }
        connections.close();
        if tokio::time::timeout(limit, connections.wait()).await.is_err() {
            aborting.cancel();
            connections.wait().await;
        }
        if let Some(renewing) = self.renewing {
            renewing.abort();
        }
    }
}

/// What connections come in at.
trait Listener: Send + Sync + 'static {
    type Stream: Send + 'static;

    /// The next connection, and whose it is.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, IpAddr)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, IpAddr)> {
        self.accept().await.map(|(stream, peer)| (stream, peer.ip()))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, IpAddr)> {
        // All are the socket's owner.
        self.accept().await.map(|(stream, _)| (stream, IpAddr::V4(Ipv4Addr::LOCALHOST)))
    }
}

/// How the connections of one listener are served.
struct Serving<A> {
    room: Arc<Room>,
    router: Router,
    acceptor: A,
    signals: Signals,
}

impl<A: Clone + Send + Sync + 'static> Serving<A> {
    /// Takes connections until the server stops.
    async fn serve<L>(self, listener: L)
    where
        L: Listener,
        A: Accept<L::Stream, ()>,
        A::Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A::Service: Send,
        A::Future: Send,
    {
        loop {
            // Who was let in by the operating system before the stop is served.
            let next = tokio::select! {
                biased;
                next = listener.next() => next,
                () = self.signals.stopping.cancelled() => return,
            };
            let (stream, peer) = match next {
                Ok(next) => next,
                Err(error) => {
                    debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = self.room.take(peer) else {
                debug!(%peer, "a connection was closed: all room of its peer is at work");
                continue;
            };
            let (acceptor, router, signals) = (self.acceptor.clone(), self.router.clone(), self.signals.clone());
            self.signals.connections.spawn(async move {
                let (ended, aborting) = (place.ended(), signals.aborting);
                let serving = serve_connection(stream, acceptor, router, place, signals.stopping);
                tokio::select! {
                    biased;
                    () = ended.cancelled() => debug!(%peer, "a connection made room for another one"),
                    () = aborting.cancelled() => {}
                    served = serving => if let Err(error) = served {
                        debug!(%peer, error, "a connection broke");
                    },
                }
            });
        }
    }
}

/// Serves the requests of one connection, until its peer closes it or the server stops.
async fn serve_connection<I, A>(
    stream: I,
    acceptor: A,
    router: Router,
    place: Place,
    stopping: CancellationToken,
) -> Result<(), String>
where
    A: Accept<I, ()>,
    A::Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = Arc::new(place);
    let (stream, _) = tokio::select! {
        biased;
        () = stopping.cancelled() => return Ok(()),
        accepted = acceptor.accept(stream, ()) => accepted.map_err(|error| error.to_string())?,
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let at_work = place.begin_request();
        let answering = router.clone().oneshot(request);
        // Of an answer that is no stream all is known by now: whether its peer reads it is no reason to keep the connection.
        async move { answering.await.map(|answer| hold_until_sent(answer, at_work)) }
    });
    // HTTP/1 alone: a connection carries one request at a time, so that counting connections and
    // requests bounds everything.
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(MAX_BUFFER_BYTES);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        served = connection.as_mut() => return served.map_err(|error| error.to_string()),
        () = stopping.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(|error| error.to_string())
}

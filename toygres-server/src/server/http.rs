//! The HTTP server's connections: where they are taken, what each may cost, how they end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::middleware::AddExtension;
use axum::{Extension, Router};
use axum_server::accept::{Accept, DefaultAcceptor};
use axum_server::service::SendService;
use axum_server::{Handle, Server};
use hyper::Request;
use hyper::body::Incoming;
use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tower::Layer;
use tracing::{debug, info, warn};

use super::tls::Tls;
use crate::settings::{DEFAULT_LISTEN, ServerSettings};

/// Connections at once. More wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// Files that the process may have open besides connections: the databases', workflows' and logs'.
const OTHER_FILES: u64 = 1024;
/// How long a request's line and headers may take, and a connection may be idle.
const HEADER_LIMIT: Duration = Duration::from_secs(20);
/// A request's line and headers together.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// How long a peer may leave what was sent unread, or unacknowledged. Then the connection ends.
const UNREAD_LIMIT: Duration = Duration::from_secs(30);

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
    let listener = match TcpListener::bind(wanted).await {
        Ok(listener) => listener,
        Err(error) if settings.listen.is_none() && error.kind() == io::ErrorKind::AddrInUse => {
            info!(%wanted, "the usual port is taken by another program; listening on a free one");
            TcpListener::bind(SocketAddr::new(wanted.ip(), 0)).await.context("no free port to listen on")?
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
    allow_files();
    Ok(listener)
}

/// Where commands on this machine reach the server.
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

/// Each connection is an open file, and the usual soft limit is 1,024.
fn allow_files() {
    let wanted = MAX_CONNECTIONS as u64 + OTHER_FILES;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit of open files stays low: with many connections, new ones wait");
    }
}

/// The HTTP server at work.
pub struct HttpServer {
    handle: Handle<SocketAddr>,
    serving: JoinHandle<io::Result<()>>,
    renewing: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Serves what comes in at `listener`, over TLS where it is given.
    pub fn start(listener: TcpListener, router: Router, tls: Option<Tls>) -> Self {
        let handle = Handle::new();
        let (serving, renewing) = match tls {
            Some(tls) => {
                let serving = tokio::spawn(serve(listener, router, tls.acceptor(), handle.clone()));
                (serving, Some(tokio::spawn(tls.keep_current())))
            }
            None => (tokio::spawn(serve(listener, router, DefaultAcceptor::new(), handle.clone())), None),
        };
        Self { handle, serving, renewing }
    }

    /// Waits for an end that nobody asked for, and says why.
    pub async fn broke(&mut self) -> anyhow::Error {
        match (&mut self.serving).await {
            Ok(Ok(())) => anyhow::anyhow!("the HTTP server ended"),
            Ok(Err(error)) => anyhow::Error::new(error).context("the HTTP server broke"),
            Err(error) => anyhow::Error::new(error).context("the HTTP server broke"),
        }
    }

    /// Closes the listener and idle connections, and ends the others when their requests are answered, or
    /// after `limit`: a client that stopped reading must not keep the server from stopping.
    ///
    /// A client that connects at this moment is refused or reset; it repeats its request.
    pub async fn stop(mut self, limit: Duration) {
        self.handle.graceful_shutdown(Some(limit));
        let _ = (&mut self.serving).await;
        if let Some(renewing) = self.renewing {
            renewing.abort();
        }
    }
}

async fn serve<A>(listener: TcpListener, router: Router, acceptor: A, handle: Handle<SocketAddr>) -> io::Result<()>
where
    A: Accept<TcpStream, Connection> + Clone + Send + Sync + 'static,
    A::Stream: AsyncRead + AsyncWrite + Unpin + Send,
    A::Service: SendService<Request<Incoming>> + Send,
    A::Future: Send,
{
    // HTTP/1 alone: a connection carries one request at a time, so that counting connections and
    // requests bounds everything.
    let mut server = Server::<SocketAddr>::from_listener(listener).acceptor(acceptor).handle(handle).http1_only();
    server = server.accept_error_handler(|peer, error| debug!(?peer, %error, "a connection was not accepted"));
    server.http_builder().http1().header_read_timeout(HEADER_LIMIT).max_buf_size(MAX_HEADER_BYTES);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = tower::service_fn(move |_: SocketAddr| {
        let (slots, router) = (slots.clone(), router.clone());
        async move {
            let slot = slots.acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(Extension(Arc::new(slot)).layer(router))
        }
    });
    server.serve(connections).await
}

/// What serves one connection. It holds the connection's slot until it is dropped.
type Connection = AddExtension<Router, Arc<OwnedSemaphorePermit>>;

//! How requests travel: over TCP, over TLS, or to the server on this machine by its Unix socket.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Full;
use hyper::Uri;
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, Response};
use hyper_tls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tower_service::Service;

use super::ClientError;
use crate::local_socket::LocalConnection;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(super) enum Transport {
    Plain(legacy::Client<HttpConnector, Full<Bytes>>),
    Tls(legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
    Local(legacy::Client<LocalConnector, Full<Bytes>>),
}

impl Transport {
    /// Over TCP, in the clear.
    pub(super) fn plain() -> Self {
        Self::Plain(builder().build(tcp()))
    }

    /// Over TLS, where the server is known by this CA in PEM, or else the system's.
    pub(super) fn tls(ca_certificate: Option<&str>) -> Result<Self, ClientError> {
        let mut tcp = tcp();
        tcp.enforce_http(false);
        Ok(Self::Tls(builder().build(HttpsConnector::from((tcp, tls_connector(ca_certificate)?.into())))))
    }

    /// By the Unix socket in that folder.
    pub(super) fn local(folder: PathBuf) -> Self {
        Self::Local(builder().build(LocalConnector { folder: folder.into() }))
    }

    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, legacy::Error> {
        match self {
            Self::Plain(client) => client.request(request),
            Self::Tls(client) => client.request(request),
            Self::Local(client) => client.request(request),
        }
        .await
    }
}

fn builder() -> legacy::Builder {
    legacy::Client::builder(TokioExecutor::new())
}

fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    connector
}

fn tls_connector(ca_certificate: Option<&str>) -> Result<native_tls::TlsConnector, ClientError> {
    let mut builder = native_tls::TlsConnector::builder();
    if let Some(pem) = ca_certificate {
        let none = |words: &str| ClientError::Unsendable(format!("the CA's certificate is none in PEM: {words}"));
        let certificates = native_tls::Certificate::stack_from_pem(pem.as_bytes()).map_err(|error| none(&error.to_string()))?;
        if certificates.is_empty() {
            return Err(none("there is no certificate"));
        }
        builder.disable_built_in_roots(true);
        // A CA and its successor.
        for certificate in certificates {
            builder.add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|error| ClientError::Unsendable(format!("TLS can't be set up: {error}")))
}

/// Connects to the socket in a folder, whatever host a request names. Each connection is proved anew.
#[derive(Debug, Clone)]
pub(super) struct LocalConnector {
    folder: Arc<std::path::Path>,
}

impl Service<Uri> for LocalConnector {
    type Response = LocalStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<LocalStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let folder = self.folder.clone();
        Box::pin(async move {
            let connection = LocalConnection::open(&folder).await.map_err(|error| io::Error::other(error.to_string()))?;
            Ok(LocalStream(TokioIo::new(connection.stream)))
        })
    }
}

/// A connection by the socket, as hyper takes it.
pub(super) struct LocalStream(TokioIo<UnixStream>);

impl Connection for LocalStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for LocalStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for LocalStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

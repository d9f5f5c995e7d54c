//! Connections to the server of an instance, whose superuser can have it send what he likes: of what comes, only so much is
//! read, and no memory is set aside for what is only announced.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use native_tls::{Certificate, TlsConnector, TlsConnectorBuilder};
use postgres_native_tls::TlsConnector as TlsOfPostgres;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, Config, NoTls};
use tokio_util::task::AbortOnDropHandle;

/// In one connection. What toygres asks for takes kilobytes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// How long a connection may take to be there.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_COUNT: u32 = 3;
/// How long what was sent may be without an acknowledgement.
#[cfg(target_os = "linux")]
const ACKNOWLEDGE_LIMIT_MILLISECONDS: u32 = 15_000;
/// How long a server may take to close a session.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Where a server listens.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    Tcp {
        host: String,
        port: u16,
    },
    /// The path of a Unix socket.
    Socket(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A server, and how to log in to it.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: Address,
    /// Role, password, database, whether TLS is a must. Its hosts and ports aren't looked at.
    pub(crate) config: Config,
    /// `None`: without TLS.
    pub(crate) tls: Option<TlsConnector>,
}

/// Why a server could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Unreachable(#[from] io::Error),
    #[error("{}", in_words(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

impl Error {
    /// What the server itself refused.
    pub(crate) fn refusal(&self) -> Option<&DbError> {
        match self {
            Self::Unreachable(_) => None,
            Self::Postgres(error) => error.as_db_error(),
        }
    }
}

/// With the cause, which the driver leaves out.
fn in_words(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(refusal), _) => refusal.message().to_owned(),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

/// TLS that trusts these CAs alone, which are in PEM.
pub(crate) fn trusting(ca_pem: &[u8]) -> Result<TlsConnectorBuilder, native_tls::Error> {
    let mut tls = TlsConnector::builder();
    tls.disable_built_in_roots(true);
    for certificate in Certificate::stack_from_pem(ca_pem)? {
        tls.add_root_certificate(certificate);
    }
    Ok(tls)
}

/// A session of one's own. Dropped, it is cut off, whatever the server is at.
pub(crate) struct Connection {
    pub(crate) client: Client,
    driver: AbortOnDropHandle<()>,
}

impl Target {
    pub(crate) async fn connect(&self) -> Result<Connection, Error> {
        match &self.address {
            Address::Tcp { host, port } => {
                let stream = connect(host, *port).await?;
                stream.set_nodelay(true)?;
                self.log_in(stream, host).await
            }
            Address::Socket(path) => self.log_in(UnixStream::connect(path).await?, "").await,
        }
    }

    /// Whether it takes connections: the process that it starts for this one sees that nobody speaks, and ends without a word in
    /// the log. (One that is stopped, or has no room for a process, leaves it to the kernel's queue.)
    pub(crate) async fn knock(&self) -> io::Result<()> {
        let Address::Tcp { host, port } = &self.address else { return Ok(()) };
        let mut stream = connect(host, *port).await?;
        stream.shutdown().await?;
        let mut said = [0; 256];
        // What speaks nevertheless is no postmaster.
        match stream.read(&mut said).await? {
            0 => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    async fn log_in(&self, stream: impl AsyncRead + AsyncWrite + Send + 'static, host: &str) -> Result<Connection, Error> {
        let (read, write) = tokio::io::split(stream);
        let stream = tokio::io::join(read.take(MAX_BYTES), write);
        Ok(match &self.tls {
            Some(tls) => driven(self.config.connect_raw(stream, TlsOfPostgres::new(tls.clone(), host)).await?),
            None => driven(self.config.connect_raw(stream, NoTls).await?),
        })
    }
}

/// A connection that breaks when nobody acknowledges it any more: its machine is gone, or a network policy in between. (One that
/// hangs acknowledges.)
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect((host, port))).await??;
    set_socket_keepalive(&stream, true)?;
    set_tcp_keepidle(&stream, KEEPALIVE_INTERVAL)?;
    set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    set_tcp_keepcnt(&stream, KEEPALIVE_COUNT)?;
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(&stream, ACKNOWLEDGE_LIMIT_MILLISECONDS)?;
    Ok(stream)
}

fn driven<S, T>((client, mut connection): (Client, tokio_postgres::Connection<S, T>)) -> Connection
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let driver = tokio::spawn(async move {
        // What comes unasked is a notice: a tenant's words, which nobody needs.
        while let Some(message) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let Err(error) = message {
                tracing::debug!(error = in_words(&error), "a connection to an instance was cut off");
                return;
            }
        }
    });
    Connection { client, driver: AbortOnDropHandle::new(driver) }
}

impl Connection {
    /// Says goodbye, so that the server ends the session now.
    pub(crate) async fn close(self) {
        let Self { client, driver } = self;
        drop(client);
        // What isn't closed by then is cut off.
        if let Ok(Err(error)) = tokio::time::timeout(CLOSE_LIMIT, driver).await {
            tracing::error!(%error, "the driver of a connection failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// The most memory that this process has had, in bytes.
    #[cfg(target_os = "linux")]
    fn peak_memory_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim_end_matches("kB").trim();
        kilobytes.parse::<u64>().unwrap() * 1024
    }

    #[tokio::test]
    async fn a_server_that_sends_without_end_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            // An error of two gigabytes.
            client.write_all(&[b'E', 0x7f, 0xff, 0xff, 0xf0]).await.unwrap();
            let (chunk, mut sent) = (vec![b'x'; 64 * 1024], 0_u64);
            while client.write_all(&chunk).await.is_ok() {
                sent += chunk.len() as u64;
                assert!(sent < 64 * MAX_BYTES, "it is read without end");
            }
        });
        let mut config = Config::new();
        config.user("x");
        let target = Target { address: Address::Tcp { host: "127.0.0.1".into(), port }, config, tls: None };
        assert!(target.connect().await.is_err());
        server.await.unwrap();
        #[cfg(target_os = "linux")]
        assert!(peak_memory_bytes() < 1 << 30, "memory is set aside for what is announced");
    }
}

//! Connections to the server of an instance, whose superuser can have it send what he likes: of what comes, only so much is
//! read. The driver keeps a message until it is whole, however long it is said to be.

use std::io;

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixListener};

/// In one connection. What toygres asks for takes kilobytes.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Connects as these options say.
pub(crate) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    if options.get_socket().is_some() {
        // The control database, which is nobody's but toygres's.
        return PgConnection::connect_with(options).await;
    }
    let far = TcpStream::connect((options.get_host(), options.get_port())).await?;
    far.set_nodelay(true)?;
    // In a folder that nobody else can open. It is needed until the connection is there.
    let folder = tempfile::Builder::new().prefix("toygres-").tempdir()?;
    let listener = UnixListener::bind(folder.path().join(format!(".s.PGSQL.{}", options.get_port())))?;
    tokio::spawn(async move {
        if let Err(error) = relay(&listener, far).await {
            tracing::debug!(%error, "a connection to an instance was cut off");
        }
    });
    PgConnection::connect_with(&options.clone().socket(folder.path())).await
}

/// Passes on what either says, until one ends or the server has sent too much.
async fn relay(listener: &UnixListener, far: TcpStream) -> io::Result<()> {
    let (near, _) = listener.accept().await?;
    let ((mut from_client, mut to_client), (from_server, mut to_server)) = (near.into_split(), far.into_split());
    let mut from_server = from_server.take(MAX_BYTES);
    tokio::select! {
        sent = tokio::io::copy(&mut from_client, &mut to_server) => sent.map(drop),
        received = tokio::io::copy(&mut from_server, &mut to_client) => match received? {
            MAX_BYTES => Err(io::Error::other("the server sent more than toygres reads")),
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgSslMode;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

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
        let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port).ssl_mode(PgSslMode::Disable);
        connect(&options.username("x")).await.unwrap_err();
        server.await.unwrap();
    }
}

//! Where connections come in, closed so that nobody who got in is thrown out, but who comes in the moment between the last
//! look and the close.
//!
//! The system accepts connections for a listening socket and queues them; when the socket is closed, it
//! resets those that nobody has taken yet. A client whose connection was made, and whose request was
//! sent, would lose it. So the queue is emptied in the moment before.

use std::future::pending;
use std::io;
use std::net::SocketAddr;

use axum_server::{AddrListener, Address};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// A listening socket that can be closed.
#[derive(Debug)]
pub struct Door {
    open: Mutex<Open>,
    address: SocketAddr,
    closing: CancellationToken,
    closed: CancellationToken,
}

#[derive(Debug)]
enum Open {
    /// Whoever comes is let in.
    Yes(TcpListener),
    /// Whoever waits already is let in.
    ForThoseWhoWait(std::net::TcpListener),
    No,
}

impl Door {
    /// Opens it. From when `closing` is cancelled it closes, which `closed` tells.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn new(listener: TcpListener, closing: CancellationToken, closed: CancellationToken) -> io::Result<Self> {
        Ok(Self { address: listener.local_addr()?, open: Mutex::new(Open::Yes(listener)), closing, closed })
    }

    /// The next connection; none comes any more once it is closed.
    pub async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let mut open = self.open.lock().await;
        loop {
            match &*open {
                Open::Yes(listener) => tokio::select! {
                    biased;
                    () = self.closing.cancelled() => {
                        if let Open::Yes(listener) = std::mem::replace(&mut *open, Open::No) {
                            *open = Open::ForThoseWhoWait(listener.into_std()?);
                        }
                    }
                    accepted = listener.accept() => return accepted,
                },
                Open::ForThoseWhoWait(listener) => match listener.accept() {
                    Ok((stream, peer)) => {
                        stream.set_nonblocking(true)?;
                        return Ok((TcpStream::from_std(stream)?, peer));
                    }
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                    // At once: who comes in between is lost.
                    Err(_) => *open = Open::No,
                },
                Open::No => {
                    self.closed.cancel();
                    return pending().await;
                }
            }
        }
    }
}

/// Who connects to a [`Door`].
#[derive(Debug, Clone)]
pub struct Peer(SocketAddr);

impl Address for Peer {
    type Stream = TcpStream;
    type Listener = Door;
}

impl AddrListener<TcpStream, Peer> for Door {
    async fn bind_to(Peer(address): Peer) -> io::Result<Self> {
        Self::new(TcpListener::bind(address).await?, CancellationToken::new(), CancellationToken::new())
    }

    async fn accept_stream(&self) -> io::Result<(TcpStream, Peer)> {
        self.next().await.map(|(stream, peer)| (stream, Peer(peer)))
    }

    fn get_local_addr(&self) -> io::Result<Peer> {
        Ok(Peer(self.address))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    /// Clients that connect without a pause while it closes: each is answered or refused, but for the few that may come in
    /// the moment between the last look and the close.
    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_waits_already_is_served_when_it_closes() {
        let (closing, closed) = (CancellationToken::new(), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Arc::new(Door::new(listener, closing.clone(), closed.clone()).unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = door.next().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    let _ = stream.read_exact(&mut byte).await;
                    let _ = stream.write_all(&byte).await;
                });
            }
        });
        let (answered, mut answers) = tokio::sync::mpsc::channel(1);
        let mut clients = JoinSet::new();
        for _ in 0..16 {
            let (answered, closing) = (answered.clone(), closing.clone());
            clients.spawn(async move {
                let mut count = 0;
                while let Ok(mut stream) = TcpStream::connect(address).await {
                    let mut byte = [7];
                    let exchange = async {
                        stream.write_all(&byte).await?;
                        stream.read_exact(&mut byte).await
                    };
                    if let Err(error) = exchange.await {
                        assert!(closing.is_cancelled(), "cut off before it closed: {error}");
                        return 1;
                    }
                    count += 1;
                    if count == 5 {
                        answered.send(()).await.unwrap();
                    }
                }
                0
            });
        }
        for _ in 0..16 {
            timeout(Duration::from_secs(30), answers.recv()).await.unwrap().unwrap();
        }
        closing.cancel();
        timeout(Duration::from_secs(30), closed.cancelled()).await.unwrap();
        let lost: u32 = clients.join_all().await.into_iter().sum();
        assert!(lost < 8, "{lost} of 16 were let in and not answered");
    }
}

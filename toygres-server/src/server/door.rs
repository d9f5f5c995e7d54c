//! Where connections come in, closed so that nobody who got in is thrown out.
//!
//! The system makes connections for a listening socket by itself and queues them; when the socket is
//! closed, it resets those that nobody has taken yet. A client whose connection was made, and whose
//! request was sent, would lose it. So before it closes, the socket lets nobody begin a connection any
//! more, and whoever has begun is let in. A client that comes in that moment hears nothing, asks again
//! after a second, as TCP does, and is refused: it knows that its request was not taken.
//!
//! Only Linux can be told to let nobody begin. Elsewhere, who comes between the last look and the close
//! is lost.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum_server::{AddrListener, Address};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// Who has begun a connection has made it by then: the way to the other side of the world and back.
const HANDSHAKE: Duration = Duration::from_millis(300);

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
    /// Whoever has begun already is let in. Until that moment they may still come, and then nobody more than wait.
    ForThoseWhoWait(TcpListener, Instant),
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
                            let_nobody_begin(&listener);
                            *open = Open::ForThoseWhoWait(listener, Instant::now() + HANDSHAKE);
                        }
                    }
                    accepted = listener.accept() => return accepted,
                },
                Open::ForThoseWhoWait(listener, until) => match timeout_at(*until, listener.accept()).await {
                    Ok(accepted) => return accepted,
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

/// From now on the system drops what would begin a connection, before it answers it.
#[cfg(target_os = "linux")]
fn let_nobody_begin(listener: &TcpListener) {
    use socket2::{SockFilter, SockRef};
    // Classic BPF (the kernel's Documentation/networking/filter.rst), on the segment from TCP's header on.
    // What begins a connection has SYN (0x02) and no ACK (0x10) among the flags in byte 13 (RFC 9293, 3.1).
    const NO_SYN: [SockFilter; 5] = [
        SockFilter::new(0x30, 0, 0, 13),       // ldb [13]
        SockFilter::new(0x54, 0, 0, 0x12),     // and #0x12
        SockFilter::new(0x15, 0, 1, 0x02),     // jeq #0x02, next, the one after
        SockFilter::new(0x06, 0, 0, 0),        // drop
        SockFilter::new(0x06, 0, 0, u32::MAX), // take all of it
    ];
    if let Err(error) = SockRef::from(listener).attach_filter(&NO_SYN) {
        tracing::warn!(%error, "the system takes no filter for connections: who connects while the server closes may be cut off");
    }
}

#[cfg(not(target_os = "linux"))]
fn let_nobody_begin(_: &TcpListener) {}

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

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    /// Clients that connect without a pause while it closes: each is answered or refused.
    #[cfg(target_os = "linux")]
    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_got_in_is_served_when_it_closes() {
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
                        panic!("cut off, closing: {}: {error}", closing.is_cancelled());
                    }
                    count += 1;
                    if count == 5 {
                        answered.send(()).await.unwrap();
                    }
                }
            });
        }
        for _ in 0..16 {
            timeout(Duration::from_secs(30), answers.recv()).await.unwrap().unwrap();
        }
        closing.cancel();
        timeout(Duration::from_secs(30), closed.cancelled()).await.unwrap();
        timeout(Duration::from_secs(30), clients.join_all()).await.unwrap();
    }
}

//! A way to an instance from outside the cluster: a port on this machine, forwarded through the API
//! server.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use toygres_models::{Failure, FailureKind, InstanceKey};

use super::identity::{MemberNames, PORT};
use crate::k8s_client::K8sClient;

/// How long a connection may take to end once nobody wants it any more: cut off, it would be an error in the server's log.
const GRACE: Duration = Duration::from_secs(2);

/// A port on 127.0.0.1 that leads to an instance as long as this value lives.
pub struct Forward {
    address: SocketAddr,
    closing: DropGuard,
    connections: TaskTracker,
}

impl Forward {
    /// Opens one on `port`; 0 takes any free one. The instance isn't called before somebody connects.
    ///
    /// # Errors
    /// If the port can't be had.
    pub async fn open(client: &K8sClient, key: &InstanceKey, port: u16) -> Result<Self, Failure> {
        let taken = |error: std::io::Error| {
            Failure::permanent(
                FailureKind::Exhausted,
                format!("could not listen on 127.0.0.1:{port}: {error}; choose another port"),
            )
        };
        let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        let closing = CancellationToken::new();
        let connections = TaskTracker::new();
        tokio::spawn(serve(listener, client.clone(), key.clone(), closing.clone(), connections.clone()));
        Ok(Self { address, closing: closing.drop_guard(), connections })
    }

    /// Ends it, when what was sent through it has arrived. Dropped, it ends by itself as long as the program runs.
    pub async fn close(self) {
        let Self { closing, connections, .. } = self;
        drop(closing);
        connections.close();
        connections.wait().await;
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(listener: TcpListener, client: K8sClient, key: InstanceKey, closing: CancellationToken, connections: TaskTracker) {
    let pod = MemberNames::first(&key).pod;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => return,
        };
        let Ok((connection, _)) = accepted else { continue };
        let (pods, pod, client, closing) =
            (client.api::<Pod>(key.namespace.as_str()), pod.clone(), client.clone(), closing.clone());
        connections.spawn(async move {
            let cut_off = async {
                closing.cancelled().await;
                tokio::time::sleep(GRACE).await;
            };
            tokio::select! {
                carried = carry(connection, &client, &pods, &pod) => if let Err(failure) = carried {
                    tracing::warn!(pod = %pod, error = %failure, "a forwarded connection ended");
                },
                () = cut_off => {}
            }
        });
    }
}

async fn carry(mut connection: TcpStream, client: &K8sClient, pods: &Api<Pod>, pod: &str) -> Result<(), Failure> {
    let mut forwarder = client.call(format!("forward a port to the Pod {pod}"), pods.portforward(pod, &[PORT])).await?;
    if let Some(mut stream) = forwarder.take_stream(PORT) {
        // Either side may leave at any time; that is no failure.
        let _ = tokio::io::copy_bidirectional(&mut connection, &mut stream).await;
    }
    forwarder.abort();
    Ok(())
}

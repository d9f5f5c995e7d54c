//! A way to an instance from outside the cluster: a port on this machine, forwarded through the API
//! server.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use toygres_models::{Failure, FailureKind, InstanceKey};

use super::identity::{MemberNames, PORT};
use crate::k8s_client::K8sClient;

/// A port on 127.0.0.1 that leads to an instance as long as this value lives.
pub struct Forward {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
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
        let task = tokio::spawn(serve(listener, client.clone(), key.clone()));
        Ok(Self { address, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(listener: TcpListener, client: K8sClient, key: InstanceKey) {
    let pod = MemberNames::first(&key).pod;
    // Ends with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((connection, _)) = accepted else { continue };
                let (pods, pod, client) = (client.api::<Pod>(key.namespace.as_str()), pod.clone(), client.clone());
                connections.spawn(async move {
                    if let Err(failure) = carry(connection, &client, &pods, &pod).await {
                        tracing::warn!(pod = %pod, error = %failure, "a forwarded connection ended");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
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

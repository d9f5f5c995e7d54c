//! The way from this program to an instance: the address that the server gives, or, where that is
//! known inside a cluster only, a port on this machine that is forwarded through the API server.

use std::fs::DirBuilder;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::DirBuilderExt;

use secrecy::ExposeSecret;
use toygres_activities::k8s_client::K8sClient;
use toygres_activities::platform::kubernetes::Forward;
use toygres_client::Client;
use toygres_client::resources::Connection;
use toygres_models::whole_file::{Durability, write_whole};
use toygres_models::{InstanceKey, PlatformName, ServerAddress};

use crate::error::CliError;
use crate::session::Session;
use crate::settings::Settings;

/// A way to an instance, open as long as this value lives.
pub struct Route {
    /// How to connect, from this machine.
    pub connection: Connection,
    forward: Option<Forward>,
}

impl Route {
    /// Whether it leads through a port on this machine.
    pub fn is_forwarded(&self) -> bool {
        self.forward.is_some()
    }

    /// Ends it, when what was sent through it has arrived.
    pub async fn close(self) {
        if let Some(forward) = self.forward {
            forward.close().await;
        }
    }
}

/// As whom somebody logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// The instance's owner.
    Owner,
    /// Its superuser, with a new password.
    Superuser,
}

impl Login {
    /// The one that a flag asks for.
    pub fn asked(superuser: bool) -> Self {
        if superuser { Self::Superuser } else { Self::Owner }
    }
}

/// The way that the server gives. Where the host is known inside the cluster only, it's of no use
/// here: see [`forwarded`].
pub async fn direct(session: &mut Session<'_>, key: &InstanceKey, login: Login) -> Result<Route, CliError> {
    let ask = async |client: &Client| match login {
        Login::Owner => client.connection(key).await,
        Login::Superuser => client.superuser_connection(key).await,
    };
    let mut connection = session.call(ask).await?;
    if let Some(until) = connection.valid_until {
        session.ui.note(format_args!("The superuser's password lets in until {}.", until.format("%F %T UTC")));
    }
    bring_certificate(session.settings, &mut connection)?;
    Ok(Route { connection, forward: None })
}

/// The way that works from here: direct, or forwarded where it has to be.
pub async fn any(session: &mut Session<'_>, key: &InstanceKey, login: Login) -> Result<Route, CliError> {
    let route = direct(session, key, login).await?;
    let in_the_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() && std::env::var_os("KUBECONFIG").is_none();
    if !route.connection.internal || in_the_cluster {
        return Ok(route);
    }
    forward(session.settings, key, route.connection, 0).await
}

/// A way through a port of this machine; 0 takes any that is free.
pub async fn forwarded(session: &mut Session<'_>, key: &InstanceKey, login: Login, port: u16) -> Result<Route, CliError> {
    let route = direct(session, key, login).await?;
    if route.connection.platform != PlatformName::Kubernetes {
        return Err(CliError::failed(format!(
            "{} runs on the platform {} and needs no forwarding: `toygres connect {}` says where",
            key.name, route.connection.platform, key.name
        )));
    }
    forward(session.settings, key, route.connection, port).await
}

async fn forward(settings: &Settings, key: &InstanceKey, mut connection: Connection, port: u16) -> Result<Route, CliError> {
    let explain = |failure: toygres_models::Failure| {
        CliError::failed(format!("{} is reached from here through the cluster's API server, and {failure}", key.name))
            .hint("the kubeconfig is KUBECONFIG or ~/.kube/config; --kube-context chooses its context")
    };
    let client = K8sClient::connect(&settings.server.kubernetes.cluster).await.map_err(explain)?;
    if let Some(wanted) = &connection.cluster_id
        && let Some(found) = client.cluster_id().await.map_err(explain)?
        && *wanted != found
    {
        return Err(CliError::failed(format!("{} runs on another cluster than this kubeconfig leads to", key.name))
            .hint("--kube-context chooses a context, KUBECONFIG the file"));
    }
    let forward = Forward::open(&client, key, port).await.map_err(explain)?;
    // Certificates are for this address too.
    connection.host = forward.address().ip().to_string();
    connection.port = forward.address().port();
    rewrite(&mut connection);
    Ok(Route { connection, forward: Some(forward) })
}

/// Makes the CA's certificate a file of this machine, where the server is on another one.
fn bring_certificate(settings: &Settings, connection: &mut Connection) -> Result<(), CliError> {
    let Some(certificate) = &connection.ca_certificate else { return Ok(()) };
    let is_here = |path: &String| std::fs::read_to_string(path).is_ok_and(|here| here == *certificate);
    if connection.ca_certificate_path.as_ref().is_some_and(is_here) {
        return Ok(());
    }
    let mut hasher = DefaultHasher::new();
    certificate.hash(&mut hasher);
    let folder = settings.server.state_dir.join("certificates");
    let path = folder.join(format!("{:016x}.crt", hasher.finish()));
    let write = || {
        DirBuilder::new().recursive(true).mode(0o755).create(&folder)?;
        write_whole(&path, certificate.as_bytes(), 0o644, None, Durability::Repairable)
    };
    let shown = path.display().to_string();
    if !is_here(&shown) {
        write().map_err(|error| {
            CliError::failed(format!("the CA's certificate can't be written to {shown}: {error}"))
                .hint("choose another folder with --state-dir or TOYGRES_STATE_DIR")
        })?;
    }
    connection.ca_certificate_path = Some(shown);
    rewrite(connection);
    Ok(())
}

/// The URI of the connection's parts.
fn rewrite(connection: &mut Connection) {
    let address = ServerAddress {
        host: connection.host.clone(),
        port: connection.port,
        ca_certificate_path: connection.ca_certificate_path.clone(),
    };
    let uri = address.uri(&connection.user, &connection.database);
    connection.uri = uri.with_secret(&connection.password.as_str().into()).expose_secret().to_owned();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_certificate_from_elsewhere_becomes_a_file_here_once() {
        let folder = tempfile::tempdir().unwrap();
        let settings = testing::settings(folder.path());
        let mut connection = testing::connection("s3cret");
        connection.ca_certificate = Some("PEM".into());
        connection.ca_certificate_path = Some("/not/here/ca.crt".into());
        bring_certificate(&settings, &mut connection).unwrap();
        let path = connection.ca_certificate_path.clone().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "PEM");
        assert!(connection.uri.contains("certificates") && connection.uri.contains("s3cret"), "{}", connection.uri);
        let before = connection.uri.clone();
        bring_certificate(&settings, &mut connection).unwrap();
        assert_eq!(connection.uri, before);
    }
}

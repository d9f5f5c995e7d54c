//! The Unix socket by which commands on this machine reach the server: in a folder that only its user can enter.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use axum::routing::get;
use axum::{Json, Router};
use rustix::fs::Mode;
use tokio::net::UnixListener;
use toygres_client::local_socket::SocketFolder;
use toygres_client::resources::LocalServer;

/// The socket, bound. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct LocalSocket {
    folder: SocketFolder,
}

/// Binds the socket. The caller holds the state directory's lock: what another server left there is nobody's.
///
/// # Errors
/// If the folder is somebody else's, or the file system has no sockets.
pub fn bind(path: &Path) -> anyhow::Result<(UnixListener, LocalSocket)> {
    let shown = path.display();
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("the folder {shown} can't be made"));
    }
    let folder = SocketFolder::open(path).with_context(|| format!("{shown} can't be used as a folder"))?;
    let found = std::fs::symlink_metadata(path).with_context(|| format!("{shown} can't be looked at"))?;
    let me = rustix::process::geteuid().as_raw();
    ensure!(found.uid() == me, "the folder {shown} belongs to another user (uid {}; you are {me})", found.uid());
    // The folder keeps others away from the socket before that has its own mode.
    std::fs::set_permissions(path, Permissions::from_mode(0o700)).with_context(|| format!("{shown} can't be made private"))?;
    let socket = folder.socket();
    match std::fs::remove_file(&socket) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("{} can't be removed", socket.display())),
    }
    let listener = match UnixListener::bind(folder.address()) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            bail!("{} is too long for a socket's address; choose a shorter --state-dir", socket.display())
        }
        Err(error) => return Err(error).with_context(|| format!("no socket can be made at {}", socket.display())),
    };
    rustix::fs::chmod(folder.address(), Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("{} can't be made private", socket.display()))?;
    Ok((listener, LocalSocket { folder }))
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // If it can't be, the next server does it.
        let _ = std::fs::remove_file(self.folder.address());
    }
}

/// The API's routes, and one for what the server is. Who may open the socket is its user, so that needs no token.
pub fn routes(api: Router, about: LocalServer) -> Router {
    api.route("/server", get(async || Json(about)))
}

#[cfg(test)]
mod tests {
    use toygres_client::local_socket::LocalConnection;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_and_what_a_killed_server_left_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("api");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let (killed, left) = bind(&path).unwrap();
        drop(killed);
        std::mem::forget(left);
        let (_listener, socket) = bind(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("socket"))), (0o700, 0o600));
        LocalConnection::open(&path).await.unwrap();
        drop(socket);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_link_in_the_folders_place_is_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let (elsewhere, path) = (place.path().join("elsewhere"), place.path().join("api"));
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}

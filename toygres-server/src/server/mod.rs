//! The server: started, run until it is told to stop, stopped so that nothing is lost.

mod log;
mod orphans;
mod platform_events;
mod ports;
mod start;
mod state_files;
pub mod waking_provider;
pub mod workflows;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use chrono::Utc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::api;
use crate::settings::{DEFAULT_LISTEN, ServerRecord, Settings, StartLine};
use state_files::{Locking, ServerLock};

/// Runs the server until SIGTERM or SIGINT.
///
/// In the background it says how its start goes on standard output, a [`StartLine`] a line.
///
/// # Errors
/// If it can't start; nothing is left behind but what can be used by the next start. Another
/// server on the same state directory is an error too.
pub async fn run(settings: Settings, background: bool) -> anyhow::Result<()> {
    let announce = Announcer { background };
    let result = serve(&settings, &announce).await;
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "the server could not run");
        announce.say(&StartLine::Error { message: format!("{error:#}") });
    }
    result
}

/// Tells whoever started the server in the background how it goes. That one may be gone: then
/// nobody is told, which is no error.
struct Announcer {
    background: bool,
}

impl Announcer {
    fn say(&self, line: &StartLine) {
        if self.background
            && let Ok(json) = serde_json::to_string(line)
        {
            let mut stdout = std::io::stdout().lock();
            let _ = writeln!(stdout, "{json}").and_then(|()| stdout.flush());
        }
    }

    fn starting(&self, message: &str) {
        info!("{message}");
        self.say(&StartLine::Starting { message: message.to_owned() });
    }
}

async fn serve(settings: &Settings, announce: &Announcer) -> anyhow::Result<()> {
    // Signals are caught from the start: one that comes meanwhile stops the server in good order.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let state_dir = settings.state();
    state_files::create_state_dir(state_dir.path())?;
    let lock = match state_files::lock(state_dir.path())? {
        Locking::Ours(lock) => lock,
        Locking::Taken => {
            announce.say(&StartLine::Locked { message: None });
            bail!("another server runs on {} already; `toygres server status` tells of it", state_dir.path().display());
        }
    };
    log::start(state_dir, announce.background)?;
    info!(version = crate::VERSION, state_dir = %state_dir.path().display(), "starting");
    let listener = bind(settings).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let control_plane = tokio::select! {
        started = start::start(settings, |message| announce.starting(message)) => started?,
        () = told_to_stop(&mut terminate, &mut interrupt) => bail!("the server was told to stop while it started"),
    };
    state_files::write_record(
        state_dir,
        &ServerRecord { pid: std::process::id(), url: url.clone(), version: crate::VERSION.into(), started_at: Utc::now() },
    )?;
    info!(url, "ready");
    announce.say(&StartLine::Ready { url: url.clone() });
    if !announce.background {
        let token = match (&settings.token, &settings.kubernetes.own_secret) {
            (Some(_), _) => "its token is the one that it was given".to_owned(),
            (None, Some(name)) => format!("its token is in the Secret {name}"),
            (None, None) => format!("its token is in {}", state_dir.token_path().display()),
        };
        eprintln!("toygres server {} is ready at {url}; {token}", crate::VERSION);
    }

    let stopping = control_plane.stopping.clone();
    let server = axum::serve(listener, api::router(control_plane.state.clone()))
        .with_graceful_shutdown(async move { stopping.cancelled().await });
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        () = told_to_stop(&mut terminate, &mut interrupt) => {}
        ended = &mut server => ended.context("the HTTP server broke")?.context("the HTTP server broke")?,
    }
    info!("stopping: requests are finished, instances keep running");
    // A client that stopped reading must not keep the server from stopping.
    control_plane.stopping.cancel();
    if tokio::time::timeout(std::time::Duration::from_secs(5), &mut server).await.is_err() {
        server.abort();
    }
    control_plane.parts.stop(&control_plane.state).await;
    std::fs::remove_file(state_dir.server_record_path()).context("the server's record could not be removed")?;
    info!("stopped");
    drop::<ServerLock>(lock);
    Ok(())
}

async fn told_to_stop(terminate: &mut tokio::signal::unix::Signal, interrupt: &mut tokio::signal::unix::Signal) {
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM"),
        _ = interrupt.recv() => info!("SIGINT"),
    }
}

/// Listens where it was told to; at the usual place otherwise, or on a free port if that is taken.
async fn bind(settings: &Settings) -> anyhow::Result<TcpListener> {
    let wanted = settings.listen.unwrap_or(DEFAULT_LISTEN);
    if !wanted.ip().is_loopback() && !settings.allow_plaintext {
        bail!(
            "--listen {wanted}: the server has no TLS of its own yet, and others on the way would read its token and the \
             passwords; give 127.0.0.1:PORT, or --allow-plaintext where something in front of it speaks TLS"
        );
    }
    match TcpListener::bind(wanted).await {
        Ok(listener) => Ok(listener),
        Err(error) if settings.listen.is_none() && error.kind() == std::io::ErrorKind::AddrInUse => {
            info!(%wanted, "the usual port is taken by another program; listening on a free one");
            TcpListener::bind(SocketAddr::new(wanted.ip(), 0)).await.context("no free port to listen on")
        }
        Err(error) => Err(error).with_context(|| {
            format!("the server can't listen on {wanted}; another program may have the port. Give another one with --listen, or leave it out")
        }),
    }
}

/// What the running server consists of.
struct ControlPlane {
    state: Arc<api::AppState>,
    /// Cancelled when the server is told to stop.
    stopping: CancellationToken,
    parts: start::Parts,
}

//! The server: started, run until it is told to stop, stopped so that nothing is lost.

mod connections;
mod http;
mod local_socket;
mod log;
mod reaper;
mod start;
mod state_files;
mod tls;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use chrono::Utc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::api;
use crate::api::http::limits::ANSWER_LIMIT;
use crate::api::state::AppState;
use crate::settings::{LogFormat, ServerSettings, StartLine};
use http::HttpServer;
use state_files::Taken;
use tls::Tls;
use toygres_activities::platform::certificates::CertificateAuthority;
use toygres_client::resources::LocalServer;

/// When no request has come for this long, nobody sends any to a server that stops.
const DRAIN_PAUSE: Duration = Duration::from_millis(200);
/// How long somebody may go on sending them.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long requests that were accepted may take to end: a little longer than any may take.
const REQUEST_LIMIT: Duration = ANSWER_LIMIT.saturating_add(Duration::from_secs(1));

/// Runs the server until SIGTERM or SIGINT, after which instances run on unless the settings say otherwise, or until SIGUSR1,
/// with which those on this machine stop too.
///
/// In the background it says how its start goes on standard output, a [`StartLine`] a line.
///
/// # Errors
/// If it can't start; nothing is left behind but what can be used by the next start. Another
/// server on the same state directory is an error too.
pub async fn run(settings: ServerSettings, background: bool) -> anyhow::Result<()> {
    let announce = Announcer { background };
    let result = serve(&settings, &announce).await;
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "the server could not run");
        announce.say(&StartLine::Error { message: format!("{error:#}") });
    }
    result
}

/// Tells the process that started the server in the background how it goes. That process may be gone: then
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

async fn serve(settings: &ServerSettings, announce: &Announcer) -> anyhow::Result<()> {
    // Signals are caught from the start: one that comes meanwhile stops the server in good order.
    let mut signals = Signals::catch()?;
    tokio::spawn(reaper::keep_reaping());
    let state_dir = settings.state();
    state_files::create_state_dir(state_dir.path())?;
    let lock = state_files::lock(state_dir).inspect_err(|error| {
        if error.is::<Taken>() {
            announce.say(&StartLine::Locked { message: None });
        }
    })?;
    log::start(&state_dir.log_path(), announce.background, settings.log_format)?;
    info!(version = crate::VERSION, state_dir = %state_dir.path().display(), "starting");
    tls::check(settings.tls.as_ref())?;
    let listener = http::bind(settings).await?;
    let url = http::url(&listener, settings)?;
    let control_plane = tokio::select! {
        started = start::start(settings, |message| announce.starting(message)) => started?,
        _ = signals.stop() => bail!("the server was told to stop while it started"),
    };
    let open = || {
        let tls =
            settings.tls.as_ref().map(|tls| Tls::open(tls, control_plane.ca.clone(), listener.local_addr()?)).transpose()?;
        // Only now: who finds the socket finds a server that answers.
        anyhow::Ok((tls, local_socket::bind(&state_dir.socket_folder())?))
    };
    let (tls, (local, socket)) = match open() {
        Ok(opened) => opened,
        Err(error) => {
            control_plane.parts.stop(&control_plane.state, settings.stop_instances).await;
            return Err(error);
        }
    };
    let about = LocalServer { url: url.clone(), version: crate::VERSION.into(), started_at: Utc::now() };
    let routes = api::router(control_plane.state.clone());
    let local_routes = local_socket::routes(routes.clone(), about);
    let mut server = HttpServer::start((listener, routes), tls, (local, local_routes));
    info!(url, "ready");
    announce.say(&StartLine::Ready { url: url.clone() });
    if !announce.background {
        let token = match (&settings.token, &settings.kubernetes.own_secret) {
            (Some(_), _) => "its token is the one that it was given".to_owned(),
            (None, Some(name)) => format!("its token is in the Secret {name}"),
            (None, None) => format!("its token is in {}", state_dir.token_path().display()),
        };
        match settings.log_format {
            LogFormat::Text => eprintln!("toygres server {} is ready at {url}; {token}", crate::VERSION),
            // Every line is an object.
            LogFormat::Json => info!("{token}"),
        }
    }

    let stop_instances = tokio::select! {
        with_instances = signals.stop() => with_instances || settings.stop_instances,
        error = server.broke() => {
            control_plane.parts.stop(&control_plane.state, settings.stop_instances).await;
            return Err(error);
        }
    };
    info!(stop_instances, "stopping: requests are finished");
    // Commands on this machine wait for the next server from now on; those that are connected are answered.
    drop(socket);
    // From now on it isn't ready, and closes every connection with an answer. A load balancer sees that and
    // sends its requests elsewhere; requests are served until none have come for a moment.
    control_plane.stopping.cancel();
    let traffic = &control_plane.state.traffic;
    let _ = tokio::time::timeout(DRAIN_LIMIT, traffic.pause(DRAIN_PAUSE)).await;
    server.stop(REQUEST_LIMIT).await;
    control_plane.parts.stop(&control_plane.state, stop_instances).await;
    info!("stopped");
    // Until here no other server may start.
    drop(lock);
    Ok(())
}

/// The signals that tell a server to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    with_instances: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            with_instances: signal(SignalKind::user_defined1())?,
        })
    }

    /// Returns when one comes; whether the instances on this machine are to stop too.
    async fn stop(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => info!("SIGTERM"),
            _ = self.interrupt.recv() => info!("SIGINT"),
            _ = self.with_instances.recv() => {
                info!("SIGUSR1");
                return true;
            }
        }
        false
    }
}

/// What the running server consists of.
struct ControlPlane {
    state: Arc<AppState>,
    /// What signs the API's own certificate.
    ca: Arc<CertificateAuthority>,
    /// Cancelled when the server is told to stop.
    stopping: CancellationToken,
    parts: start::Parts,
}

//! The order in which the server's parts start, and stop.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use duroxide::providers::Provider;
use duroxide_pg::{PostgresProvider, ProviderConfig};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use toygres_activities::platform::Platform;
use toygres_activities::platform::certificates::{CertificateAuthority, Signs};
use toygres_activities::platform::kubernetes::KubernetesPlatform;
use toygres_activities::platform::local::{LocalHost, LocalPlatform};
use toygres_activities::registry::create_activity_registry_with;
use toygres_activities::secrets::FileSecretStore;
use toygres_activities::{Context, Place, Platforms, Swept};
use toygres_models::store::Subject;
use toygres_models::{PlatformName, StorageSize, Store};
use toygres_orchestrations::registry::create_orchestration_registry;

use super::{ControlPlane, state_files};
use crate::api::http::traffic::Traffic;
use crate::api::observations::Observations;
use crate::api::state::AppState;
use crate::settings::ServerSettings;
use crate::workers::clock::Clock;
use crate::workers::event_feed::EventFeed;
use crate::workers::places::Places;
use crate::workers::platform_events::Recorders;
use crate::workers::ports::StorePorts;
use crate::workers::waking_provider::WakingProvider;
use crate::workers::workflows::Workflows;
use crate::workers::{housekeeping, orphans, recorder, repair, sweeps};

/// The schema of the workflow engine's tables.
const WORKFLOW_SCHEMA: &str = "duroxide";
/// Connections of the metadata store's pool.
const STORE_CONNECTIONS: u32 = 16;

/// Of the control database, where it is in the cluster; it can be grown, and needs some kilobytes for an operation.
const CONTROL_STORAGE: StorageSize = StorageSize::SMALLEST;
/// How often a platform that has instances and can't be opened is tried again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(5);
/// How long the metadata store's statements may take to end when the server stops.
const POOL_CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What has to be stopped.
pub struct Parts {
    own_database: Option<Arc<LocalHost>>,
    platforms: Platforms,
    recorders: Recorders,
    tasks: Vec<JoinHandle<()>>,
}

/// Starts everything but HTTP. If that fails, the control database that it started is stopped.
pub async fn start(settings: &ServerSettings, say: impl Fn(&str)) -> anyhow::Result<ControlPlane> {
    let host = match settings.platforms.contains(&PlatformName::Local) {
        true => Some(LocalHost::open(settings.local_config()).await?),
        false => None,
    };
    let own_database = host.clone().filter(|_| settings.database_url.is_none());
    let started = start_on(host, settings, say).await;
    if started.is_err() {
        stop_own_database(own_database.as_deref()).await;
    }
    started
}

async fn start_on(host: Option<Arc<LocalHost>>, settings: &ServerSettings, say: impl Fn(&str)) -> anyhow::Result<ControlPlane> {
    // Opened now where the server's own things are in the cluster, later otherwise.
    let is_needed = settings.kubernetes.own_secret.is_some() || (host.is_none() && settings.database_url.is_none());
    let cluster = match is_needed {
        true => Some(KubernetesPlatform::connect(settings.kubernetes.clone()).await?),
        false => None,
    };
    let ca = match cluster.as_ref().and_then(|cluster| cluster.api_ca()) {
        Some(ca) => ca,
        None => Arc::new(CertificateAuthority::open(&settings.state_dir, Signs::Api)?),
    };
    let token = match (&settings.token, cluster.as_ref().and_then(|cluster| cluster.token())) {
        (Some(token), _) | (None, Some(token)) => token.clone(),
        (None, None) => state_files::token(settings.state())?,
    };
    let database_url = match (&settings.database_url, &host, &cluster) {
        (Some(url), ..) => url.clone(),
        (None, Some(host), _) => {
            say("starting the control database");
            own_database(host).await?
        }
        (None, None, Some(cluster)) => {
            say("starting the control database in the cluster");
            cluster.start_control(CONTROL_STORAGE).await.context("the control database could not be started")?
        }
        (None, None, None) => anyhow::bail!("no platform is served: give --platforms"),
    };
    let store = open_store(&database_url).await?;
    let clock = Arc::new(Clock::new(store.pool().clone()));
    // Before anything is written: an older server can't be started on a newer schema.
    clock.compare().await.context("the server was not started, and the database is as it was")?;
    let places = Places::default();
    say("bringing the metadata store up to date");
    let migrated = async { store.migrate().await.context("the metadata store can't be used; nothing was started") };
    let ((), provider) = tokio::try_join!(migrated, connect_provider(&database_url, &clock, &places))?;

    let recorder = recorder::install()?;
    let recorders = Recorders::new(store.clone());
    let mut tasks = vec![tokio::spawn(recorder::keep_up(recorder.clone()))];
    let mut platforms = Platforms::none();
    for name in settings.platforms.iter().copied() {
        places.add(name.as_str());
        match (name, &host) {
            (PlatformName::Local, Some(host)) => {
                places.add(host.machine_id());
                say("finding the instances");
                let place = serve_local(settings, host, &store, &recorders).await?;
                platforms = platforms.with(name, move || {
                    let place = place.clone();
                    async move { Ok(place) }
                });
            }
            (PlatformName::Local, None) => {}
            (PlatformName::Kubernetes, _) => {
                platforms = serve_kubernetes(platforms, settings, cluster.clone(), &store, &recorders, &places)
            }
        }
    }
    let (swept, sweeps_stopping) = (Swept::default(), CancellationToken::new());
    let context = Context {
        platforms: platforms.clone(),
        store: Some(store.clone()),
        ready_timeout: settings.ready_timeout,
        health_interval: settings.health_interval,
        swept: swept.clone(),
        stopping: sweeps_stopping.clone(),
    };
    let activities = create_activity_registry_with(context);
    let workflows = Arc::new(Workflows::start(provider, activities, store.clone(), sweeps_stopping).await);
    tasks.push(tokio::spawn(workflows.clone().sweep_forever()));
    tasks.push(tokio::spawn(sweeps::keep_sweeping(platforms.clone(), workflows.clone())));
    tasks.push(tokio::spawn(open_where_needed(platforms.clone(), store.clone())));
    tasks.push(tokio::spawn(repair::keep_repairing(platforms.clone(), store.clone(), workflows.clone())));
    tasks.push(tokio::spawn(clock.clone().keep_comparing()));
    let stopping = CancellationToken::new();
    let changes = store.listen().await?;
    let feed = Arc::new(EventFeed::new(store.clone()));
    tasks.push(tokio::spawn(feed.clone().tell(changes.subscribe(Subject::Events)).await?));
    tasks.push(tokio::spawn(housekeeping::keep_forgetting(store.clone(), workflows.clone(), settings.event_retention)));
    let own_database = host.clone().filter(|_| settings.database_url.is_none());
    let parts = Parts { own_database, platforms: platforms.clone(), recorders, tasks };
    let state = Arc::new(AppState {
        store,
        clock,
        platforms,
        host,
        observations: Observations::default(),
        session_looks: Default::default(),
        workflows,
        changes,
        feed,
        token,
        hands_out_superuser: settings.hands_out_superuser,
        recorder,
        swept,
        traffic: Arc::new(Traffic::new(stopping.clone())),
        stopping: stopping.clone(),
        kube_context: settings.kubernetes.cluster.context.clone(),
    });
    Ok(ControlPlane { state, ca, stopping, parts })
}

/// Starts the control database on this machine; how it is reached.
async fn own_database(host: &Arc<LocalHost>) -> anyhow::Result<SecretString> {
    // The first instance's directory is initialised beside the control database's.
    host.warm_pool();
    let control = host.start_control().await.context("the control database could not be started")?;
    let socket_dir = control.socket_dir.to_string_lossy().into_owned();
    let socket_dir = utf8_percent_encode(&socket_dir, NON_ALPHANUMERIC);
    let (user, port) = (control.user, control.port);
    let password = utf8_percent_encode(control.password.expose_secret(), NON_ALPHANUMERIC);
    Ok(format!("postgres://{user}:{password}@localhost:{port}/postgres?host={socket_dir}&sslmode=disable").into())
}

/// Stops the control database cleanly, where the server has one of its own on this machine.
async fn stop_own_database(host: Option<&LocalHost>) {
    if let Some(host) = host
        && let Err(error) = host.stop_control().await
    {
        tracing::error!(%error, "the control database could not be stopped; the next start finds it running");
    }
}

/// Serves this machine: keeps its instances running, keeps data directories ready and writes down what happens.
async fn serve_local(
    settings: &ServerSettings,
    host: &Arc<LocalHost>,
    store: &Store,
    recorders: &Recorders,
) -> Result<Place, toygres_models::Failure> {
    let platform = LocalPlatform::new(host.clone(), Arc::new(StorePorts(store.clone())));
    let secrets = Arc::new(FileSecretStore::new(settings.state_dir.join("secrets")));
    let place = Place::new(platform.clone(), secrets);
    let events = platform.events();
    platform.supervise().await?;
    orphans::forget(&place, store, Duration::ZERO).await?;
    host.warm_pool();
    recorders.begin(platform, events);
    recorders.spawn(orphans::keep_forgetting(place.clone(), store.clone()));
    Ok(place)
}

/// Serves Kubernetes too. What happens there is written down from when it is opened.
fn serve_kubernetes(
    platforms: Platforms,
    settings: &ServerSettings,
    cluster: Option<Arc<KubernetesPlatform>>,
    store: &Store,
    recorders: &Recorders,
    places: &Places,
) -> Platforms {
    let (config, store, recorders, places) = (settings.kubernetes.clone(), store.clone(), recorders.clone(), places.clone());
    platforms.with(PlatformName::Kubernetes, move || {
        let (config, cluster) = (config.clone(), cluster.clone());
        let (recorders, store, places) = (recorders.clone(), store.clone(), places.clone());
        async move {
            let platform = match cluster {
                Some(cluster) => cluster,
                None => KubernetesPlatform::connect(config).await?,
            };
            // Credentials that are refused are no reason to keep it open.
            if let Some(cluster_id) = platform.cluster_id().await? {
                places.add(cluster_id);
            }
            recorders.begin(platform.clone(), platform.events());
            let secrets = Arc::new(platform.secrets());
            let place = Place::new(platform, secrets);
            recorders.spawn(orphans::keep_forgetting(place.clone(), store.clone()));
            Ok(place)
        }
    })
}

/// Opens the platforms that have instances, so that what happens to them is seen. One that can't be
/// opened now (a kubeconfig that is gone) doesn't keep the others from being served.
async fn open_where_needed(platforms: Platforms, store: Store) {
    let mut last_reported = String::new();
    loop {
        let opened = async {
            for name in store.platforms_in_use().await? {
                platforms.get(name).await?;
            }
            Ok::<_, toygres_models::Failure>(())
        };
        match opened.await {
            Ok(()) => return,
            Err(failure) if failure.message == last_reported => {}
            Err(failure) => {
                tracing::warn!(error = %failure, "a platform that has instances can't be used; it is tried again");
                last_reported = failure.message;
            }
        }
        tokio::time::sleep(REOPEN_INTERVAL).await;
    }
}

impl Parts {
    /// Stops everything but HTTP; with `stop_instances` also the servers on this machine, which the next start starts again.
    pub async fn stop(self, state: &AppState, stop_instances: bool) {
        for task in &self.tasks {
            task.abort();
        }
        self.recorders.stop();
        state.workflows.shutdown().await;
        for place in self.platforms.opened() {
            place.platform.shutdown();
            if stop_instances {
                place.platform.stop_servers().await;
            }
        }
        // A statement at work, or waiting for a lock, must not keep the server from stopping.
        if tokio::time::timeout(POOL_CLOSE_LIMIT, state.store.pool().close()).await.is_err() {
            tracing::warn!("a statement is still at work in the metadata store; stopping without its answer");
        }
        stop_own_database(self.own_database.as_deref()).await;
    }
}

async fn open_store(url: &SecretString) -> anyhow::Result<Store> {
    // The parser's error would repeat the URL, which may hold a password.
    let options = PgConnectOptions::from_str(url.expose_secret())
        .map_err(|_| anyhow::anyhow!("the database URL can't be read; give postgresql://user:password@host:port/database"))?;
    Store::open(options, STORE_CONNECTIONS).await.context("the metadata store can't be used; nothing was started")
}

async fn connect_provider(url: &SecretString, clock: &Arc<Clock>, places: &Places) -> anyhow::Result<Arc<dyn Provider>> {
    let mut config = ProviderConfig::url(url.expose_secret());
    config.schema_name = Some(WORKFLOW_SCHEMA.into());
    let provider = PostgresProvider::new_with_config(config).await.context("the workflow engine can't use the database")?;
    Ok(Arc::new(WakingProvider::new(Arc::new(provider), create_orchestration_registry(), clock.clone(), places.clone())))
}

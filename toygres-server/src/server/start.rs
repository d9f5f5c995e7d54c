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
use toygres_activities::Context;
use toygres_activities::platform::Platform;
use toygres_activities::platform::local::{LocalHost, LocalPlatform};
use toygres_activities::registry::create_activity_registry_with;
use toygres_activities::secrets::{FileSecretStore, SecretStore};
use toygres_models::Store;
use toygres_models::store::StoreError;

use super::ControlPlane;
use super::platform_events::record_forever;
use super::ports::StorePorts;
use super::waking_provider::WakingProvider;
use super::workflows::Workflows;
use crate::api::AppState;
use crate::settings::Settings;

/// The schema of the workflow engine's tables.
const WORKFLOW_SCHEMA: &str = "duroxide";
/// Connections of the metadata store's pool.
const STORE_CONNECTIONS: u32 = 16;

/// How long the metadata store's statements may take to end when the server stops.
const POOL_CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What has to be stopped.
pub struct Parts {
    host: Arc<LocalHost>,
    platform: Arc<LocalPlatform>,
    tasks: Vec<JoinHandle<()>>,
}

/// Starts everything but HTTP. If that fails, the control database that it started is stopped.
pub async fn start(settings: &Settings, token: SecretString, say: impl Fn(&str)) -> anyhow::Result<ControlPlane> {
    let host = LocalHost::open(settings.local_config()).await?;
    let started = start_on(&host, settings, token, say).await;
    if started.is_err() {
        stop_own_database(settings, &host).await;
    }
    started
}

async fn start_on(
    host: &Arc<LocalHost>,
    settings: &Settings,
    token: SecretString,
    say: impl Fn(&str),
) -> anyhow::Result<ControlPlane> {
    let database_url = match &settings.database_url {
        Some(url) => url.clone(),
        None => {
            say("starting the control database");
            // The first instance's directory is initialised beside the control database's.
            host.warm_pool();
            let control = host.start_control().await.context("the control database could not be started")?;
            let socket_dir = control.socket_dir.to_string_lossy().into_owned();
            let socket_dir = utf8_percent_encode(&socket_dir, NON_ALPHANUMERIC);
            format!("postgres://{}@localhost:{}/postgres?host={socket_dir}&sslmode=disable", control.user, control.port).into()
        }
    };
    say("bringing the metadata store up to date");
    let (store, provider) = tokio::try_join!(connect_store(&database_url), connect_provider(&database_url))?;

    let platform = LocalPlatform::new(host.clone(), Arc::new(StorePorts(store.clone())));
    let secrets = FileSecretStore::new(settings.state_dir.join("secrets"));
    forget_orphans(&secrets, &store).await?;
    let secrets: Arc<dyn SecretStore> = Arc::new(secrets);
    let events = platform.events();
    say("taking up the instances");
    platform.supervise().await?;
    let recorder = tokio::spawn(record_forever(store.clone(), platform.clone(), events));

    let activities = create_activity_registry_with(Context {
        platform: platform.clone(),
        secrets: secrets.clone(),
        store: Some(store.clone()),
    });
    let workflows = Arc::new(Workflows::start(provider, activities, store.clone()).await);
    let sweeper = tokio::spawn(workflows.clone().sweep_forever());
    let stopping = CancellationToken::new();
    let changes = store.listen().await?;
    let state = Arc::new(AppState {
        store,
        platform: platform.clone(),
        host: host.clone(),
        secrets,
        workflows,
        changes,
        token,
        stopping: stopping.clone(),
    });
    Ok(ControlPlane { state, stopping, parts: Parts { host: host.clone(), platform, tasks: vec![recorder, sweeper] } })
}

/// Stops the control database cleanly, where the server has one of its own.
async fn stop_own_database(settings: &Settings, host: &LocalHost) {
    if settings.database_url.is_none()
        && let Err(error) = host.stop_control().await
    {
        tracing::error!(%error, "the control database could not be stopped; the next start finds it running");
    }
}

impl Parts {
    /// Stops everything but HTTP and the instances.
    pub async fn stop(self, settings: &Settings, state: &AppState) {
        for task in &self.tasks {
            task.abort();
        }
        state.workflows.shutdown().await;
        self.platform.shutdown().await;
        // A statement at work, or waiting for a lock, must not keep the server from stopping.
        if tokio::time::timeout(POOL_CLOSE_LIMIT, state.store.pool().close()).await.is_err() {
            tracing::warn!("a statement is still at work in the metadata store; stopping without its answer");
        }
        stop_own_database(settings, &self.host).await;
    }
}

/// Forgets the passwords of creations that were cut off before they were written down. Nobody else
/// works on the state directory, and requests aren't served yet.
async fn forget_orphans(secrets: &FileSecretStore, store: &Store) -> anyhow::Result<()> {
    for key in secrets.keys().await? {
        match store.instance(&key).await {
            Ok(_) => {}
            Err(StoreError::InstanceNotFound(_)) => {
                tracing::info!(instance.name = %key, "forgetting the password of an instance that never came to be");
                secrets.remove(&key).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn connect_store(url: &SecretString) -> anyhow::Result<Store> {
    // The parser's error would repeat the URL, which may hold a password.
    let options = PgConnectOptions::from_str(url.expose_secret())
        .map_err(|_| anyhow::anyhow!("the database URL can't be read; give postgresql://user:password@host:port/database"))?;
    Store::connect(options, STORE_CONNECTIONS).await.context("the metadata store can't be used; nothing was started")
}

async fn connect_provider(url: &SecretString) -> anyhow::Result<Arc<dyn Provider>> {
    let mut config = ProviderConfig::url(url.expose_secret());
    config.schema_name = Some(WORKFLOW_SCHEMA.into());
    let provider = PostgresProvider::new_with_config(config).await.context("the workflow engine can't use the database")?;
    Ok(Arc::new(WakingProvider::new(Arc::new(provider))))
}

//! What activities work with: a platform, a place for passwords, a metadata store.

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use duroxide::ActivityContext;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::OnceCell;
use toygres_models::{Failure, FailureKind, InstanceKey, InstanceState, OperationKind, Store};
use uuid::Uuid;

use crate::platform::Platform;
use crate::platform::kubernetes::{KubernetesConfig, KubernetesPlatform};
use crate::platform::local::{DirectoryPorts, LocalConfig, LocalHost, LocalPlatform};
use crate::secrets::{FileSecretStore, SecretStore};

/// What activities work with. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Where instances run.
    pub platform: Arc<dyn Platform>,
    /// Where their passwords rest.
    pub secrets: Arc<dyn SecretStore>,
    /// Where operations and instances are on record. Only update-metadata needs it; with it, the
    /// other activities note their steps there.
    pub store: Option<Store>,
}

impl Context {
    /// The platform that `TOYGRES_PLATFORM` names (`local`, which is the default, or `kubernetes`), set
    /// up by its own variables (see [`LocalConfig::from_environment`] and
    /// [`KubernetesConfig::from_environment`]), and the metadata store at `DATABASE_URL` where that
    /// is set.
    ///
    /// # Errors
    /// If a variable can't be understood, the platform can't be used, or the database can't be
    /// reached.
    pub async fn from_environment() -> Result<Self, Failure> {
        let (platform, secrets): (Arc<dyn Platform>, Arc<dyn SecretStore>) = match platform_name()?.as_str() {
            "kubernetes" => {
                let platform = KubernetesPlatform::connect(KubernetesConfig::from_environment()?).await?;
                let secrets = Arc::new(platform.secrets());
                (platform, secrets)
            }
            _ => {
                let config = LocalConfig::from_environment()?;
                let secrets = Arc::new(FileSecretStore::new(config.state_dir.join("secrets")));
                let host = LocalHost::open(config).await?;
                let ports = Arc::new(DirectoryPorts::new(&host));
                (LocalPlatform::new(host, ports), secrets)
            }
        };
        let store = match std::env::var("DATABASE_URL") {
            Ok(url) => {
                let options = PgConnectOptions::from_str(&url).map_err(|_| {
                    // The error would repeat the URL and with it the password.
                    Failure::permanent(FailureKind::InvalidInput, "DATABASE_URL is not a postgresql:// URI")
                })?;
                Some(Store::connect(options, 4).await?)
            }
            Err(_) => None,
        };
        Ok(Self { platform, secrets, store })
    }

    /// The operation that an activity belongs to, where its workflow's id is one and a store is
    /// there to know it.
    pub(crate) fn operation(&self, ctx: &ActivityContext) -> Option<(&Store, Uuid)> {
        let id = Uuid::parse_str(ctx.instance_id()).ok()?;
        self.store.as_ref().map(|store| (store, id))
    }

    /// Fails if a delete has overtaken the creation that the activity belongs to.
    pub(crate) async fn still_wanted(&self, ctx: &ActivityContext, key: &InstanceKey) -> Result<(), Failure> {
        let Some((store, id)) = self.operation(ctx) else { return Ok(()) };
        match store.instance_state(id).await? {
            Some((OperationKind::Create, InstanceState::Deleting | InstanceState::Deleted)) => {
                Err(Failure::permanent(FailureKind::Superseded, format!("{key} is being deleted; its creation was given up")))
            }
            _ => Ok(()),
        }
    }
}

/// `local` or `kubernetes`.
fn platform_name() -> Result<String, Failure> {
    match std::env::var("TOYGRES_PLATFORM") {
        Ok(name) if ["local", "kubernetes"].contains(&name.as_str()) => Ok(name),
        Ok(name) if !name.is_empty() => Err(Failure::permanent(
            FailureKind::InvalidInput,
            format!("TOYGRES_PLATFORM={name:?} can't be used; give local or kubernetes"),
        )),
        _ => Ok("local".to_owned()),
    }
}

type MakeContext = dyn Fn() -> Pin<Box<dyn Future<Output = Result<Context, Failure>> + Send>> + Send + Sync;

/// A context that is there, or that the first activity makes.
#[derive(Clone)]
pub(crate) struct LazyContext {
    cell: Arc<OnceCell<Context>>,
    make: Arc<MakeContext>,
}

impl LazyContext {
    pub(crate) fn ready(context: Context) -> Self {
        Self {
            cell: Arc::new(OnceCell::new_with(Some(context.clone()))),
            make: Arc::new(move || {
                let context = context.clone();
                Box::pin(async move { Ok(context) })
            }),
        }
    }

    pub(crate) fn from_environment() -> Self {
        Self { cell: Arc::new(OnceCell::new()), make: Arc::new(|| Box::pin(Context::from_environment())) }
    }

    /// The context; a failure to make it is not kept, the next activity tries again.
    pub(crate) async fn get(&self) -> Result<Context, Failure> {
        self.cell.get_or_try_init(|| (self.make)()).await.cloned()
    }
}

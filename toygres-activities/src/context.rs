//! What activities work with: platforms, places for passwords, a metadata store.

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use duroxide::ActivityContext;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::OnceCell;
use toygres_models::store::Instance;
use toygres_models::{Failure, FailureKind, InstanceState, Invalid, OperationKind, PlatformName, Store};
use uuid::Uuid;

use crate::platform::kubernetes::{KubernetesConfig, KubernetesPlatform};
use crate::platform::local::{DirectoryPorts, LocalConfig, LocalHost, LocalPlatform};
use crate::platforms::{Place, Platforms};
use crate::secrets::FileSecretStore;

/// What activities work with. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Where instances run, and their passwords rest.
    pub platforms: Platforms,
    /// Where operations and instances are on record. Only update-metadata needs it; with it, the
    /// other activities note their steps there, and work on the platform that the record names.
    pub store: Option<Store>,
}

/// What the store knows of the operation that an activity belongs to.
pub(crate) struct Order {
    kind: OperationKind,
    /// The instance that it is about.
    pub(crate) instance: Instance,
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
        let place = match platform_name()? {
            PlatformName::Kubernetes => {
                let platform = KubernetesPlatform::connect(KubernetesConfig::from_environment()?).await?;
                let secrets = Arc::new(platform.secrets());
                Place { platform, secrets }
            }
            PlatformName::Local => {
                let config = LocalConfig::from_environment()?;
                let secrets = Arc::new(FileSecretStore::new(config.state_dir.join("secrets")));
                let host = LocalHost::open(config).await?;
                let ports = Arc::new(DirectoryPorts::new(&host));
                Place { platform: LocalPlatform::new(host, ports), secrets }
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
        Ok(Self { platforms: Platforms::one(place), store })
    }

    /// The operation that an activity belongs to, where its workflow's id is one and a store is
    /// there to know it.
    pub(crate) fn operation(&self, ctx: &ActivityContext) -> Option<(&Store, Uuid)> {
        let id = Uuid::parse_str(ctx.instance_id()).ok()?;
        self.store.as_ref().map(|store| (store, id))
    }

    /// What is on record of the operation that an activity belongs to.
    pub(crate) async fn order(&self, ctx: &ActivityContext) -> Result<Option<Order>, Failure> {
        let Some((store, id)) = self.operation(ctx) else { return Ok(None) };
        Ok(store.instance_of(id).await?.map(|(kind, instance)| Order { kind, instance }))
    }

    /// Where an activity does its work: on the platform that the instance is recorded on, or on the
    /// default one where there is no record.
    pub(crate) async fn place(&self, order: Option<&Order>) -> Result<Place, Failure> {
        match order {
            Some(order) => self.platforms.of(&order.instance).await,
            None => self.platforms.get(self.platforms.default_name()).await,
        }
    }
}

impl Order {
    /// Fails if a delete has overtaken the creation that the activity belongs to.
    pub(crate) fn still_wanted(&self) -> Result<(), Failure> {
        match (self.kind, self.instance.state) {
            (OperationKind::Create, InstanceState::Deleting | InstanceState::Deleted) => Err(Failure::permanent(
                FailureKind::Superseded,
                format!("{}/{} is being deleted; its creation was given up", self.instance.namespace, self.instance.name),
            )),
            _ => Ok(()),
        }
    }
}

fn platform_name() -> Result<PlatformName, Failure> {
    let set = std::env::var("TOYGRES_PLATFORM").ok().filter(|name| !name.is_empty());
    let refuse =
        |invalid: Invalid| Failure::permanent(FailureKind::InvalidInput, format!("TOYGRES_PLATFORM: {}", invalid.problem));
    set.map_or(Ok(PlatformName::default()), |name| name.parse().map_err(refuse))
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

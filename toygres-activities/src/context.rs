//! What activities work with: platforms, places for passwords, a metadata store.

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use duroxide::ActivityContext;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::OnceCell;
use toygres_models::store::{Exposure, Instance, OperationSubject};
use toygres_models::{Failure, FailureKind, InstanceState, Invalid, OperationKind, OperationState, PlatformName, Store};
use uuid::Uuid;

use crate::platform::kubernetes::{KubernetesConfig, KubernetesPlatform};
use crate::platform::local::{DirectoryPorts, LocalConfig, LocalHost, LocalPlatform};
use crate::platforms::{Place, Platforms};
use crate::secrets::FileSecretStore;

/// How often an activity that takes its time looks whether its operation is still wanted.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

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
    store: Store,
    operation_id: Uuid,
    subject: OperationSubject,
}

impl Context {
    /// The platform that `TOYGRES_PLATFORM` names (`local`, which is the default, or `kubernetes`), set
    /// up by its own variables (see [`LocalConfig::from_environment`] and
    /// [`KubernetesConfig::from_environment`]), and the metadata store at `DATABASE_URL` where that
    /// is set.
    ///
    /// One process works on a state directory: while a toygres server runs, give another one than its.
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
        let Some((store, operation_id)) = self.operation(ctx) else { return Ok(None) };
        let subject = store.subject_of(operation_id).await?;
        Ok(subject.map(|subject| Order { store: store.clone(), operation_id, subject }))
    }

    /// Where an activity does its work: on the platform that the instance is recorded on, or on the
    /// default one where there is no record.
    pub(crate) async fn place(&self, order: Option<&Order>) -> Result<Place, Failure> {
        match order {
            Some(order) => self.platforms.of(order.instance()).await,
            None => self.platforms.get(self.platforms.default_name()).await,
        }
    }
}

/// Does an activity's work for as long as the operation that it belongs to is wanted. What isn't any
/// more isn't begun, and is dropped where it was.
///
/// # Errors
/// Those of `work`; [`Cancelled`](FailureKind::Cancelled) or [`Superseded`](FailureKind::Superseded) if
/// it isn't wanted.
pub(crate) async fn while_wanted<T>(
    order: Option<&Order>,
    exposure: Option<&Exposure>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(order) = order else { return work.await };
    wanted(&order.subject, exposure)?;
    tokio::select! {
        result = work => result,
        failure = order.unwanted(exposure) => Err(failure),
    }
}

impl Order {
    /// The instance that it is about.
    pub(crate) fn instance(&self) -> &Instance {
        &self.subject.instance
    }

    /// Fails if the operation has ended: another attempt of the activity was quicker, or it was
    /// cancelled before it began.
    pub(crate) fn expect_at_work(&self) -> Result<(), Failure> {
        expect_at_work(&self.subject)
    }

    /// Returns when the operation isn't wanted any more.
    async fn unwanted(&self, exposure: Option<&Exposure>) -> Failure {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            // While the store is away nobody can cancel either.
            if let Ok(Some(subject)) = self.store.subject_of(self.operation_id).await
                && let Err(failure) = wanted(&subject, exposure)
            {
                return failure;
            }
        }
    }
}

fn expect_at_work(subject: &OperationSubject) -> Result<(), Failure> {
    let OperationSubject { operation_kind: kind, operation_state: state, .. } = subject;
    let ended = || format!("the {kind} operation has {state} already");
    match state {
        OperationState::Pending | OperationState::Running => Ok(()),
        OperationState::Cancelled => Err(Failure::permanent(FailureKind::Cancelled, "the operation was cancelled")),
        OperationState::Succeeded | OperationState::Failed => Err(Failure::permanent(FailureKind::Superseded, ended())),
    }
}

/// Fails if the instance's record says by now that something else is to be than what the activity is
/// about to bring about.
fn wanted(subject: &OperationSubject, exposure: Option<&Exposure>) -> Result<(), Failure> {
    expect_at_work(subject)?;
    let OperationSubject { operation_kind: kind, instance, .. } = subject;
    let cancelled_by = subject.cancel_requested_by.as_ref();
    let going = matches!(instance.state, InstanceState::Deleting | InstanceState::Deleted);
    let reached_otherwise = exposure.is_some_and(|exposure| *exposure != instance.exposure());
    match (kind, cancelled_by) {
        (OperationKind::Create, Some(who)) if going => {
            Err(Failure::permanent(FailureKind::Cancelled, format!("{who} cancelled the creation")))
        }
        (OperationKind::Update, Some(who)) if reached_otherwise => {
            Err(Failure::permanent(FailureKind::Cancelled, format!("{who} cancelled the change")))
        }
        (OperationKind::Create | OperationKind::Update, _) if going => Err(Failure::permanent(
            FailureKind::Superseded,
            format!("{}/{} is being deleted; its {kind} was given up", instance.namespace, instance.name),
        )),
        _ => Ok(()),
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

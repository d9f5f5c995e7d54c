//! What activities work with: platforms, places for passwords, a metadata store.

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use duroxide::ActivityContext;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use toygres_models::kind::OnCancel;
use toygres_models::store::{Instance, OperationSubject};
use toygres_models::{Failure, FailureKind, InstanceSpec, InstanceState, Invalid, OperationState, PlatformName, Store};
use uuid::Uuid;

use crate::activities::sweep_health::Swept;
use crate::platform::kubernetes::{KubernetesConfig, KubernetesPlatform};
use crate::platform::local::{DirectoryPorts, LocalConfig, LocalHost, LocalPlatform};
use crate::platforms::{Place, Platforms};
use crate::secrets::FileSecretStore;

/// How often an activity that takes its time checks that its operation has a purpose.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a server may take to become ready, unless told otherwise.
pub const DEFAULT_READY_TIMEOUT: Duration = Duration::from_secs(300);
/// How often instances are looked at, unless told otherwise.
pub const DEFAULT_HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// The most that may be told: the workflows give up then.
pub const MAX_READY_TIMEOUT: Duration = Duration::from_secs(3600);

/// What activities work with. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Where instances run, and their passwords rest.
    pub platforms: Platforms,
    /// Where operations and instances are on record. Only update-metadata needs it; with it, the
    /// other activities note their steps there, and work on the platform that the record names.
    pub store: Option<Store>,
    /// How long a server may take to become ready before its operation fails.
    pub ready_timeout: Duration,
    /// How often instances are looked at.
    pub health_interval: Duration,
    /// The instances that this process looks at.
    pub swept: Swept,
    /// Cancelled when what goes on for ever is to end.
    pub stopping: CancellationToken,
}

/// The operation that an activity belongs to, as it was when the activity began.
pub(crate) struct OperationContext {
    store: Store,
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
                Place::new(platform, secrets)
            }
            PlatformName::Local => {
                let config = LocalConfig::from_environment()?;
                let secrets = Arc::new(FileSecretStore::new(config.state_dir.join("secrets")));
                let host = LocalHost::open(config).await?;
                let ports = Arc::new(DirectoryPorts::new(&host));
                Place::new(LocalPlatform::new(host, ports), secrets)
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
        Ok(Self {
            platforms: Platforms::one(place),
            store,
            ready_timeout: DEFAULT_READY_TIMEOUT,
            health_interval: DEFAULT_HEALTH_INTERVAL,
            swept: Swept::default(),
            stopping: CancellationToken::new(),
        })
    }

    /// The operation that an activity belongs to, where its workflow's id is one and a store is
    /// there to know it.
    pub(crate) fn operation(&self, ctx: &ActivityContext) -> Option<(&Store, Uuid)> {
        let id = Uuid::parse_str(ctx.instance_id()).ok()?;
        self.store.as_ref().map(|store| (store, id))
    }

    /// The operation that an activity belongs to, as it is now.
    ///
    /// # Errors
    /// [`Superseded`](FailureKind::Superseded) or [`Cancelled`](FailureKind::Cancelled) if its steps have no purpose any
    /// more.
    pub(crate) async fn operation_context(&self, ctx: &ActivityContext) -> Result<Option<OperationContext>, Failure> {
        let Some((store, operation_id)) = self.operation(ctx) else { return Ok(None) };
        let Some(subject) = store.subject_of(operation_id).await? else { return Ok(None) };
        check_valid(&subject, subject.operation.reverting)?;
        Ok(Some(OperationContext { store: store.clone(), subject }))
    }

    /// Where an activity does its work: on the platform that the instance is recorded on, or on the
    /// default one where there is no record.
    pub(crate) async fn place(&self, operation: Option<&OperationContext>) -> Result<Place, Failure> {
        match operation {
            Some(operation) => self.platforms.of(&operation.subject.instance).await,
            None => self.platforms.get(self.platforms.default_name()).await,
        }
    }
}

/// Does an activity's work while its operation has a purpose, and drops it where it is when it has none any more.
///
/// # Errors
/// Those of `work`, and those of [`Context::operation_context`].
pub(crate) async fn run_while_valid<T>(
    operation: Option<&OperationContext>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(operation) = operation else { return work.await };
    tokio::select! {
        result = work => result,
        failure = operation.until_invalid() => Err(failure),
    }
}

impl OperationContext {
    /// The spec that the operation's steps bring about.
    pub(crate) fn target(&self) -> &InstanceSpec {
        self.subject.operation.target()
    }

    /// Whether it brings a spec about that names extensions, or named some before. Otherwise the owner's database is nothing to
    /// toygres: the owner may have renamed it.
    pub(crate) fn concerns_extensions(&self) -> bool {
        let operation = &self.subject.operation;
        let specs = [&operation.spec_before, &operation.spec];
        !operation.kind.is_verb && specs.iter().any(|spec| !spec.extensions.is_empty())
    }

    /// How long its step at work has been at it, if each attempt took so long: the time in which no server worked doesn't count.
    pub(crate) fn waited(&self, attempt: Duration) -> Option<Duration> {
        let step = self.subject.operation.steps.last()?;
        let since_start = (Utc::now() - step.started_at).to_std().ok()?;
        Some(since_start.min(attempt * u32::try_from(step.attempts).ok()?))
    }

    /// The operation's id.
    pub(crate) fn operation_id(&self) -> Uuid {
        self.subject.operation.id
    }

    /// The instance that it is about.
    pub(crate) fn instance(&self) -> &Instance {
        &self.subject.instance
    }

    /// Returns when the operation's steps have no purpose any more.
    async fn until_invalid(&self) -> Failure {
        let OperationSubject { operation, .. } = &self.subject;
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            // While the store is away nobody can cancel either.
            if let Ok(Some(now)) = self.store.subject_of(operation.id).await
                && let Err(failure) = check_valid(&now, operation.reverting)
            {
                return failure;
            }
        }
    }
}

/// Fails if an activity that began while the operation was `reverting` or not has no purpose any more: the operation has
/// ended, was cancelled, is being reverted, or a delete has overtaken it.
fn check_valid(subject: &OperationSubject, reverting: bool) -> Result<(), Failure> {
    let OperationSubject { operation, instance } = subject;
    let kind = operation.kind;
    let superseded = |message: String| Err(Failure::permanent(FailureKind::Superseded, message));
    match operation.state {
        OperationState::Pending | OperationState::Running => {}
        OperationState::Cancelled => {
            return Err(Failure::permanent(FailureKind::Cancelled, "the operation was cancelled"));
        }
        state @ (OperationState::Succeeded | OperationState::Failed) => {
            return superseded(format!("the {kind} operation has {state} already"));
        }
    }
    if operation.reverting != reverting {
        return superseded(format!("the {kind} operation is being reverted"));
    }
    if let Some(who) = operation.cancel_requested_by.as_ref().filter(|_| !reverting) {
        return Err(Failure::permanent(FailureKind::Cancelled, format!("{who} cancelled the {}", kind.noun)));
    }
    let is_going = matches!(instance.state, InstanceState::Deleting | InstanceState::Deleted);
    if is_going && !kind.overtakes && !(reverting && kind.on_cancel == OnCancel::Remove) {
        return superseded(format!("{} is being deleted; its {} was given up", instance.key(), kind.noun));
    }
    Ok(())
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

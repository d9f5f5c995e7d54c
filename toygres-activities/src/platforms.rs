//! The platforms that one toygres serves, by name.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Mutex;
use toygres_models::store::Instance;
use toygres_models::{Failure, FailureKind, HealthReasonKind, InstanceKey, Invalid, PlatformName, RoleName};

use crate::password_checks::PasswordChecks;
use crate::platform::Platform;
use crate::platform::probe::{self, Checked};
use crate::secrets::SecretStore;

/// A platform, and the place for the passwords of its instances.
#[derive(Clone)]
pub struct Place {
    /// Where instances run.
    pub platform: Arc<dyn Platform>,
    /// Where their passwords rest.
    pub secrets: Arc<dyn SecretStore>,
    passwords: Arc<PasswordChecks>,
}

impl Place {
    /// Of these two.
    #[must_use]
    pub fn new(platform: Arc<dyn Platform>, secrets: Arc<dyn SecretStore>) -> Self {
        Self { platform, secrets, passwords: Arc::default() }
    }

    /// Looks at an instance that is to run. A probe of the last `max_age` will do.
    pub async fn check(&self, key: &InstanceKey, owner: &RoleName, max_age: Duration) -> Checked {
        let mut checked = probe::check(&*self.platform, key, max_age).await;
        if checked.probe.is_some() && self.passwords.differs(&self.platform, &self.secrets, key, owner).await {
            let message = format!(
                "the role {owner} can't log in with the password that toygres keeps for it: somebody set another, or took the \
                 right from it; `toygres rotate-password {}` sets a new one on both sides",
                key.argument()
            );
            checked.health.degrade(HealthReasonKind::PasswordDiffers, &message);
        }
        checked
    }
}

type OpenPlace = dyn Fn() -> Pin<Box<dyn Future<Output = Result<Place, Failure>> + Send>> + Send + Sync;

struct Served {
    name: PlatformName,
    place: RwLock<Option<Place>>,
    open: Box<OpenPlace>,
    /// Held while it is opened: once is enough.
    opening: Mutex<()>,
}

impl Served {
    fn place(&self) -> Option<Place> {
        self.place.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn current(&self) -> Option<Place> {
        self.place().filter(|place| !place.platform.is_outdated())
    }

    async fn open(&self) -> Result<Place, Failure> {
        let _guard = self.opening.lock().await;
        if let Some(place) = self.current() {
            return Ok(place);
        }
        let place = (self.open)().await?;
        let last = self.place.write().unwrap_or_else(PoisonError::into_inner).replace(place.clone());
        if let Some(last) = last {
            last.platform.shutdown();
        }
        Ok(place)
    }
}

/// The platforms that are served. Each is opened when it is first needed, so that a user who has a
/// kubeconfig and only local instances has no cluster called; and anew when that has changed since.
/// Cheap to clone.
#[derive(Clone)]
pub struct Platforms {
    served: Arc<Vec<Served>>,
}

impl Platforms {
    /// None yet.
    #[must_use]
    pub fn none() -> Self {
        Self { served: Arc::default() }
    }

    /// One platform that is open already.
    #[must_use]
    pub fn one(place: Place) -> Self {
        let name = place.platform.name();
        Self::none().with(name, move || {
            let place = place.clone();
            async move { Ok(place) }
        })
    }

    /// With one more, opened by `open` when it is first needed. A failure to open it is not kept:
    /// who needs it next tries again. The first one is the default.
    #[must_use]
    pub fn with<Opening>(self, name: PlatformName, open: impl Fn() -> Opening + Send + Sync + 'static) -> Self
    where
        Opening: Future<Output = Result<Place, Failure>> + Send + 'static,
    {
        let mut served = Arc::into_inner(self.served).unwrap_or_default();
        served.push(Served {
            name,
            place: RwLock::default(),
            open: Box::new(move || Box::pin(open())),
            opening: Mutex::default(),
        });
        Self { served: Arc::new(served) }
    }

    /// Their names, the default one first.
    pub fn names(&self) -> impl Iterator<Item = PlatformName> {
        self.served.iter().map(|served| served.name)
    }

    /// The one that instances are made on unless another is named.
    #[must_use]
    pub fn default_name(&self) -> PlatformName {
        self.names().next().unwrap_or_default()
    }

    /// The platform of that name, opened.
    ///
    /// # Errors
    /// If it isn't served, or can't be opened now.
    pub async fn get(&self, name: PlatformName) -> Result<Place, Failure> {
        let Some(served) = self.served.iter().find(|served| served.name == name) else {
            let names: Vec<_> = self.names().map(PlatformName::as_str).collect();
            return Err(Invalid::new("platform", format!("{name} is not served here; served are {}", names.join(", "))).into());
        };
        match served.current() {
            Some(place) => Ok(place),
            None => served.open().await,
        }
    }

    /// The platform that an instance runs on.
    ///
    /// # Errors
    /// As [`get`](Self::get); and if the instance runs on another machine, or another cluster than the
    /// one that is served: there it would be taken for gone, and its deletion for done.
    pub async fn of(&self, instance: &Instance) -> Result<Place, Failure> {
        let place = self.get(instance.spec.platform).await?;
        let Some(wanted) = &instance.cluster_id else { return Ok(place) };
        let served = place.platform.cluster_id().await?;
        if served.as_ref() == Some(wanted) {
            return Ok(place);
        }
        let key = instance.key();
        let message = match instance.spec.platform {
            PlatformName::Local => format!(
                "{key} runs on another machine, {wanted}, and this server's is {}; nothing was changed. Ask a server of \
                 that machine",
                served.unwrap_or_default()
            ),
            PlatformName::Kubernetes => {
                let served =
                    served.map_or_else(|| "one that it may not look at".to_owned(), |served| format!("that of {served}"));
                format!(
                    "{key} runs on the Kubernetes cluster whose namespace kube-system has the uid {wanted}, and this server's \
                     cluster is {served}; nothing was changed. Start the server with that cluster's --kube-context"
                )
            }
        };
        Err(Failure::permanent(FailureKind::Conflict, message))
    }

    /// Those that are open.
    #[must_use]
    pub fn opened(&self) -> Vec<Place> {
        self.served.iter().filter_map(Served::place).collect()
    }
}

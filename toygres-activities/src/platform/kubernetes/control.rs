//! The database of the server itself, where the server keeps its records: an instance like any
//! other, in the server's own namespace, under a name that no user can take.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use toygres_models::{Failure, FailureKind, InstanceKey, InstanceName, InstanceSpec, Password, PlatformName, StorageSize};

use super::cluster::Cluster;
use super::identity::{self, MemberNames, Names};
use crate::platform::Deployment;
use crate::secrets::SecretStore;

/// How long its first start, or its recovery, may take before the start of toygres gives up waiting.
const START_TIMEOUT: Duration = Duration::from_secs(120);

impl Cluster {
    fn control_key(&self) -> Result<InstanceKey, Failure> {
        Ok(InstanceKey { namespace: self.client.default_namespace().parse()?, name: InstanceName::own("database")? })
    }

    /// See [`KubernetesPlatform::start_control`](super::KubernetesPlatform::start_control).
    pub(super) async fn control(self: &Arc<Self>, storage_size: StorageSize) -> Result<SecretString, Failure> {
        let key = self.control_key()?;
        let (password, is_new, spec) = {
            let _guard = self.lock(&key).await;
            let (password, is_new) = self.control_password(&key).await?;
            let set = self.client.ours::<StatefulSet>(&key, &MemberNames::first(&key).set).await?;
            // Its data is one major's: another one couldn't read it. Any minor can.
            let major = set.as_ref().and_then(identity::version_of).map(|there| there.major().to_string().parse()).transpose()?;
            let chosen = self.config.images.choose(major).map_err(|failure| no_image(&key, failure))?.0;
            let spec = InstanceSpec {
                storage_size_gb: storage_size,
                ..InstanceSpec::new(PlatformName::Kubernetes, major.unwrap_or(chosen))
            };
            let deployment = Deployment {
                key: key.clone(),
                instance_id: None,
                spec: spec.clone(),
                password: password.clone(),
                data_exists: is_new,
            };
            self.create(&deployment, &CancellationToken::new()).await?;
            (password, is_new, spec)
        };
        // From now on its certificate is renewed with the others.
        let _ = self.control.set(key.clone());
        let observation = self.watch_until_ready(&key, START_TIMEOUT).await?;
        if !observation.ready {
            let (reason, evidence) =
                observation.reason.map(|reason| (format!(": {reason}"), reason.evidence)).unwrap_or_default();
            let seconds = START_TIMEOUT.as_secs();
            let message =
                format!("toygres's own database {key} was not ready within {seconds} s; it goes on, try again later{reason}");
            return Err(Failure::transient(FailureKind::TimedOut, message).with_evidence(evidence));
        }
        if is_new {
            // Kept last: cut off before, it is done again with another one.
            self.set_password(&key, &password).await?;
            self.passwords().put(&key, &password).await?;
        }
        Ok(self.locate(&key).await?.address.owner_uri(&spec).with_secret(&password))
    }

    /// The first of several servers makes it, and the others take that one. Where the Secret is gone, a new one, which has to
    /// be set and kept when the server is ready: `true`.
    async fn control_password(&self, key: &InstanceKey) -> Result<(SecretString, bool), Failure> {
        let (names, member) = (Names::of(key), MemberNames::first(key));
        // In this order: the Secret is always made before the volume.
        let claim = self.client.ours::<PersistentVolumeClaim>(key, &member.data).await?;
        let secret = self.client.ours::<Secret>(key, &names.connection).await?;
        if claim.is_some() && secret.is_none() {
            return Ok((Password::generate(), true));
        }
        Ok((self.passwords().get_or_generate(key).await?, false))
    }
}

/// Whose image it is that is missing.
fn no_image(key: &InstanceKey, failure: Failure) -> Failure {
    Failure { message: format!("toygres's own database {key} can't be started: {}", failure.message), ..failure }
}

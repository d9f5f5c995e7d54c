//! Passwords in Secrets of the instances' own namespaces.

use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use secrecy::SecretString;
use toygres_models::{Failure, FailureKind, InstanceKey, Namespace, Password};

use super::identity::{self, Names, is_of};
use super::objects::Creation;
use super::objects::manifests::Manifests;
use crate::k8s_client::K8sClient;
use crate::secrets::SecretStore;

/// Each password in the Secret `<name>-password`, which the instance's pod mounts.
#[derive(Clone)]
pub struct KubernetesSecretStore {
    client: K8sClient,
    /// Where to look for passwords; everywhere if there are none.
    namespaces: Vec<Namespace>,
}

impl KubernetesSecretStore {
    /// A store in that cluster, for these namespaces; for all if there are none.
    #[must_use]
    pub fn new(client: K8sClient, namespaces: Vec<Namespace>) -> Self {
        Self { client, namespaces }
    }

    /// The password that is kept; a fresh one that is kept from now on, where there is none. Whoever
    /// else does that at the same time gets the same.
    pub(super) async fn get_or_generate(&self, key: &InstanceKey) -> Result<SecretString, Failure> {
        let password = Password::generate();
        match self.client.create_ours(key, Manifests::new(key).password(&password)?).await? {
            Creation::Made(_) => Ok(password),
            Creation::Found(_) => self.get(key).await,
        }
    }

    async fn find(&self, key: &InstanceKey) -> Result<Option<Secret>, Failure> {
        let secrets = self.client.api::<Secret>(key.namespace.as_str());
        let name = Names::of(key).password;
        self.client.call(format!("read the Secret {}/{name}", key.namespace), secrets.get_opt(&name)).await
    }
}

#[async_trait]
impl SecretStore for KubernetesSecretStore {
    async fn put(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure> {
        let secret = Manifests::new(key).password(password)?;
        let found = self.client.ours::<Secret>(key, &Names::of(key).password).await?;
        self.client.put_ours(key, secret, found.as_ref()).await.map(drop)
    }

    async fn get(&self, key: &InstanceKey) -> Result<SecretString, Failure> {
        let found = self.find(key).await?.filter(|found| is_of(&found.metadata, key));
        let password = found.and_then(|mut found| found.data.as_mut()?.remove("password"));
        match password.and_then(|password| String::from_utf8(password.0).ok()) {
            Some(password) => Ok(password.into()),
            None => Err(Failure::permanent(
                FailureKind::NotFound,
                format!("no password is kept for {key}: the Secret {}/{} is missing", key.namespace, Names::of(key).password),
            )),
        }
    }

    async fn remove(&self, key: &InstanceKey) -> Result<(), Failure> {
        let Some(found) = self.find(key).await?.filter(|found| is_of(&found.metadata, key)) else { return Ok(()) };
        let secrets = self.client.api::<Secret>(key.namespace.as_str());
        let name = Names::of(key).password;
        let preconditions = Preconditions { uid: found.metadata.uid, resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let call = async {
            match secrets.delete(&name, &params).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop),
            }
        };
        self.client.call(format!("delete the Secret {}/{name}", key.namespace), call).await
    }

    async fn keys(&self, kept_for: Duration) -> Result<Vec<InstanceKey>, Failure> {
        let before = Utc::now().timestamp() - i64::try_from(kept_for.as_secs()).unwrap_or(i64::MAX);
        let params = ListParams::default().labels(identity::ALL).fields("type=Opaque");
        let places: Vec<Api<Secret>> = match self.namespaces.as_slice() {
            [] => vec![Api::all(self.client.raw())],
            served => served.iter().map(|namespace| self.client.api(namespace.as_str())).collect(),
        };
        let mut keys = Vec::new();
        for secrets in places {
            let list = self.client.call("list the passwords of toygres", secrets.list_metadata(&params)).await?;
            for meta in list.items.into_iter().map(|secret| secret.metadata) {
                let Some(key) = identity::owner(&meta) else { continue };
                let is_password = meta.name.as_ref() == Some(&Names::of(&key).password);
                let made = meta.creation_timestamp.map_or(i64::MAX, |time| time.0.as_second());
                if is_password && made <= before {
                    keys.push(key);
                }
            }
        }
        Ok(keys)
    }
}

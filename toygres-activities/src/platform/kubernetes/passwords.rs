//! Passwords in Secrets of the instances' own namespaces, with all that an application needs to log in.

use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use secrecy::SecretString;
use toygres_models::{Drift, Failure, FailureKind, InstanceKey, Namespace, Password};
use uuid::Uuid;

use super::cluster::Cluster;
use super::identity::{self, Names, is_of};
use super::objects::Creation;
use super::objects::drift::{changed_by, is_own};
use super::objects::login::Login;
use super::objects::manifests::Manifests;
use crate::k8s_client::K8sClient;
use crate::kill_point::kill_point;
use crate::secrets::{Kept, SecretStore};

/// The type of the Secrets that applications mount.
const SECRET_TYPE: &str = "servicebinding.io/postgresql";

impl Cluster {
    /// Where the passwords of the instances are kept.
    pub(super) fn passwords(&self) -> KubernetesSecretStore {
        KubernetesSecretStore::new(self.client.clone(), self.config.namespaces.clone())
    }
}

/// Each password in the Secret `<name>-connection`, which applications may mount and the instance's own pod doesn't.
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
        match self.client.create_ours(key, Manifests::new(key).connection(&password, None)?).await? {
            Creation::Made(_) => Ok(password),
            Creation::Found(_) => self.get(key).await,
        }
    }

    /// Has the Secret say how the owner logs in, with the password that it holds. `found` is its metadata.
    pub(super) async fn complete(&self, key: &InstanceKey, found: &ObjectMeta, login: &Login) -> Result<(), Failure> {
        let Some(secret) = self.find(key, &Names::of(key).connection).await? else { return Ok(()) };
        let Some(password) = password_in(&secret) else { return Ok(()) };
        if login.differs(&secret, &password).is_empty() {
            return Ok(());
        }
        let secret = Manifests::new(key).connection(&password, Some(login))?;
        self.client.put_ours(key, secret, Some(found)).await.map(drop)
    }

    /// What others changed in the Secret.
    pub(super) async fn drift(&self, key: &InstanceKey, login: &Login) -> Result<Vec<Drift>, Failure> {
        let part = "the Secret with the password";
        let Some(secret) = self.find(key, &Names::of(key).connection).await? else { return Ok(Vec::new()) };
        let entry = |name: &str| Drift { field: Some(format!("data.{name}")), ..Drift::gone(part) };
        let Some(password) = password_in(&secret) else {
            let remedy = format!("`toygres rotate-password {}` sets a new one", key.argument());
            return Ok(vec![Drift { remedy: Some(remedy), ..entry("password") }]);
        };
        // What is toygres's own still is another toygres's wish.
        let is_own = |name: &str| is_own(&secret.metadata, &["data", name]);
        let changed = login.differs(&secret, &password).into_iter().filter(|name| !is_own(name));
        let told = |name: &str| Drift { changed_by: changed_by(&secret.metadata, &["data", name]), ..entry(name) };
        Ok(changed.map(told).collect())
    }

    /// The Secret of that name, if it is the instance's.
    async fn find(&self, key: &InstanceKey, name: &str) -> Result<Option<Secret>, Failure> {
        let secrets = self.client.api::<Secret>(key.namespace.as_str());
        let found = self.client.call(format!("read the Secret {}/{name}", key.namespace), secrets.get_opt(name)).await?;
        Ok(found.filter(|found| is_of(&found.metadata, key)))
    }

    async fn delete(&self, key: &InstanceKey, name: &str) -> Result<(), Failure> {
        let Some(found) = self.find(key, name).await? else { return Ok(()) };
        let secrets = self.client.api::<Secret>(key.namespace.as_str());
        let preconditions = Preconditions { uid: found.metadata.uid, resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let call = async {
            match secrets.delete(name, &params).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop),
            }
        };
        self.client.call(format!("delete the Secret {}/{name}", key.namespace), call).await
    }
}

fn password_in(secret: &Secret) -> Option<SecretString> {
    Some(String::from_utf8(secret.data.as_ref()?.get("password")?.0.clone()).ok()?.into())
}

#[async_trait]
impl SecretStore for KubernetesSecretStore {
    async fn put(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure> {
        let found = self.client.ours::<Secret>(key, &Names::of(key).connection).await?;
        let login = match &found {
            Some(_) => self.find(key, &Names::of(key).connection).await?.as_ref().and_then(Login::in_secret),
            None => None,
        };
        let secret = Manifests::new(key).connection(password, login.as_ref())?;
        self.client.put_ours(key, secret, found.as_ref()).await.map(drop)
    }

    async fn get(&self, key: &InstanceKey) -> Result<SecretString, Failure> {
        match self.find(key, &Names::of(key).connection).await?.as_ref().and_then(password_in) {
            Some(password) => Ok(password),
            None => Err(Failure::permanent(
                FailureKind::NotFound,
                format!("no password is kept for {key}: the Secret {}/{} is missing", key.namespace, Names::of(key).connection),
            )),
        }
    }

    async fn remove(&self, key: &InstanceKey) -> Result<(), Failure> {
        self.delete(key, &Names::of(key).connection).await
    }

    async fn put_new(&self, key: &InstanceKey, instance_id: Uuid, password: &SecretString) -> Result<(), Failure> {
        self.client.create_ours(key, Manifests::new(key).new_password(instance_id, password)?).await.map(drop)
    }

    async fn settle(&self, key: &InstanceKey, instance_id: Uuid) -> Result<bool, Failure> {
        let kept = self.find(key, &identity::new_password(instance_id)).await?;
        let Some(password) = kept.as_ref().and_then(password_in) else { return Ok(false) };
        let connection = Manifests::new(key).connection(&password, None)?;
        if let Creation::Found(_) = self.client.create_ours(key, connection).await? {
            self.put(key, &password).await?;
        }
        kill_point("password-settled");
        Ok(true)
    }

    async fn discard(&self, key: &InstanceKey, instance_id: Uuid) -> Result<(), Failure> {
        self.delete(key, &identity::new_password(instance_id)).await
    }

    async fn list(&self, kept_for: Duration) -> Result<Vec<Kept>, Failure> {
        let before = Utc::now().timestamp() - i64::try_from(kept_for.as_secs()).unwrap_or(i64::MAX);
        let params = ListParams::default().labels(identity::ALL).fields(&format!("type={SECRET_TYPE}"));
        let places: Vec<Api<Secret>> = match self.namespaces.as_slice() {
            [] => vec![Api::all(self.client.raw())],
            served => served.iter().map(|namespace| self.client.api(namespace.as_str())).collect(),
        };
        let mut all = Vec::new();
        for secrets in places {
            let list = self.client.call("list the passwords of toygres", secrets.list_metadata(&params)).await?;
            for meta in list.items.into_iter().map(|secret| secret.metadata) {
                let made = meta.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
                all.extend(kept(&meta).filter(|_| made <= before));
            }
        }
        Ok(all)
    }
}

/// What a Secret is kept for, if it holds a password.
fn kept(meta: &ObjectMeta) -> Option<Kept> {
    let key = identity::owner(meta)?;
    let name = meta.name.as_deref()?;
    let instance_id = name.strip_prefix(identity::NEW_PASSWORD).and_then(|id| id.parse().ok());
    (instance_id.is_some() || name == Names::of(&key).connection).then_some(Kept { key, instance_id })
}

//! Passwords in Secrets of the instances' own namespaces, with all that an application needs to log in.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use secrecy::{ExposeSecret, SecretString};
use toygres_models::{Failure, FailureKind, InstanceKey, Namespace, Password, ServerAddress};

use super::endpoint::PORT;
use super::identity::{self, Names, is_of};
use super::objects::Creation;
use super::objects::manifests::Manifests;
use crate::k8s_client::K8sClient;
use crate::secrets::SecretStore;

/// The type of the Secrets that applications mount.
const SECRET_TYPE: &str = "servicebinding.io/postgresql";

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
        let secret = self.find(key).await?;
        if secret.as_ref().and_then(Login::in_secret).as_ref() == Some(login) {
            return Ok(());
        }
        let Some(password) = secret.and_then(password_in) else { return Ok(()) };
        let secret = Manifests::new(key).connection(&password, Some(login))?;
        self.client.put_ours(key, secret, Some(found)).await.map(drop)
    }

    async fn find(&self, key: &InstanceKey) -> Result<Option<Secret>, Failure> {
        let secrets = self.client.api::<Secret>(key.namespace.as_str());
        let name = Names::of(key).connection;
        self.client.call(format!("read the Secret {}/{name}", key.namespace), secrets.get_opt(&name)).await
    }
}

fn password_in(mut secret: Secret) -> Option<SecretString> {
    Some(String::from_utf8(secret.data.as_mut()?.remove("password")?.0).ok()?.into())
}

/// How an application in the cluster logs in as an instance's owner, but for the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) host: String,
    pub(super) owner: String,
    pub(super) database: String,
    /// What signs the server's certificate, in PEM.
    pub(super) ca_certificate: String,
}

impl Login {
    fn in_secret(secret: &Secret) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let text = |name: &str| String::from_utf8(data.get(name)?.0.clone()).ok();
        Some(Self { host: text("host")?, owner: text("username")?, database: text("database")?, ca_certificate: text("ca.crt")? })
    }

    /// The Secret's entries besides the password. The URI names no file, since nobody knows where the Secret is mounted: it
    /// takes only a server that knows the password (`channel_binding`). Who wants `verify-full` as well has `ca.crt`.
    pub(super) fn entries(&self, password: &SecretString) -> BTreeMap<&'static str, String> {
        let address = ServerAddress { host: self.host.clone(), port: PORT, ca_certificate_path: None };
        let uri = address.uri(&self.owner, &self.database).with_secret(password);
        BTreeMap::from([
            ("type", "postgresql".to_owned()),
            ("provider", "toygres".to_owned()),
            ("host", self.host.clone()),
            ("port", PORT.to_string()),
            ("username", self.owner.clone()),
            ("database", self.database.clone()),
            ("uri", uri.expose_secret().to_owned()),
            ("ca.crt", self.ca_certificate.clone()),
        ])
    }
}

#[async_trait]
impl SecretStore for KubernetesSecretStore {
    async fn put(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure> {
        let found = self.client.ours::<Secret>(key, &Names::of(key).connection).await?;
        let login = match &found {
            Some(_) => self.find(key).await?.as_ref().and_then(Login::in_secret),
            None => None,
        };
        let secret = Manifests::new(key).connection(password, login.as_ref())?;
        self.client.put_ours(key, secret, found.as_ref()).await.map(drop)
    }

    async fn get(&self, key: &InstanceKey) -> Result<SecretString, Failure> {
        let found = self.find(key).await?.filter(|found| is_of(&found.metadata, key));
        match found.and_then(password_in) {
            Some(password) => Ok(password),
            None => Err(Failure::permanent(
                FailureKind::NotFound,
                format!("no password is kept for {key}: the Secret {}/{} is missing", key.namespace, Names::of(key).connection),
            )),
        }
    }

    async fn remove(&self, key: &InstanceKey) -> Result<(), Failure> {
        let Some(found) = self.find(key).await?.filter(|found| is_of(&found.metadata, key)) else { return Ok(()) };
        let secrets = self.client.api::<Secret>(key.namespace.as_str());
        let name = Names::of(key).connection;
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
        let params = ListParams::default().labels(identity::ALL).fields(&format!("type={SECRET_TYPE}"));
        let places: Vec<Api<Secret>> = match self.namespaces.as_slice() {
            [] => vec![Api::all(self.client.raw())],
            served => served.iter().map(|namespace| self.client.api(namespace.as_str())).collect(),
        };
        let mut keys = Vec::new();
        for secrets in places {
            let list = self.client.call("list the passwords of toygres", secrets.list_metadata(&params)).await?;
            for meta in list.items.into_iter().map(|secret| secret.metadata) {
                let Some(key) = identity::owner(&meta) else { continue };
                let is_password = meta.name.as_ref() == Some(&Names::of(&key).connection);
                let made = meta.creation_timestamp.map_or(i64::MAX, |time| time.0.as_second());
                if is_password && made <= before {
                    keys.push(key);
                }
            }
        }
        Ok(keys)
    }
}

//! Making and changing an instance's objects, and never anybody else's.

pub(in crate::platform::kubernetes) mod create;
pub(in crate::platform::kubernetes) mod drift;
pub(in crate::platform::kubernetes) mod login;
pub(in crate::platform::kubernetes) mod manifests;
pub(in crate::platform::kubernetes) mod remove;
pub(in crate::platform::kubernetes) mod renewal;
pub(in crate::platform::kubernetes) mod tls;

use std::collections::BTreeMap;
use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{Patch, PatchParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use toygres_models::{Failure, FailureKind, InstanceKey};

use crate::k8s_client::{FIELD_MANAGER, K8sClient};
use crate::platform::kubernetes::identity;

/// The field manager of annotations that an apply of the object doesn't name, and so doesn't remove.
const RECORDER: &str = "toygres-records";

/// What became of an object that was to be made.
pub(in crate::platform::kubernetes) enum Creation<K> {
    Made(K),
    /// It was there already, and it is ours: another attempt overlaps this one.
    Found(Box<ObjectMeta>),
}

impl K8sClient {
    /// The metadata of an object, if it is there and the instance's.
    ///
    /// # Errors
    /// A conflict if it is somebody else's; retryable while it is being deleted.
    pub(in crate::platform::kubernetes) async fn ours<K>(
        &self,
        key: &InstanceKey,
        name: &str,
    ) -> Result<Option<ObjectMeta>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        let api = self.api::<K>(key.namespace.as_str());
        let doing = format!("look for the {kind} {}/{name}", key.namespace);
        let Some(found) = self.call(doing.as_str(), api.get_metadata_opt(name)).await? else { return Ok(None) };
        if !identity::is_of(&found.metadata, key) {
            return Err(Failure::permanent(
                FailureKind::Conflict,
                format!(
                    "the {kind} {}/{name} is there already, and toygres didn't make it for {key}; it was left as it is. \
                     Choose another name, or remove it first",
                    key.namespace
                ),
            ));
        }
        if found.metadata.deletion_timestamp.is_some() {
            return Err(Failure::transient(
                FailureKind::Platform,
                format!("the {kind} {}/{name} is being deleted, which ends when nothing uses it any more", key.namespace),
            ));
        }
        Ok(Some(found.metadata))
    }

    /// Makes an object of the instance where there is none of its name.
    ///
    /// # Errors
    /// As [`ours`](Self::ours) if somebody else's is there by now.
    pub(in crate::platform::kubernetes) async fn create_ours<K>(
        &self,
        key: &InstanceKey,
        object: K,
    ) -> Result<Creation<K>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Serialize + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let name = object.meta().name.clone().unwrap_or_default();
        if let Some(made) = self.create(key.namespace.as_str(), object).await? {
            return Ok(Creation::Made(made));
        }
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        self.ours::<K>(key, &name).await?.map(|found| Creation::Found(Box::new(found))).ok_or_else(|| {
            let message = format!("the {kind} {}/{name} was made and removed by others while toygres made it", key.namespace);
            Failure::transient(FailureKind::Platform, message)
        })
    }

    /// Makes the object, or changes the one that was `found`. `true` if it was made.
    ///
    /// # Errors
    /// As [`ours`](Self::ours); retryable if the one that was found is there no more.
    pub(in crate::platform::kubernetes) async fn put_ours<K>(
        &self,
        key: &InstanceKey,
        mut object: K,
        found: Option<&ObjectMeta>,
    ) -> Result<(K, bool), Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Serialize + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let found = match found {
            Some(found) => found.clone(),
            None => match self.create_ours(key, object.clone()).await? {
                Creation::Made(made) => return Ok((made, true)),
                Creation::Found(found) => *found,
            },
        };
        // A precondition: another object under the name, or none any more, is a conflict.
        object.meta_mut().uid = found.uid;
        self.apply(key.namespace.as_str(), &object, false).await
    }

    /// Changes entries of an object's data, if it is there and the instance's. What else it has stays.
    ///
    /// # Errors
    /// As [`ours`](Self::ours).
    pub(in crate::platform::kubernetes) async fn put_entries<K>(
        &self,
        key: &InstanceKey,
        name: &str,
        entries: serde_json::Value,
    ) -> Result<(), Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let Some(found) = self.ours::<K>(key, name).await? else { return Ok(()) };
        // The uid is a precondition.
        let patch = json!({ "metadata": { "uid": found.uid }, "data": entries });
        let api = self.api::<K>(key.namespace.as_str());
        let doing = format!("change the {} {}/{name}", K::kind(&K::DynamicType::default()), key.namespace);
        self.call(doing, api.patch_metadata(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Merge(patch))).await?;
        Ok(())
    }

    /// Adds annotations to an object of the instance. What it has already is not written again.
    ///
    /// # Errors
    /// Retryable if the one that was found is there no more.
    pub(in crate::platform::kubernetes) async fn annotate<K>(
        &self,
        key: &InstanceKey,
        found: &ObjectMeta,
        annotations: &BTreeMap<&'static str, String>,
    ) -> Result<(), Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let has =
            |(name, value): (&&str, &String)| found.annotations.as_ref().is_some_and(|known| known.get(*name) == Some(value));
        if annotations.iter().all(has) {
            return Ok(());
        }
        let (kind, name) = (K::kind(&K::DynamicType::default()).into_owned(), found.name.clone().unwrap_or_default());
        // The uid is a precondition.
        let patch = json!({ "metadata": { "uid": found.uid, "annotations": annotations } });
        let api = self.api::<K>(key.namespace.as_str());
        let doing = format!("annotate the {kind} {}/{name}", key.namespace);
        self.call(doing, api.patch_metadata(&name, &PatchParams::apply(RECORDER), &Patch::Merge(patch))).await?;
        Ok(())
    }
}

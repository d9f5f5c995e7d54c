//! Names, labels, and whose an object is.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use toygres_models::{Failure, FailureKind, InstanceKey, InstanceSpec, PlatformName, PostgresVersion};

use crate::platform::{Deployment, InstanceRecord};

pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub(super) const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
const NAME_LABEL: &str = "app.kubernetes.io/name";
/// `namespace/name`, as people and toygres write it.
pub(super) const INSTANCE: &str = "toygres.io/instance";
pub(super) const POSTGRES_VERSION: &str = "toygres.io/postgres-version";

/// On the volume's claim: the instance's id and spec, and the image that its pod runs. The data carries them, so that a
/// server with an empty database can adopt the instance.
const INSTANCE_ID: &str = "toygres.io/instance-id";
const SPEC: &str = "toygres.io/spec";
pub(super) const IMAGE: &str = "toygres.io/image";
/// On the claim: the id of that image on the node, by which another build under the same tag is noticed.
pub(super) const IMAGE_ID: &str = "toygres.io/image-id";
/// On the StatefulSet: the last request for a restart, and the uid of the pod that it ends.
pub(super) const RESTART: &str = "toygres.io/restart";

/// Selects everything that toygres made.
pub(super) const ALL: &str = "app.kubernetes.io/managed-by=toygres";

/// The names of an instance's objects. Within a kind, no two instances' can be the same: each kind
/// has one suffix, or two of which neither ends the other.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Names {
    /// StatefulSet and Service.
    pub(super) instance: String,
    pub(super) data: String,
    pub(super) config: String,
    pub(super) password: String,
    pub(super) tls: String,
    /// ServiceAccount, NetworkPolicy, PodDisruptionBudget.
    pub(super) postgres: String,
}

impl Names {
    pub(super) fn of(key: &InstanceKey) -> Self {
        let name = |suffix: &str| format!("{}{suffix}", key.name);
        Self {
            instance: name(""),
            data: name("-data"),
            config: name("-config"),
            password: name("-password"),
            tls: name("-tls"),
            postgres: name("-postgres"),
        }
    }

    /// The one pod.
    pub(super) fn pod(&self) -> String {
        format!("{}-0", self.instance)
    }
}

type Map = BTreeMap<&'static str, String>;

/// What pods are found by; it can't be changed once a StatefulSet is there.
pub(super) fn selector(key: &InstanceKey) -> Map {
    [(NAME_LABEL, "postgresql"), (INSTANCE_LABEL, key.name.as_str()), (MANAGED_BY, "toygres")]
        .map(|(label, value)| (label, value.to_owned()))
        .into()
}

pub(super) fn labels(key: &InstanceKey) -> Map {
    let mut labels = selector(key);
    labels.insert("app.kubernetes.io/component", "database".to_owned());
    labels.insert("app.kubernetes.io/part-of", "toygres".to_owned());
    labels
}

pub(super) fn annotations(key: &InstanceKey) -> Map {
    [(INSTANCE, key.to_string())].into()
}

/// The record that an instance's claim carries.
pub(super) fn record_annotations(deployment: &Deployment) -> Result<BTreeMap<&'static str, String>, Failure> {
    let spec = serde_json::to_string(&deployment.spec).map_err(|error| {
        Failure::permanent(FailureKind::Internal, format!("could not encode the spec of {}: {error}", deployment.key))
    })?;
    let mut annotations = BTreeMap::from([(SPEC, spec)]);
    annotations.extend(deployment.instance_id.map(|id| (INSTANCE_ID, id.to_string())));
    Ok(annotations)
}

/// The record that a claim carries, if it is a user's instance's.
pub(super) fn record_of(meta: &ObjectMeta) -> Option<InstanceRecord> {
    let key = owner(meta)?;
    let annotations = meta.annotations.as_ref()?;
    let spec = InstanceSpec::parse(serde_json::from_str(annotations.get(SPEC)?).ok()?).ok()?;
    let instance_id = annotations.get(INSTANCE_ID).and_then(|id| id.parse().ok());
    // Anybody who may annotate the claim can write anything.
    (spec.platform == PlatformName::Kubernetes).then_some(InstanceRecord { key, instance_id, spec })
}

/// The image that an instance's claim says its pod runs.
pub(super) fn image_of(meta: &ObjectMeta) -> Option<String> {
    meta.annotations.as_ref()?.get(IMAGE).cloned()
}

/// A label selector for the instance's objects.
pub(super) fn selects(key: &InstanceKey) -> String {
    format!("{ALL},{INSTANCE_LABEL}={}", key.name)
}

fn note(meta: &ObjectMeta) -> Option<&str> {
    let managed = meta.labels.as_ref()?.get(MANAGED_BY)? == "toygres";
    meta.annotations.as_ref()?.get(INSTANCE).map(String::as_str).filter(|_| managed)
}

/// Whose an object is, if it is a user's instance's.
pub(super) fn owner(meta: &ObjectMeta) -> Option<InstanceKey> {
    let (namespace, name) = note(meta)?.split_once('/')?;
    // No name of toygres's own is one that a user may take.
    let key = InstanceKey::parse(namespace, name).ok()?;
    is_of(meta, &key).then_some(key)
}

/// Whether an object is that instance's, be it a user's or toygres's own.
pub(super) fn is_of(meta: &ObjectMeta, key: &InstanceKey) -> bool {
    note(meta) == Some(key.to_string().as_str()) && meta.namespace.as_deref() == Some(key.namespace.as_str())
}

/// The version that a StatefulSet was made for.
pub(super) fn version_of(meta: &ObjectMeta) -> Option<PostgresVersion> {
    meta.annotations.as_ref()?.get(POSTGRES_VERSION)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use toygres_models::InstanceName;

    use super::*;

    fn meta(namespace: &str, managed_by: &str, instance: &str) -> ObjectMeta {
        ObjectMeta {
            namespace: Some(namespace.into()),
            labels: Some([(MANAGED_BY.to_owned(), managed_by.to_owned())].into()),
            annotations: Some([(INSTANCE.to_owned(), instance.to_owned())].into()),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn an_object_is_ours_only_with_label_annotation_and_place() {
        let key = InstanceKey::parse("default", "demo").unwrap();
        assert!(is_of(&meta("default", "toygres", "default/demo"), &key));
        assert!(!is_of(&meta("default", "Helm", "default/demo"), &key));
        assert!(!is_of(&meta("default", "toygres", "default/other"), &key));
        assert!(!is_of(&meta("other", "toygres", "default/demo"), &key), "copied into another namespace");
        assert!(!is_of(&ObjectMeta::default(), &key));
        assert_eq!(owner(&meta("default", "toygres", "default/demo")), Some(key));
    }

    #[test]
    fn toygres_s_own_database_is_no_users_instance() {
        let own = InstanceKey { namespace: "default".parse().unwrap(), name: InstanceName::own("database").unwrap() };
        let meta = meta("default", "toygres", "default/toygres-database");
        assert!(is_of(&meta, &own) && owner(&meta).is_none());
    }

    #[test]
    fn names_fit_and_do_not_meet() {
        let long = "x".repeat(toygres_models::name::MAX_NAME_LENGTH);
        let names = Names::of(&InstanceKey::parse("default", &long).unwrap());
        // The longest that a Service, a label's value and a pod's host name may be.
        assert!([&names.instance, &names.password, &names.postgres, &names.pod()].iter().all(|name| name.len() <= 63));
    }
}

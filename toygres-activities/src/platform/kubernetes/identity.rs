//! Names, labels, and whose an object is.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Serialize;
use sha2::{Digest, Sha256};
use toygres_models::{Failure, FailureKind, InstanceKey, InstanceSpec, PlatformName, PostgresVersion};
use uuid::Uuid;

use crate::platform::{Deployment, InstanceRecord};

/// Where every server listens.
pub(super) const PORT: u16 = 5432;

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

/// On what is made of a spec alone: the digest of what toygres applied last.
pub(super) const APPLIED: &str = "toygres.io/applied-sha256";

/// Selects everything that toygres made.
pub(super) const ALL: &str = "app.kubernetes.io/managed-by=toygres";

/// The first member of an instance: so far its only one.
pub(super) const FIRST: u32 = 0;
/// On what is one member's: its number.
const MEMBER: &str = "toygres.io/member";

/// The names of the objects that all members of an instance share. Within a kind, no two instances' can be the same:
/// each kind has one suffix, or two of which neither ends the other.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Names {
    /// The Service.
    pub(super) instance: String,
    pub(super) config: String,
    /// The Secret by which applications log in.
    pub(super) connection: String,
    pub(super) tls: String,
    /// ServiceAccount, NetworkPolicy, PodDisruptionBudget.
    pub(super) postgres: String,
}

impl Names {
    pub(super) fn of(key: &InstanceKey) -> Self {
        let name = |suffix: &str| format!("{}{suffix}", key.name);
        Self {
            instance: name(""),
            config: name("-config"),
            connection: name("-connection"),
            tls: name("-tls"),
            postgres: name("-postgres"),
        }
    }
}

/// The names of one member's objects.
#[derive(Debug, Clone, Serialize)]
pub(super) struct MemberNames {
    /// StatefulSet.
    pub(super) set: String,
    pub(super) data: String,
    pub(super) pod: String,
}

impl MemberNames {
    /// Those of the first are the instance's own. Others have the number in front: an instance's name starts with a letter,
    /// so no member's object has the name of another instance's.
    pub(super) fn of(key: &InstanceKey, member: u32) -> Self {
        let set = if member == FIRST { key.name.to_string() } else { format!("{member}-{}", key.name) };
        Self { data: format!("{set}-data"), pod: format!("{set}-0"), set }
    }

    /// Those of the first member.
    pub(super) fn first(key: &InstanceKey) -> Self {
        Self::of(key, FIRST)
    }
}

/// What the names of the Secrets begin with that hold a password which isn't settled. No instance's name begins with it.
pub(super) const NEW_PASSWORD: &str = "toygres-new-";

/// The name of the Secret with the password of an instance that isn't on record yet.
pub(super) fn new_password(instance_id: Uuid) -> String {
    format!("{NEW_PASSWORD}{instance_id}")
}

type Map = BTreeMap<&'static str, String>;

/// What all pods of an instance are found by.
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

/// The labels of what is one member's.
pub(super) fn member_labels(key: &InstanceKey, member: u32) -> Map {
    let mut labels = labels(key);
    labels.insert(MEMBER, member.to_string());
    labels
}

/// What one member's pod is found by; it can't be changed once its StatefulSet is there.
pub(super) fn member_selector(key: &InstanceKey, member: u32) -> Map {
    let mut selector = selector(key);
    selector.insert(MEMBER, member.to_string());
    selector
}

pub(super) fn annotations(key: &InstanceKey) -> Map {
    [(INSTANCE, key.to_string())].into()
}

/// Notes on an object what is applied. It says whether two looks at it, by two builds of toygres perhaps, want the same.
pub(super) fn noted<K: Resource + Serialize>(object: K) -> Result<K, Failure> {
    let digest = digest(&object)?;
    Ok(with_digest(object, digest))
}

/// The same for an object of which `without` is all that counts for that.
pub(super) fn noted_as<K: Resource + Serialize>(object: K, without: &K) -> Result<K, Failure> {
    Ok(with_digest(object, digest(without)?))
}

fn digest(object: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(object)
        .map_err(|error| Failure::permanent(FailureKind::Internal, format!("an object can't be encoded: {error}")))?;
    Ok(sha256_hex(text.as_bytes()))
}

fn with_digest<K: Resource>(mut object: K, digest: String) -> K {
    object.meta_mut().annotations.get_or_insert_default().insert(APPLIED.to_owned(), digest);
    object
}

/// What was noted on it.
pub(super) fn applied(meta: &ObjectMeta) -> Option<&str> {
    meta.annotations.as_ref()?.get(APPLIED).map(String::as_str)
}

/// SHA-256, in hexadecimal digits.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
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
    let spec = parse_spec(meta)?;
    let instance_id = annotations.get(INSTANCE_ID).and_then(|id| id.parse().ok());
    // Anybody who may annotate the claim can write anything.
    (spec.platform == PlatformName::Kubernetes).then_some(InstanceRecord { key, instance_id, spec })
}

fn parse_spec(meta: &ObjectMeta) -> Option<InstanceSpec> {
    InstanceSpec::parse(serde_json::from_str(meta.annotations.as_ref()?.get(SPEC)?).ok()?).ok()
}

/// The spec that the claim of an instance, or of toygres's own database, carries.
pub(super) fn spec_of(key: &InstanceKey, claim: &ObjectMeta) -> Result<InstanceSpec, Failure> {
    parse_spec(claim).ok_or_else(|| {
        let name = claim.name.as_deref().unwrap_or_default();
        let message = format!(
            "the PersistentVolumeClaim {name} of {key} has no spec in its annotation {SPEC}: somebody changed it. Starting \
             {key} writes it again"
        );
        Failure::permanent(FailureKind::Platform, message)
    })
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
        let key = InstanceKey::parse("default", &long).unwrap();
        let (names, member) = (Names::of(&key), MemberNames::of(&key, 9));
        // The longest that a Service, a label's value and a pod's host name may be.
        assert!([&names.instance, &names.connection, &names.postgres, &member.pod].iter().all(|name| name.len() <= 63));
        // Its pods' revision label adds up to 11.
        assert!(member.set.len() <= 52);
        assert!(member.set.parse::<InstanceName>().is_err(), "another instance may have this name");
        assert_eq!(MemberNames::first(&key).set, long);
    }
}

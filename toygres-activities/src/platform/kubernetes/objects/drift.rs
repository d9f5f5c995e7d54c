//! Objects that others changed or removed, held against what toygres makes.
//!
//! The API server says by a dry run what applying an object would make of it. So its defaults, and its ways to write a value,
//! are no differences. An object that another build or configuration of toygres applied last isn't compared.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::{Hash, Hasher};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::ListParams;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use toygres_models::{Drift, Failure, InstanceKey, InstanceSpec};

use crate::k8s_client::FIELD_MANAGER;
use crate::platform::kubernetes::cluster::Cluster;
use crate::platform::kubernetes::identity::{self, MemberNames, applied, is_of};

/// What the API server keeps about an object.
const BOOKKEEPING: [&str; 6] = ["managedFields", "resourceVersion", "generation", "creationTimestamp", "uid", "selfLink"];

/// Where the digest of what was applied is noted.
const APPLIED_PATH: [&str; 3] = ["metadata", "annotations", identity::APPLIED];
const CLIENT_CA_PATH: [&str; 2] = ["data", "client-ca.crt"];
/// What the API server adds to a StatefulSet that somebody lets replace pods. It takes no set that replaces none and has it.
pub(super) const ROLLING_UPDATE_PATH: [&str; 3] = ["spec", "updateStrategy", "rollingUpdate"];

/// Of each instance that was found to be as it should: a digest of the fields that toygres owned then.
pub(in crate::platform::kubernetes) type Clean = HashMap<InstanceKey, u64>;

impl Cluster {
    /// See [`Platform::suspects`](crate::platform::Platform::suspects). The API server keeps the owner of each field, and a field
    /// that somebody changes gets another owner. So an instance is suspected if the fields that toygres owns aren't those of
    /// its last comparison.
    pub(in crate::platform::kubernetes) async fn suspects(&self) -> Result<Vec<InstanceKey>, Failure> {
        let owned = self.owned(None).await?;
        let mut clean = self.clean();
        clean.retain(|key, _| owned.contains_key(key));
        Ok(owned.into_iter().filter(|(key, owned)| clean.get(key) != Some(owned)).map(|(key, _)| key).collect())
    }

    /// See [`Platform::drift`](crate::platform::Platform::drift).
    pub(in crate::platform::kubernetes) async fn drift(
        &self,
        key: &InstanceKey,
        spec: &InstanceSpec,
    ) -> Result<Vec<Drift>, Failure> {
        // Before the look: what is changed meanwhile is another look's.
        let owned = self.owned(Some(key)).await?;
        let found = self.find(key).await?;
        let Some(claim) = &found.claim else {
            // Without its data there is nothing to make them for.
            return Ok(Vec::new());
        };
        let mut drift: Vec<_> = found.missing().into_iter().map(Drift::gone).collect();
        let version = found.set.as_ref().and_then(identity::version_of).unwrap_or(spec.postgres_version);
        let pinned = identity::image_of(claim);
        let (version, image) = match &pinned {
            Some(image) => (version, image.as_str()),
            None => self.config.images.choose(Some(version))?,
        };
        let wanted = self.objects(key, spec, version, image)?;
        let (passwords, login) = (self.passwords(), self.login(key, spec));
        let replaces_pods = found.set.as_ref().and_then(|set| changed_by(set, &ROLLING_UPDATE_PATH));
        let compare_set = async {
            match replaces_pods {
                None => self.compare("the StatefulSet", key, wanted.set).await,
                Some(changed_by) => Ok(vec![Drift {
                    field: Some("spec.updateStrategy.type".into()),
                    found: Some("RollingUpdate".into()),
                    wanted: Some("OnDelete".into()),
                    changed_by: Some(changed_by),
                    ..Drift::gone("the StatefulSet")
                }]),
            }
        };
        let (set, service, config_map, account, policy, budget, connection) = tokio::try_join!(
            compare_set,
            self.compare("the Service", key, wanted.service),
            self.compare("the ConfigMap", key, wanted.config_map),
            self.compare("the ServiceAccount", key, wanted.service_account),
            self.compare("the NetworkPolicy", key, wanted.policy),
            self.compare("the PodDisruptionBudget", key, wanted.budget),
            passwords.drift(key, &login),
        )?;
        drift.extend([set, service, config_map, account, policy, budget, connection].into_iter().flatten());
        drift.extend(self.changed_certificate(key, found.tls.as_ref()).await?);
        if let (true, Some(owned)) = (drift.is_empty(), owned.get(key)) {
            self.clean().insert(key.clone(), *owned);
        }
        drift.extend(self.grown(key, spec).await?);
        Ok(drift)
    }

    /// Holds an object against what applying `wanted` would make of it.
    async fn compare<K>(&self, part: &str, key: &InstanceKey, mut wanted: K) -> Result<Vec<Drift>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Serialize + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let name = wanted.meta().name.clone().unwrap_or_default();
        let api = self.client.api::<K>(key.namespace.as_str());
        let found = self.client.call(format!("read {part} of {key}"), api.get_opt(&name)).await?;
        let Some(found) = found.filter(|found| is_of(found.meta(), key)) else { return Ok(Vec::new()) };
        let is_others = applied(found.meta()).is_some() && applied(found.meta()) != applied(wanted.meta());
        if is_others && is_own(found.meta(), &APPLIED_PATH) {
            return Ok(Vec::new());
        }
        wanted.meta_mut().uid.clone_from(&found.meta().uid);
        let wanted = match self.client.apply(key.namespace.as_str(), &wanted, true).await {
            Ok((wanted, _)) => wanted,
            Err(failure) if failure.retryable => return Err(failure),
            // What others added contradicts what toygres wants.
            Err(failure) => {
                let remedy = format!("toygres can't put it right ({}): undo the change by hand", failure.message);
                return Ok(vec![Drift { field: Some("the content".into()), remedy: Some(remedy), ..Drift::gone(part) }]);
            }
        };
        let (Some(found_content), Some(wanted_content)) = (content(&found), content(&wanted)) else { return Ok(Vec::new()) };
        let mut drift = Vec::new();
        differences(&found_content, &wanted_content, &mut Vec::new(), &mut |path, found_value, wanted_value| {
            // CAs that follow are added when certificates are renewed, perhaps by another server, which knows more of them.
            if path == CLIENT_CA_PATH {
                return;
            }
            drift.push(Drift {
                field: Some(path.join(".")),
                found: found_value.map(shown),
                wanted: wanted_value.map(shown),
                changed_by: changed_by(found.meta(), path),
                ..Drift::gone(part)
            });
        });
        Ok(drift)
    }

    /// That its volume is larger than its spec has it: nothing can shrink it.
    async fn grown(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<Option<Drift>, Failure> {
        let name = MemberNames::first(key).data;
        let claims = self.client.api::<PersistentVolumeClaim>(key.namespace.as_str());
        let claim = self.client.call(format!("read the volume of {key}"), claims.get_opt(&name)).await?;
        let requests = claim.and_then(|claim| claim.spec?.resources?.requests);
        let Some(found) = requests.and_then(|mut requests| requests.remove("storage")) else { return Ok(None) };
        let wanted = format!("{}G", spec.storage_size_gb.gb());
        Ok((bytes(&found.0) > bytes(&wanted)).then(|| Drift {
            field: Some("spec.resources.requests.storage".into()),
            found: Some(found.0),
            wanted: Some(wanted),
            remedy: Some("toygres leaves it as it is, and nothing has to be done: a volume can't be made smaller".into()),
            ..Drift::gone("the PersistentVolumeClaim")
        }))
    }

    /// That its certificate or its key isn't the one that was issued.
    async fn changed_certificate(&self, key: &InstanceKey, found: Option<&ObjectMeta>) -> Result<Option<Drift>, Failure> {
        if found.is_none() || self.has_issued_certificate(key).await? {
            return Ok(None);
        }
        Ok(Some(Drift { field: Some("data".into()), ..Drift::gone("the Secret with the certificate") }))
    }

    /// Of each instance that has data, or of that one, which fields of its objects are toygres's.
    async fn owned(&self, only: Option<&InstanceKey>) -> Result<BTreeMap<InstanceKey, u64>, Failure> {
        let (claims, sets, services, secrets, configs, accounts, policies, budgets) = tokio::try_join!(
            self.owned_of::<PersistentVolumeClaim>(only),
            self.owned_of::<StatefulSet>(only),
            self.owned_of::<Service>(only),
            self.owned_of::<Secret>(only),
            self.owned_of::<ConfigMap>(only),
            self.owned_of::<ServiceAccount>(only),
            self.owned_of::<NetworkPolicy>(only),
            self.owned_of::<PodDisruptionBudget>(only),
        )?;
        let kinds = [&claims, &sets, &services, &secrets, &configs, &accounts, &policies, &budgets];
        let hash = |key: &InstanceKey| {
            let mut hasher = DefaultHasher::new();
            kinds.map(|objects| objects.get(key)).hash(&mut hasher);
            hasher.finish()
        };
        Ok(claims.keys().map(|key| (key.clone(), hash(key))).collect())
    }

    async fn owned_of<K>(&self, only: Option<&InstanceKey>) -> Result<BTreeMap<InstanceKey, Vec<String>>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let (places, labels) = match only {
            Some(key) => (vec![self.client.api::<K>(key.namespace.as_str())], identity::selects(key)),
            None => (self.places::<K>(), identity::ALL.to_owned()),
        };
        let params = ListParams::default().labels(&labels);
        let doing = format!("list the {} of toygres", K::plural(&K::DynamicType::default()));
        let mut owned = BTreeMap::<InstanceKey, Vec<String>>::new();
        for place in places {
            let list = self.client.call(doing.as_str(), place.list_metadata(&params)).await?;
            for meta in list.items.iter().map(|object| &object.metadata) {
                // A password that isn't settled comes and goes with its operation.
                let is_settled = !meta.name.as_deref().is_some_and(|name| name.starts_with(identity::NEW_PASSWORD));
                if let Some(key) = identity::owner(meta).filter(|_| is_settled) {
                    owned.entry(key).or_default().push(owned_fields(meta));
                }
            }
        }
        owned.values_mut().for_each(|objects| objects.sort());
        Ok(owned)
    }
}

fn entries(meta: &ObjectMeta) -> impl Iterator<Item = (&str, &Value)> {
    let entries = meta.managed_fields.iter().flatten().filter(|entry| entry.subresource.as_deref() != Some("status"));
    entries.filter_map(|entry| Some((entry.manager.as_deref()?, &entry.fields_v1.as_ref()?.0)))
}

/// The object, and which of its fields are toygres's.
fn owned_fields(meta: &ObjectMeta) -> String {
    let mut owned = format!("{} {}", meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
    for (_, fields) in entries(meta).filter(|(manager, _)| *manager == FIELD_MANAGER) {
        owned.push_str(&fields.to_string());
    }
    owned
}

/// Whether a field is toygres's still.
pub(in crate::platform::kubernetes) fn is_own<S: AsRef<str>>(meta: &ObjectMeta, path: &[S]) -> bool {
    entries(meta).any(|(manager, fields)| manager == FIELD_MANAGER && owns(fields, path))
}

/// Which other field manager a field belongs to by now.
pub(in crate::platform::kubernetes) fn changed_by<S: AsRef<str>>(meta: &ObjectMeta, path: &[S]) -> Option<String> {
    let others = entries(meta).filter(|(manager, _)| *manager != FIELD_MANAGER);
    let mut owners = others.filter(|(_, fields)| owns(fields, path)).map(|(manager, _)| manager);
    owners.next().map(str::to_owned)
}

/// What is owned as a whole has no fields of its own there, and elements of lists are named otherwise: the owner of all has to do.
fn owns<S: AsRef<str>>(fields: &Value, path: &[S]) -> bool {
    let mut fields = fields;
    for name in path.iter().map(AsRef::as_ref) {
        match fields.get(format!("f:{name}")) {
            Some(inner) => fields = inner,
            None => return fields.as_object().is_some_and(|inner| inner.is_empty() || name.starts_with('[')),
        }
    }
    true
}

/// What is compared of an object.
fn content<K: Serialize>(object: &K) -> Option<Value> {
    let mut value = serde_json::to_value(object).ok()?;
    let fields = value.as_object_mut()?;
    fields.remove("status");
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !BOOKKEEPING.contains(&name.as_str()));
    }
    Some(value)
}

/// Tells of each place in which two values aren't the same.
fn differences(
    found: &Value,
    wanted: &Value,
    path: &mut Vec<String>,
    tell: &mut impl FnMut(&[String], Option<&Value>, Option<&Value>),
) {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            let names: BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
            for name in names {
                path.push(name.clone());
                match (found.get(name), wanted.get(name)) {
                    (Some(found), Some(wanted)) => differences(found, wanted, path, tell),
                    (found, wanted) => tell(path, found, wanted),
                }
                path.pop();
            }
        }
        (Value::Array(found), Value::Array(wanted)) if found.len() == wanted.len() => {
            for (number, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                path.push(format!("[{number}]"));
                differences(found, wanted, path, tell);
                path.pop();
            }
        }
        _ if found == wanted => {}
        _ => tell(path, Some(found), Some(wanted)),
    }
}

fn shown(value: &Value) -> String {
    Drift::shown(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// What a quantity of storage comes to, where it is one that is written for people.
/// (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>)
fn bytes(quantity: &str) -> Option<u128> {
    let digits = quantity.find(|character: char| !character.is_ascii_digit()).unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(digits);
    let unit: u128 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    number.parse::<u128>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
    use serde_json::json;

    use super::*;

    fn compared(found: &Value, wanted: &Value) -> Vec<String> {
        let mut seen = Vec::new();
        differences(found, wanted, &mut Vec::new(), &mut |path, found, wanted| {
            let text = |value: Option<&Value>| value.map_or_else(|| "-".to_owned(), shown);
            seen.push(format!("{} {} {}", path.join("."), text(found), text(wanted)));
        });
        seen
    }

    #[test]
    fn each_difference_is_told_once_and_where_it_is() {
        let wanted = json!({ "spec": { "type": "ClusterIP", "ports": [{ "port": 5432 }], "selector": { "a": "b" } } });
        assert_eq!(compared(&wanted, &wanted), Vec::<String>::new());
        let found = json!({ "spec": { "type": "NodePort", "ports": [{ "port": 1 }], "more": true, "selector": {} } });
        let told = ["spec.more true -", "spec.ports.[0].port 1 5432", "spec.selector.a - b", "spec.type NodePort ClusterIP"];
        assert_eq!(compared(&found, &wanted), told);
        assert_eq!(compared(&json!([1]), &json!([1, 2])), [" [1] [1,2]"]);
    }

    #[test]
    fn the_one_who_has_the_field_now_changed_it() {
        let entry = |manager: &str, subresource: Option<&str>, fields: Value| {
            let entry = json!({ "manager": manager, "subresource": subresource, "fieldsV1": fields });
            serde_json::from_value::<ManagedFieldsEntry>(entry).unwrap()
        };
        let meta = ObjectMeta {
            managed_fields: Some(vec![
                entry(FIELD_MANAGER, None, json!({ "f:spec": { "f:selector": {} } })),
                entry("controller", Some("status"), json!({ "f:spec": { "f:type": {} } })),
                entry("kubectl", Some("scale"), json!({ "f:spec": { "f:replicas": {} } })),
                entry(
                    "kubectl-edit",
                    None,
                    json!({ "f:spec": { "f:externalIPs": {}, "f:type": {}, "f:ports": { "k:{\"port\":1}": {} } } }),
                ),
            ]),
            ..ObjectMeta::default()
        };
        let by = |path: &[&str]| changed_by(&meta, &path.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(by(&["spec", "type"]).as_deref(), Some("kubectl-edit"));
        assert_eq!(by(&["spec", "ports", "[0]", "port"]).as_deref(), Some("kubectl-edit"));
        assert_eq!(by(&["spec", "externalIPs", "x"]).as_deref(), Some("kubectl-edit"));
        assert_eq!(by(&["spec", "selector"]), None);
        assert_eq!(by(&["metadata", "labels"]), None);
        assert_eq!(by(&["spec", "replicas"]).as_deref(), Some("kubectl"));
        assert!(is_own(&meta, &["spec", "selector", "x"]) && !is_own(&meta, &["spec", "type"]));
    }

    #[test]
    fn quantities_are_compared_and_not_how_they_are_written() {
        assert_eq!(bytes("1T"), bytes("1000G"));
        assert!(bytes("1Gi") > bytes("1G"));
        assert_eq!(bytes("5368709120"), bytes("5Gi"));
        for odd in ["", "G", "1e3", "1.5G", "-1G", "1Q"] {
            assert_eq!(bytes(odd), None, "{odd}");
        }
    }
}

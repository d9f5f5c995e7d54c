//! An instance's objects, from the templates in `src/templates/`.
//!
//! Every value is written as JSON, which is YAML that can't be anything but a value; unknown names
//! in a template are errors; the result is parsed into the object's own type.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use toygres_models::{Failure, FailureKind, InstanceKey, PostgresVersion, StorageSize};
use uuid::Uuid;

use super::login::Login;
use crate::platform::certificates::Issued;
use crate::platform::kubernetes::config::Resources;
use crate::platform::kubernetes::identity::{self, MemberNames, Names};
use crate::platform::sizing::Sizing;

macro_rules! template {
    ($name:literal) => {
        ($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/templates/", $name)))
    };
}

type Template = (&'static str, &'static str);

/// Makes the objects of one instance.
pub(in crate::platform::kubernetes) struct Manifests<'a> {
    key: &'a InstanceKey,
    names: Names,
}

fn defect(template: &str, words: &dyn std::fmt::Display) -> Failure {
    Failure::permanent(FailureKind::Internal, format!("the template {template} can't be rendered: {words}"))
}

/// By way of JSON, which the client reads all objects from: to read them from YAML as well is as much code again, of which
/// a third of this crate would consist.
fn parse<K: DeserializeOwned>(yaml: &str) -> Option<K> {
    let value: Json = serde_saphyr::from_str(yaml).ok()?;
    serde_json::from_str(&value.to_string()).ok()
}

/// Renders text; values in YAML are escaped, those in a server's files aren't.
fn render((name, source): Template, values: Json) -> Result<String, Failure> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|name| if name.ends_with(".yaml") { AutoEscape::Json } else { AutoEscape::None });
    let mut syntax = SyntaxConfig::builder();
    syntax.keep_trailing_newline(true);
    environment.set_syntax(syntax.build().map_err(|error| defect(name, &error))?);
    let template = environment.template_from_named_str(name, source).map_err(|error| defect(name, &error))?;
    template.render(Serde(values)).map_err(|error| defect(name, &error))
}

/// Encoded as Secrets want it.
fn base64(bytes: &[u8]) -> ByteString {
    ByteString(bytes.to_vec())
}

impl<'a> Manifests<'a> {
    pub(in crate::platform::kubernetes) fn new(key: &'a InstanceKey) -> Self {
        Self { key, names: Names::of(key) }
    }

    fn text(&self, template: Template, values: Json) -> Result<String, Failure> {
        let mut all = json!({
            "names": self.names,
            "namespace": self.key.namespace,
            "labels": identity::labels(self.key),
            "annotations": identity::annotations(self.key),
            "selector": identity::selector(self.key),
        });
        if let (Json::Object(all), Json::Object(values)) = (&mut all, values) {
            all.extend(values);
        }
        render(template, all)
    }

    fn object<K: DeserializeOwned>(&self, template: Template, values: Json) -> Result<K, Failure> {
        let text = self.text(template, values)?;
        // The error would show the line, which may hold a secret.
        parse(&text).ok_or_else(|| defect(template.0, &"it isn't the object it should be"))
    }

    fn annotations(&self, more: impl IntoIterator<Item = (&'static str, String)>) -> impl Serialize {
        let mut annotations = identity::annotations(self.key);
        annotations.extend(more);
        annotations
    }

    pub(in crate::platform::kubernetes) fn connection(
        &self,
        password: &SecretString,
        login: Option<&Login>,
    ) -> Result<Secret, Failure> {
        let mut entries = login.map(|login| login.entries(password)).unwrap_or_default();
        entries.insert("password", password.expose_secret().to_owned());
        let entries: BTreeMap<_, _> = entries.into_iter().map(|(name, value)| (name, base64(value.as_bytes()))).collect();
        self.object(template!("postgres-connection.yaml"), json!({ "entries": entries }))
    }

    pub(in crate::platform::kubernetes) fn new_password(
        &self,
        instance_id: Uuid,
        password: &SecretString,
    ) -> Result<Secret, Failure> {
        let values = json!({
            "name": identity::new_password(instance_id),
            "password_base64": base64(password.expose_secret().as_bytes())});
        self.object(template!("postgres-new-password.yaml"), values)
    }

    pub(in crate::platform::kubernetes) fn tls(
        &self,
        issued: &Issued,
        notes: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Secret, Failure> {
        let values = json!({
            "annotations": self.annotations(notes),
            "certificate_base64": base64(issued.chain_pem.as_bytes()),
            "key_base64": base64(issued.key_pem.as_bytes())});
        self.object(template!("postgres-tls.yaml"), values)
    }

    pub(in crate::platform::kubernetes) fn service_account(&self) -> Result<ServiceAccount, Failure> {
        self.object(template!("postgres-serviceaccount.yaml"), json!({}))
    }

    pub(in crate::platform::kubernetes) fn config_map(&self, client_ca_pem: &str, sizing: &Sizing) -> Result<ConfigMap, Failure> {
        // cluster_name holds 63 bytes; names are ASCII.
        let cluster_name: String = self.key.to_string().chars().take(63).collect();
        let files = json!({
            "start": render(template!("files/start.sh"), json!({}))?,
            "probe": render(template!("files/probe.sh"), json!({}))?,
            "postgresql_conf": render(
                template!("files/postgresql.conf"),
                json!({ "cluster_name": cluster_name, "sizing": sizing.to_conf() }),
            )?,
            "pg_hba_conf": render(template!("files/pg_hba.conf"), json!({}))?,
            "client_ca": client_ca_pem,
        });
        self.object(template!("postgres-configmap.yaml"), json!({ "files": files }))
    }

    pub(in crate::platform::kubernetes) fn volume_claim(
        &self,
        member: u32,
        size: StorageSize,
        storage_class: Option<&str>,
        record: BTreeMap<&'static str, String>,
    ) -> Result<PersistentVolumeClaim, Failure> {
        let values = json!({
            "member": MemberNames::of(self.key, member),
            "labels": identity::member_labels(self.key, member),
            "storage_class": storage_class,
            "storage": format!("{}G", size.gb()),
            "annotations": self.annotations(record)});
        self.object(template!("postgres-pvc.yaml"), values)
    }

    pub(in crate::platform::kubernetes) fn service(&self, public: bool, dns_label: Option<&str>) -> Result<Service, Failure> {
        // https://cloud-provider-azure.sigs.k8s.io/topics/loadbalancer/
        let azure = dns_label.map(|label| ("service.beta.kubernetes.io/azure-dns-label-name", label.to_owned()));
        self.object(template!("postgres-service.yaml"), json!({ "public": public, "annotations": self.annotations(azure) }))
    }

    pub(in crate::platform::kubernetes) fn network_policy(
        &self,
        public: bool,
        control_namespace: Option<&str>,
    ) -> Result<NetworkPolicy, Failure> {
        self.object(template!("postgres-networkpolicy.yaml"), json!({ "public": public, "control_namespace": control_namespace }))
    }

    pub(in crate::platform::kubernetes) fn disruption_budget(&self, protects: bool) -> Result<PodDisruptionBudget, Failure> {
        self.object(template!("postgres-poddisruptionbudget.yaml"), json!({ "max_unavailable": u8::from(!protects) }))
    }

    pub(in crate::platform::kubernetes) fn stateful_set(
        &self,
        member: u32,
        version: PostgresVersion,
        image: &str,
        resources: &Resources,
        user_id: i64,
        runs: bool,
    ) -> Result<StatefulSet, Failure> {
        let major = version.major();
        // As the official images have it: from 18 on the volume is one level up, so that pg_upgrade
        // can link from one major's folder to the next's. Before, a folder in the volume, since a
        // volume's root may hold what initdb doesn't expect (lost+found).
        let (volume_path, pgdata) = if major >= 18 {
            ("/var/lib/postgresql", format!("/var/lib/postgresql/{major}/docker"))
        } else {
            ("/var/lib/postgresql/data", "/var/lib/postgresql/data/pgdata".to_owned())
        };
        let mut labels = identity::member_labels(self.key, member);
        labels.insert("app.kubernetes.io/version", version.to_string());
        let values = json!({
            "member": MemberNames::of(self.key, member),
            "selector": identity::member_selector(self.key, member),
            "labels": labels,
            "annotations": self.annotations([(identity::POSTGRES_VERSION, version.to_string())]),
            "image": image,
            "replicas": i32::from(runs),
            "volume_path": volume_path,
            "pgdata": pgdata,
            "user_id": user_id,
            "shared_memory": format!("{}Mi", (resources.memory_mib() / 2).max(64)),
            "resources": resources});
        self.object(template!("postgres-statefulset.yaml"), values)
    }
}

#[cfg(test)]
mod tests;

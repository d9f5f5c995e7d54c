//! What the Kubernetes platform finds of its cluster, for `toygres doctor`. Changes nothing.

use futures::future::join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Namespace as NamespaceObject;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, ListParams, PostParams};
use toygres_models::{Failure, Namespace};

use super::config::KubernetesConfig;
use crate::k8s_client::K8sClient;
use crate::platform::Diagnosis;

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// What a create and a delete do with each kind of object.
const WRITTEN: &[(&str, &str)] = &[
    ("apps", "statefulsets"),
    ("", "services"),
    ("", "persistentvolumeclaims"),
    ("", "secrets"),
    ("", "configmaps"),
    ("", "serviceaccounts"),
    ("networking.k8s.io", "networkpolicies"),
    ("policy", "poddisruptionbudgets"),
];
const WRITING: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];
/// What is only looked at, or done to pods.
const LOOKED_AT: &[(&str, &str, &str)] = &[
    ("", "pods", "get"),
    ("", "pods", "list"),
    ("", "pods", "watch"),
    ("", "pods", "delete"),
    ("", "pods/log", "get"),
    ("", "events", "list"),
    ("", "events", "watch"),
];
/// What reaching a private instance from outside takes.
const FROM_OUTSIDE: (&str, &str, &str) = ("", "pods/portforward", "create");

fn found(name: &'static str, message: String) -> Diagnosis {
    Diagnosis { name, ok: true, message, remedy: None }
}

fn missing(name: &'static str, message: String, remedy: impl Into<Option<String>>) -> Diagnosis {
    Diagnosis { name, ok: false, message, remedy: remedy.into() }
}

fn failed(name: &'static str, failure: Failure) -> Diagnosis {
    missing(name, failure.message, None)
}

/// Looks at everything that instances in `namespace` need.
pub async fn diagnose(config: &KubernetesConfig, namespace: &Namespace) -> Vec<Diagnosis> {
    let client = match K8sClient::connect(&config.cluster).await {
        Ok(client) => client,
        Err(failure) => return vec![failed("cluster", failure)],
    };
    let cluster = match client.call("ask the cluster for its version", client.raw().apiserver_version()).await {
        Ok(version) => found("cluster", format!("Kubernetes {} by {}", version.git_version, client.source())),
        Err(failure) => return vec![failed("cluster", failure)],
    };
    let (place, rights, class) =
        tokio::join!(namespace_exists(&client, namespace), rights(&client, namespace), storage_class(&client, config));
    vec![cluster, place, rights, class]
}

async fn namespace_exists(client: &K8sClient, namespace: &Namespace) -> Diagnosis {
    const NAME: &str = "namespace";
    let namespaces: Api<NamespaceObject> = Api::all(client.raw());
    let call = async {
        match namespaces.get_metadata_opt(namespace.as_str()).await {
            // Not everyone may look at namespaces; what one may do in them is another question.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
            other => other.map(|namespace| Some(namespace.is_some())),
        }
    };
    match client.call("look at the namespace", call).await {
        Ok(Some(true)) => found(NAME, format!("{namespace} is there")),
        Ok(Some(false)) => {
            let remedy = format!("kubectl create namespace {namespace}, or name another one with --namespace");
            missing(NAME, format!("{namespace} isn't there"), remedy)
        }
        Ok(None) => found(NAME, format!("{namespace} (whether it is there can't be seen with these rights)")),
        Err(failure) => failed(NAME, failure),
    }
}

async fn rights(client: &K8sClient, namespace: &Namespace) -> Diagnosis {
    const NAME: &str = "rights";
    let written = WRITTEN.iter().flat_map(|(group, resource)| WRITING.iter().map(|verb| (*group, *resource, *verb)));
    let outside = (!client.is_in_cluster()).then_some(FROM_OUTSIDE);
    let asked: Vec<_> = written.chain(LOOKED_AT.iter().copied()).chain(outside).collect();
    let answers = join_all(asked.iter().map(|right| may(client, namespace, *right))).await;
    let mut lacking = Vec::new();
    for ((_, resource, verb), answer) in asked.iter().zip(answers) {
        match answer {
            Ok(true) => {}
            Ok(false) => lacking.push(format!("{verb} {resource}")),
            Err(failure) => return failed(NAME, failure),
        }
    }
    if lacking.is_empty() {
        return found(NAME, format!("all that instances in {namespace} need"));
    }
    let message = format!("not allowed in {namespace}: {}", lacking.join(", "));
    missing(NAME, message, "have them granted: the chart's Role lists all of them".to_owned())
}

async fn may(client: &K8sClient, namespace: &Namespace, (group, resource, verb): (&str, &str, &str)) -> Result<bool, Failure> {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (resource, None),
    };
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource,
        verb: Some(verb.to_owned()),
        namespace: Some(namespace.to_string()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..Default::default() };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.raw());
    let params = PostParams::default();
    let answer = client.call("ask for this account's rights", reviews.create(&params, &review)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

async fn storage_class(client: &K8sClient, config: &KubernetesConfig) -> Diagnosis {
    const NAME: &str = "storage class";
    let classes: Api<StorageClass> = Api::all(client.raw());
    let call = async {
        match classes.list_metadata(&ListParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
            other => other.map(Some),
        }
    };
    let classes = match client.call("list the storage classes", call).await {
        Ok(Some(classes)) => classes.items,
        Ok(None) => return found(NAME, "what there is can't be seen with these rights".to_owned()),
        Err(failure) => return failed(NAME, failure),
    };
    let is_default = |class: &&kube::core::PartialObjectMeta<StorageClass>| {
        let annotations = class.metadata.annotations.as_ref();
        annotations.and_then(|annotations| annotations.get(DEFAULT_CLASS)).is_some_and(|value| value == "true")
    };
    let name = |class: &kube::core::PartialObjectMeta<StorageClass>| class.metadata.name.clone().unwrap_or_default();
    match &config.storage_class {
        Some(wanted) if classes.iter().any(|class| name(class) == *wanted) => found(NAME, wanted.clone()),
        Some(wanted) => {
            let known: Vec<_> = classes.iter().map(name).collect();
            missing(NAME, format!("there is no {wanted}; there are {}", known.join(", ")), None)
        }
        None => match classes.iter().find(is_default) {
            Some(class) => found(NAME, format!("{}, the cluster's default", name(class))),
            None => missing(NAME, "the cluster has no default".to_owned(), "name one with --storage-class".to_owned()),
        },
    }
}

//! A cluster that can't be reached, or doesn't let toygres do its work: the failure says so at once.
//! Runs where `TOYGRES_TEST_KUBERNETES=1` and KUBECONFIG say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use serde_json::json;
use toygres_activities::platform::Platform;
use toygres_activities::platform::kubernetes::{KubernetesConfig, KubernetesPlatform};
use toygres_models::{Failure, FailureKind};

use crate::support;
use crate::support::kubernetes::{Kubernetes, kubeconfig, kubectl_apply};
use crate::support::{READY, Subject};

async fn subject() -> Option<Kubernetes> {
    Kubernetes::new("17").await
}

/// What a platform needs in a namespace: API group, resource, verbs.
const RIGHTS: &[(&str, &str)] = &[
    ("", "configmaps"),
    ("", "events"),
    ("", "persistentvolumeclaims"),
    ("", "pods"),
    ("", "pods/log"),
    ("", "pods/portforward"),
    ("", "secrets"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("apps", "statefulsets"),
    ("networking.k8s.io", "networkpolicies"),
    ("policy", "poddisruptionbudgets"),
];
const VERBS: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// A platform as a service account that has all rights but one.
async fn lacking(subject: &Kubernetes, number: usize, verb: &str, resource: &str) -> std::sync::Arc<KubernetesPlatform> {
    let (account, namespace) = (format!("weak-{number}"), &subject.namespace);
    let rules: Vec<_> = RIGHTS
        .iter()
        .map(|(group, name)| {
            let verbs: Vec<_> = VERBS.iter().filter(|known| (**known, *name) != (verb, resource)).collect();
            json!({"apiGroups": [group], "resources": [name], "verbs": verbs})
        })
        .collect();
    let meta = json!({"name": account, "namespace": namespace});
    for object in [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": rules}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]}),
    ] {
        kubectl_apply(&object.to_string());
    }
    let token = subject.kubectl(&["create", "token", &account]);
    let user = format!("--as=system:serviceaccount:{namespace}:{account}");
    support::eventually("the role holds", || async {
        let asked = ["-n", namespace, "auth", "can-i", "get", "poddisruptionbudgets", &user];
        std::process::Command::new("kubectl").args(asked).output().unwrap().status.success()
    })
    .await;
    subject.platform_on(subject.as_user(json!({"token": token.trim()}))).await
}

#[track_caller]
fn is_forbidden(failure: &Failure, words: &str) {
    eprintln!("{failure}");
    assert_eq!((failure.kind, failure.retryable), (FailureKind::Platform, false), "{failure}");
    assert!(failure.message.contains(words) && failure.message.contains("isn't allowed"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_do_nothing_is_told_so_at_once() {
    let Some(subject) = subject().await else { return };
    subject.kubectl(&["create", "serviceaccount", "nobody"]);
    let token = subject.kubectl(&["create", "token", "nobody"]);
    let platform = subject.platform_on(subject.as_user(json!({"token": token.trim()}))).await;
    let key = subject.real_key("demo");
    is_forbidden(&platform.ensure(&subject.real_spec("demo")).await.unwrap_err(), "cannot get resource");
    is_forbidden(&platform.observe(&key).await.unwrap_err(), "cannot get resource");
    is_forbidden(&platform.wait_ready(&key, READY).await.unwrap_err(), "cannot get resource");
    is_forbidden(&platform.endpoint(&key).await.unwrap_err(), "cannot get resource \"services\"");
    is_forbidden(&platform.log_tail(&key, 1).await.unwrap_err(), "cannot get resource");
    is_forbidden(&platform.list().await.unwrap_err(), "cannot list resource");
    is_forbidden(&platform.remove(&key).await.unwrap_err(), "cannot list resource");
    is_forbidden(&platform.renew_certificates().await.unwrap_err(), "cannot list resource \"secrets\"");
    subject.kubectl(&["delete", "serviceaccount", "nobody"]);
    assert_eq!(subject.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_right_that_is_lacking_is_named_at_once() {
    let Some(subject) = subject().await else { return };
    let key = subject.real_key("demo");
    let cases = [
        ("get", "secrets"),
        ("patch", "statefulsets"),
        ("patch", "services"),
        ("list", "events"),
        ("watch", "pods"),
        ("list", "persistentvolumeclaims"),
        ("delete", "persistentvolumeclaims"),
        ("watch", "persistentvolumeclaims"),
    ];
    for (number, (verb, resource)) in cases.into_iter().enumerate() {
        let platform = lacking(&subject, number, verb, resource).await;
        let life = async {
            platform.ensure(&subject.real_spec("demo")).await?;
            assert!(platform.wait_ready(&key, READY).await?.ready);
            platform.endpoint(&key).await?;
            platform.remove(&key).await
        };
        is_forbidden(&life.await.unwrap_err(), &format!("cannot {verb} resource \"{resource}\""));
        subject.platform.remove(&key).await.unwrap();
        assert_eq!(subject.servers(), 0);
        subject.kubectl(&["delete", "role,rolebinding,serviceaccount", &format!("weak-{number}")]);
        assert_eq!(subject.leftovers(), Vec::<String>::new(), "{verb} {resource}");
    }
    // With all of them, a whole life.
    let platform = lacking(&subject, cases.len(), "", "").await;
    platform.ensure(&subject.real_spec("demo")).await.unwrap();
    assert!(platform.wait_ready(&key, READY).await.unwrap().ready);
    assert!(platform.remove(&key).await.unwrap());
}

/// A client certificate for the cluster's administrator that expired yesterday, where the CA of the
/// cluster is at hand: beside the kubeconfig, as the test cluster has it.
fn expired_certificate() -> Option<serde_json::Value> {
    let folder = std::env::var_os("KUBECONFIG").map(PathBuf::from)?.parent()?.join("pki");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt")?, KeyPair::from_pem(&read("ca.key")?).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let day = Duration::from_secs(24 * 60 * 60);
    (params.not_before, params.not_after) = ((SystemTime::now() - 3 * day).into(), (SystemTime::now() - day).into());
    params.distinguished_name.push(DnType::CommonName, "admin");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let encoded = |pem: String| serde_json::to_value(k8s_openapi::ByteString(pem.into_bytes())).unwrap();
    Some(json!({"client-certificate-data": encoded(certificate.pem()), "client-key-data": encoded(key.serialize_pem())}))
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_hold_no_more_are_named_with_where_they_came_from() {
    let Some(subject) = subject().await else { return };
    subject.kubectl(&["create", "serviceaccount", "gone"]);
    let token = subject.kubectl(&["create", "token", "gone"]).trim().to_owned();
    subject.kubectl(&["delete", "serviceaccount", "gone"]);
    let mut users = vec![json!({"token": token}), json!({"token": "nonsense"})];
    match expired_certificate() {
        Some(user) => users.push(user),
        None => eprintln!("the cluster's CA isn't at hand: no expired certificate was tried"),
    }
    for user in users {
        let cluster = subject.as_user(user);
        let path = cluster.kubeconfig.clone().unwrap().display().to_string();
        let platform = subject.platform_on(cluster).await;
        for failure in [
            platform.ensure(&subject.real_spec("demo")).await.unwrap_err(),
            platform.wait_ready(&subject.real_key("demo"), READY).await.unwrap_err(),
            platform.remove(&subject.real_key("demo")).await.unwrap_err(),
        ] {
            assert_eq!((failure.kind, failure.retryable), (FailureKind::Platform, false), "{failure}");
            assert!(failure.message.contains("expired") && failure.message.contains(&path), "{failure}");
            assert!(!failure.message.contains(&token), "{failure}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_that_is_missing_or_leads_nowhere_is_named() {
    let Some(subject) = subject().await else { return };
    let missing = subject.folder.path().join("no-such-kubeconfig");
    let mut config = subject.config.clone();
    config.cluster.kubeconfig = Some(missing.clone());
    let failure = KubernetesPlatform::connect(config.clone()).await.err().unwrap();
    assert!(!failure.retryable && failure.message.contains(missing.to_str().unwrap()), "{failure}");

    for server in ["https://127.0.0.1:1", "https://no-such-host.invalid:6443"] {
        let cluster = kubeconfig(subject.folder.path(), |config| config["clusters"][0]["cluster"]["server"] = server.into());
        let path = cluster.kubeconfig.clone().unwrap().display().to_string();
        let platform = KubernetesPlatform::connect(KubernetesConfig { cluster, ..config.clone() }).await.unwrap();
        for failure in [
            platform.ensure(&subject.real_spec("demo")).await.unwrap_err(),
            platform.wait_ready(&subject.real_key("demo"), READY).await.unwrap_err(),
            platform.remove(&subject.real_key("demo")).await.unwrap_err(),
        ] {
            // It may come back.
            assert!(failure.kind == FailureKind::Platform && failure.retryable, "{failure}");
            assert!(failure.message.contains(server) && failure.message.contains(&path), "{failure}");
        }
    }
}

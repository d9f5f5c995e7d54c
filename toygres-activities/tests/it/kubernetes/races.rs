//! What the Kubernetes platform does when others are at work at the same time. Runs where
//! `TOYGRES_TEST_KUBERNETES=1` and KUBECONFIG say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::time::Duration;

use toygres_activities::platform::Platform;
use toygres_models::FailureKind;

use crate::support;
use crate::support::kubernetes::proxy::Proxy;
use crate::support::kubernetes::{Kubernetes, kubectl_apply};
use crate::support::{READY, Subject, ask};

/// The objects that a creation makes: kind, plural, path and name, and a stranger's manifest.
const OBJECTS: &[(&str, &str, &str, &str, &str)] = &[
    ("Service", "services", "api/v1", "demo", "spec: {ports: [{port: 80}]}"),
    (
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        "api/v1",
        "demo-data",
        "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}",
    ),
    ("ConfigMap", "configmaps", "api/v1", "demo-config", "data: {theirs: x}"),
    ("Secret", "secrets", "api/v1", "demo-connection", "stringData: {theirs: x}"),
    ("Secret", "secrets", "api/v1", "demo-tls", "stringData: {theirs: x}"),
    ("ServiceAccount", "serviceaccounts", "api/v1", "demo-postgres", ""),
    (
        "NetworkPolicy",
        "networkpolicies",
        "apis/networking.k8s.io/v1",
        "demo-postgres",
        "spec: {podSelector: {matchLabels: {a: b}}}",
    ),
    (
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        "apis/policy/v1",
        "demo-postgres",
        "spec: {minAvailable: 1, selector: {matchLabels: {a: b}}}",
    ),
    (
        "StatefulSet",
        "statefulsets",
        "apis/apps/v1",
        "demo",
        "spec: {replicas: 0, serviceName: x, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: c}]}}}",
    ),
];

fn request(subject: &Kubernetes, path: &str, plural: &str, name: &str) -> String {
    format!("PATCH /{path}/namespaces/{}/{plural}/{name}?", subject.namespace)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_a_stranger_makes_between_the_look_and_the_creation_is_left_alone() {
    let Some(subject) = Kubernetes::new("17").await else { return };
    let proxy = Proxy::plain().await;
    let platform = subject.platform_on(subject.by_way_of(&proxy)).await;
    let wanted = subject.real_spec("demo");
    for (kind, plural, path, name, manifest) in OBJECTS {
        let version = path.trim_start_matches("api/").trim_start_matches("apis/");
        let namespace = &subject.namespace;
        let theirs =
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{manifest}\n");
        proxy.before(&request(&subject, path, plural, name), move || kubectl_apply(&theirs));
        let failure = platform.ensure(&wanted).await.unwrap_err();
        assert!(!proxy.is_armed(), "{kind} {name} was never made");
        assert_eq!((failure.kind, failure.retryable), (FailureKind::Conflict, false), "{failure}");
        assert!(failure.message.contains(&format!("{kind} {namespace}/{name} ")), "{failure}");
        let shown = |path: &str| subject.kubectl(&["get", plural, name, "-o", &format!("jsonpath={path}")]);
        let managers = shown("{.metadata.labels}{.metadata.managedFields[*].manager}");
        assert!(!managers.contains("toygres"), "{managers}");
        let uid = shown("{.metadata.uid}");
        assert!(platform.remove(&wanted.key).await.unwrap());
        assert_eq!(shown("{.metadata.uid}"), uid, "it was removed");
        subject.kubectl(&["delete", plural, name, "--wait=true"]);
        assert_eq!(subject.leftovers(), Vec::<String>::new());
    }
}

/// Two servers, or an activity and its own repeat: the slower one uses the objects that the quicker one made.
#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_is_overtaken_by_its_own_repeat_takes_what_is_there() {
    let Some(subject) = Kubernetes::new("17").await else { return };
    let proxy = Proxy::plain().await;
    let platform = subject.platform_on(subject.by_way_of(&proxy)).await;
    let wanted = subject.real_spec("demo");
    for (_, plural, path, name, _) in OBJECTS {
        let (other, runtime, same) = (subject.platform.clone(), tokio::runtime::Handle::current(), wanted.clone());
        proxy.before(&request(&subject, path, plural, name), move || {
            runtime.block_on(other.ensure(&same)).unwrap();
        });
        platform.ensure(&wanted).await.unwrap();
        assert!(!proxy.is_armed(), "{plural} {name} was never made");
        ask(&subject, "demo", "SELECT 'x'").await;
        assert!(!platform.ensure(&wanted).await.unwrap());
        platform.remove(&wanted.key).await.unwrap();
        assert_eq!(subject.leftovers(), Vec::<String>::new());
    }
}

/// Whatever waits goes on waiting when its watch is cut off.
#[tokio::test(flavor = "multi_thread")]
async fn watches_that_are_cut_off_are_resumed() {
    let Some(subject) = Kubernetes::new("17").await else { return };
    let proxy = Proxy::plain().await;
    let platform = subject.platform_on(subject.by_way_of(&proxy)).await;
    let key = subject.real_key("demo");
    platform.ensure(&subject.real_spec("demo")).await.unwrap();
    subject.kubectl(&["wait", "--for=create", "pod/demo-0", "--timeout=60s"]);
    // Nothing can get ready as long as the last pod is held: a StatefulSet makes no second one of its name.
    subject.kubectl(&["wait", "--for=condition=Ready", "pod/demo-0", "--timeout=120s"]);
    subject.kubectl(&["patch", "pod", "demo-0", "--type=merge", "-p", HOLD]);
    subject.kubectl(&["delete", "pod", "demo-0", "--wait=false"]);
    subject.kubectl(&["wait", "--for=condition=Ready=false", "pod/demo-0", "--timeout=60s"]);
    let waiting = tokio::spawn({
        let (platform, key) = (platform.clone(), key.clone());
        async move { platform.wait_ready(&key, READY).await }
    });
    cut_watches(&proxy, 4).await;
    subject.kubectl(&["patch", "pod", "demo-0", "--type=merge", "-p", LET_GO]);
    assert!(waiting.await.unwrap().unwrap().ready);

    // Nothing is gone as long as somebody holds it.
    subject.kubectl(&["patch", "service", "demo", "--type=merge", "-p", HOLD]);
    let removing = tokio::spawn({
        let (platform, key) = (platform.clone(), key.clone());
        async move { platform.remove(&key).await }
    });
    cut_watches(&proxy, 4).await;
    assert!(!removing.is_finished());
    subject.kubectl(&["patch", "service", "demo", "--type=merge", "-p", LET_GO]);
    assert!(removing.await.unwrap().unwrap());
    assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]));
}

const HOLD: &str = r#"{"metadata":{"finalizers":["test.example/hold"]}}"#;
const LET_GO: &str = r#"{"metadata":{"finalizers":null}}"#;

async fn cut_watches(proxy: &Proxy, number: usize) {
    let before = proxy.watches_cut();
    support::eventually("the watches are up, and cut", || async {
        proxy.cut_watches();
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.watches_cut() >= before + number
    })
    .await;
}

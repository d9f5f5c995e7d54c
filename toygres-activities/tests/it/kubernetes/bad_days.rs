//! What the cluster doesn't give, and what somebody takes away: the failure is true, the next creation
//! mends what can be mended, and a removal leaves nothing. Runs where `TOYGRES_TEST_KUBERNETES=1` and
//! KUBECONFIG say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::process::Command;
use std::time::{Duration, Instant};

use sqlx::postgres::PgSslMode;
use toygres_activities::platform::kubernetes::{KubernetesConfig, KubernetesPlatform};
use toygres_activities::platform::{Observation, Platform};
use toygres_models::{Failure, FailureKind};

use crate::support;
use crate::support::kubernetes::{Kubernetes, kubectl, kubectl_apply};
use crate::support::{PASSWORD, READY, Subject, ask, connect};

async fn subject() -> Option<Kubernetes> {
    Kubernetes::new("17").await
}

/// Waits as the workflow does, until the instance is ready or waiting can't help.
async fn wait(subject: &Kubernetes, name: &str, patience: Duration) -> Result<Observation, Failure> {
    let begun = Instant::now();
    loop {
        match subject.platform.wait_ready(&subject.real_key(name), Duration::from_secs(5)).await {
            Ok(seen) if seen.ready => return Ok(seen),
            Err(failure) if !failure.retryable => return Err(failure),
            seen => assert!(begun.elapsed() < patience, "neither after {patience:?}: {seen:#?}"),
        }
    }
}

async fn removed(subject: &Kubernetes, names: &[&str]) {
    let keys: Vec<_> = names.iter().map(|name| subject.real_key(name)).collect();
    let removals = keys.iter().map(|key| async {
        // As the workflow does.
        while let Err(failure) = subject.platform.remove(key).await {
            assert!(failure.retryable, "{failure}");
        }
    });
    futures::future::join_all(removals).await;
    assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]));
}

/// A StorageClass of the test's own; it belongs to no namespace.
struct StorageClass(String);

impl Drop for StorageClass {
    fn drop(&mut self) {
        let _ = Command::new("kubectl").args(["delete", "storageclass", &self.0]).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_nobody_makes_fails_with_the_claims_words() {
    let Some(subject) = subject().await else { return };
    let class = StorageClass(subject.namespace.clone());
    kubectl_apply(&format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {}}}\nprovisioner: nobody.example/none\n",
        class.0
    ));
    let config = KubernetesConfig { storage_class: Some(class.0.clone()), ..subject.config.clone() };
    let platform = KubernetesPlatform::connect(config).await.unwrap();
    platform.ensure(&subject.real_spec("demo")).await.unwrap();
    let begun = Instant::now();
    // Well within the five minutes that a workflow waits.
    let failure = wait(&subject, "demo", Duration::from_secs(120)).await.unwrap_err();
    eprintln!("failed after {:.1?}: {failure}\n  {}", begun.elapsed(), failure.evidence.join("\n  "));
    assert_eq!(failure.kind, FailureKind::Platform);
    assert!(failure.message.contains("nobody.example/none") && failure.message.contains(&class.0), "{failure}");
    removed(&subject, &["demo"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_gets_no_address_says_so_and_is_asked_again() {
    let Some(subject) = subject().await else { return };
    let mut wanted = subject.real_spec("demo");
    wanted.spec.use_load_balancer = true;
    subject.platform.ensure(&wanted).await.unwrap();
    wait(&subject, "demo", READY).await.unwrap();
    // An entry without an address: this cluster's load balancer takes its work for done.
    let none = r#"{"status":{"loadBalancer":{"ingress":[{}]}}}"#;
    subject.kubectl(&["patch", "service", "demo", "--subresource=status", "--type=merge", "-p", none]);
    let failure = subject.platform.endpoint(&wanted.key).await.unwrap_err();
    assert!(failure.retryable && failure.message.contains("has no address yet"), "{failure}");
    assert!(failure.message.contains("load balancer"), "{failure}");
    // It repeats what is there, and doesn't wait for ever.
    assert!(!subject.platform.ensure(&wanted).await.unwrap());
    let given = r#"{"status":{"loadBalancer":{"ingress":[]}}}"#;
    subject.kubectl(&["patch", "service", "demo", "--subresource=status", "--type=merge", "-p", given]);
    support::eventually("there is an address", || async { subject.platform.endpoint(&wanted.key).await.is_ok() }).await;
    removed(&subject, &["demo"]).await;
}

/// Whose deletion is mended by making the instance again.
const MENDABLE: &[(&str, &str, &str)] = &[
    ("a", "statefulset", ""),
    ("b", "service", ""),
    ("c", "configmap", "-config"),
    ("d", "secret", "-tls"),
    ("e", "secret", "-connection"),
];

fn delete(subject: &Kubernetes, kind: &str, object: &str) {
    subject.kubectl(&["delete", kind, object, "--wait=false"]);
}

/// Makes it again, as often as that may help, and asks it.
async fn mended(subject: &Kubernetes, name: &str, what: &str) {
    let (platform, begun) = (&subject.platform, Instant::now());
    while let Err(failure) = platform.ensure(&subject.real_spec(name)).await {
        assert!(failure.retryable && begun.elapsed() < READY, "{what}: {failure}");
    }
    // A kubelet that found nothing to mount looks again after a while, longer each time.
    let mut last = None;
    while begun.elapsed() < Duration::from_secs(180) {
        match wait(subject, name, Duration::from_secs(180)).await {
            Ok(_) => {
                let version = ask(subject, name, "SHOW server_version").await;
                eprintln!("{what}: mended after {:.1?} ({version})", begun.elapsed());
                return;
            }
            Err(failure) => last = Some(failure),
        }
    }
    panic!("{what}: {last:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_before_the_server_is_ready_is_mended_or_named() {
    let Some(subject) = &subject().await else { return };
    futures::future::join_all(MENDABLE.iter().map(|(name, kind, suffix)| async move {
        subject.platform.ensure(&subject.real_spec(name)).await.unwrap();
        let object = format!("{name}{suffix}");
        delete(subject, kind, &object);
        // Whatever is found is true: it came up all the same, or this is missing.
        match wait(subject, name, READY).await {
            Ok(_) => eprintln!("{kind} {object}: its server came up without it"),
            Err(failure) => {
                eprintln!("{kind} {object}: {failure}");
                let named = failure.message.contains(&object) || failure.message.contains("StatefulSet is missing");
                assert!(named && !failure.message.contains(PASSWORD), "{failure}");
            }
        }
        mended(subject, name, &format!("{kind} {object}")).await;
    }))
    .await;
    removed(subject, &["a", "b", "c", "d", "e"]).await;

    // A claim's deletion can't be called back. It ends when no pod uses it.
    subject.platform.ensure(&subject.real_spec("demo")).await.unwrap();
    delete(subject, "persistentvolumeclaim", "demo-data");
    let failure = subject.platform.ensure(&subject.real_spec("demo")).await.unwrap_err();
    eprintln!("{failure}");
    assert!(failure.message.contains("demo-data"), "{failure}");
    removed(subject, &["demo"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_while_the_server_runs_is_mended_and_its_data_is_there() {
    let Some(subject) = &subject().await else { return };
    futures::future::join_all(MENDABLE.iter().map(|(name, kind, suffix)| async move {
        subject.platform.ensure(&subject.real_spec(name)).await.unwrap();
        wait(subject, name, READY).await.unwrap();
        let mut connection = connect(subject, name, PASSWORD, PgSslMode::VerifyFull).await.unwrap();
        sqlx::raw_sql("CREATE TABLE kept AS SELECT 'kept' AS word").execute(&mut connection).await.unwrap();
        drop(connection);
        let object = format!("{name}{suffix}");
        delete(subject, kind, &object);
        if *kind == "service" {
            support::eventually("it is gone", || async { subject.platform.endpoint(&subject.real_key(name)).await.is_err() })
                .await;
            let failure = subject.platform.endpoint(&subject.real_key(name)).await.unwrap_err();
            assert!(failure.message.contains("Service") && failure.kind != FailureKind::NotFound, "{failure}");
        }
        mended(subject, name, &format!("{kind} {object}")).await;
        assert_eq!(ask(subject, name, "SELECT word FROM kept").await, "kept");
    }))
    .await;
    removed(subject, &["a", "b", "c", "d", "e"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_deleted_is_told_of_and_comes_back() {
    let Some(subject) = subject().await else { return };
    let mut events = subject.platform.events();
    subject.platform.ensure(&subject.real_spec("demo")).await.unwrap();
    wait(&subject, "demo", READY).await.unwrap();
    subject.kubectl(&["delete", "pod", "demo-0", "--wait=false"]);
    for kind in ["server_exited", "server_restarted"] {
        let told = tokio::time::timeout(READY, events.recv()).await.unwrap().unwrap();
        assert_eq!((told.kind, told.key), (kind, subject.real_key("demo")), "{}", told.message);
    }
    removed(&subject, &["demo"]).await;
}

/// The whole namespace, before the server is ready and while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_deleted_is_named_and_leaves_nothing() {
    for running in [false, true] {
        let Some(subject) = subject().await else { return };
        let (platform, key) = (&subject.platform, subject.real_key("demo"));
        platform.ensure(&subject.real_spec("demo")).await.unwrap();
        if running {
            wait(&subject, "demo", READY).await.unwrap();
        }
        kubectl(&["delete", "namespace", &subject.namespace, "--wait=false"]);
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < Duration::from_secs(120), "the namespace is still there");
            let failure = match platform.ensure(&subject.real_spec("demo")).await {
                Err(failure) => failure,
                // The cluster hasn't begun with it: all is there.
                Ok(made) => {
                    assert!(!made, "something was made in a namespace that is being deleted");
                    continue;
                }
            };
            eprintln!("{:.1?}: {failure}", begun.elapsed());
            assert!(failure.message.contains(&subject.namespace), "{failure}");
            if failure.kind == FailureKind::NotFound {
                assert!(!failure.retryable && failure.message.contains("kubectl create namespace"), "{failure}");
                break;
            }
            // Meanwhile a removal goes on with what is left.
            if let Err(failure) = platform.remove(&key).await {
                assert!(failure.retryable, "{failure}");
            }
        }
        assert_eq!(platform.wait_ready(&key, READY).await.unwrap_err().kind, FailureKind::NotFound);
        assert!(!platform.remove(&key).await.unwrap());
        assert!(platform.list().await.unwrap().is_empty());
        assert_eq!(subject.leftovers(), Vec::<String>::new());
    }
}

//! Parts of an instance that somebody deletes: what is around intact data is listed and made again, data never is.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use sqlx::postgres::PgSslMode;
use toygres_activities::platform::Deployment;
use toygres_models::Power;

use crate::support::kubernetes::Kubernetes;
use crate::support::{PASSWORD, Subject, ask, connect, key, powered, spec};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_around_intact_data_is_listed_and_made_again() {
    let Some(subject) = Kubernetes::new("17").await else { return };
    let platform = subject.platform();
    platform.ensure(&spec(&subject, "demo")).await.unwrap();
    let mut connection = connect(&subject, "demo", PASSWORD, PgSslMode::VerifyFull).await.unwrap();
    sqlx::raw_sql("CREATE TABLE kept AS SELECT 'kept' AS word").execute(&mut connection).await.unwrap();
    drop(connection);
    assert_eq!(platform.missing_parts(&key("demo")).await.unwrap(), Vec::<String>::new());
    let again = powered(&subject, "demo", Power::Running);
    let parts = [
        ("statefulset/demo", "the StatefulSet"),
        ("service/demo", "the Service"),
        ("secret/demo-tls", "the Secret with the certificate"),
        ("configmap/demo-config", "the ConfigMap"),
        ("serviceaccount/demo-postgres", "the ServiceAccount"),
        ("networkpolicy/demo-postgres", "the NetworkPolicy"),
        ("poddisruptionbudget/demo-postgres", "the PodDisruptionBudget"),
    ];
    for (object, part) in parts {
        subject.kubectl(&["delete", object, "--wait=true"]);
        assert_eq!(platform.missing_parts(&key("demo")).await.unwrap(), [part]);
        assert!(platform.ensure(&again).await.unwrap(), "{object}");
        assert_eq!(platform.missing_parts(&key("demo")).await.unwrap(), Vec::<String>::new(), "{object}");
        assert_eq!(ask(&subject, "demo", "SELECT word FROM kept").await, "kept", "{object}");
    }
    // The server has a password that nobody knows any more: only together with a new one is it kept again.
    subject.kubectl(&["delete", "secret/demo-connection", "--wait=true"]);
    assert_eq!(platform.missing_parts(&key("demo")).await.unwrap(), ["the Secret with the password"]);
    let again_with_data = Deployment { data_exists: true, ..again.clone() };
    assert!(!platform.ensure(&again_with_data).await.unwrap());
    assert_eq!(platform.missing_parts(&key("demo")).await.unwrap(), ["the Secret with the password"]);
    platform.set_password(&key("demo"), &"another one".to_owned().into()).await.unwrap();
    connect(&subject, "demo", "another one", PgSslMode::VerifyFull).await.unwrap();
    platform.set_password(&key("demo"), &PASSWORD.to_owned().into()).await.unwrap();
    // All others at once.
    let objects: Vec<_> = parts.iter().map(|(object, _)| *object).collect();
    subject.kubectl(&[&["delete", "--wait=true"], &objects[..]].concat());
    let missing = platform.missing_parts(&key("demo")).await.unwrap();
    assert!(parts.iter().all(|(_, part)| missing.iter().any(|found| found == part)), "{missing:?}");
    assert!(platform.ensure(&again).await.unwrap());
    assert_eq!(ask(&subject, "demo", "SELECT word FROM kept").await, "kept");
    platform.remove(&key("demo")).await.unwrap();
    assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_claim_is_never_made_again() {
    let Some(subject) = Kubernetes::new("17").await else { return };
    let platform = subject.platform();
    platform.ensure(&spec(&subject, "demo")).await.unwrap();
    subject.settle("demo").await;
    subject.kubectl(&["delete", "statefulset/demo", "service/demo", "--wait=true"]);
    subject.kubectl(&["delete", "pod/demo-0", "--ignore-not-found", "--now"]);
    subject.kubectl(&["delete", "pvc/demo-data", "--wait=true"]);
    let again = powered(&subject, "demo", Power::Running);
    for _ in 0..3 {
        let failure = platform.ensure(&again).await.unwrap_err();
        assert!(!failure.retryable && failure.message.contains("demo-data"), "{failure}");
        assert_eq!(subject.kubectl(&["get", "pvc,statefulsets,pods", "-o", "name"]), "");
    }
    platform.remove(&key("demo")).await.unwrap();
    assert_eq!(subject.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_that_it_runs_is_noted_beside_its_data() {
    let Some(subject) = Kubernetes::new("17").await else { return };
    subject.platform().ensure(&spec(&subject, "demo")).await.unwrap();
    subject.settle("demo").await;
    let noted = |name: &str| {
        let path = format!("jsonpath={{.metadata.annotations.toygres\\.io/{name}}}");
        subject.kubectl(&["get", "pvc", "demo-data", "-o", &path])
    };
    let id = subject.kubectl(&["get", "pod", "demo-0", "-o", "jsonpath={.status.containerStatuses[0].imageID}"]);
    assert!(!id.is_empty() && noted("image-id") == id, "{id} {}", noted("image-id"));
    let image = subject.kubectl(&["get", "statefulset", "demo", "-o", "jsonpath={.spec.template.spec.containers[0].image}"]);
    assert_eq!(noted("image"), image);
    subject.platform().remove(&key("demo")).await.unwrap();
}

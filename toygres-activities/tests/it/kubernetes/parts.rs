//! Parts of an instance that somebody deletes: what is around intact data is listed and made again, data never is.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use sqlx::postgres::PgSslMode;
use toygres_activities::platform::Deployment;
use toygres_models::{Drift, Power};

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
    let again = powered(&subject, "demo", Power::Running);
    let missing = async || platform.drift(&key("demo"), &again.spec).await.unwrap();
    assert_eq!(missing().await, []);
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
        assert_eq!(missing().await, [Drift::gone(part)]);
        assert!(platform.ensure(&again).await.unwrap(), "{object}");
        assert_eq!(missing().await, [], "{object}");
        assert_eq!(ask(&subject, "demo", "SELECT word FROM kept").await, "kept", "{object}");
    }
    // The server has a password that nobody knows any more: only together with a new one is it kept again.
    subject.kubectl(&["delete", "secret/demo-connection", "--wait=true"]);
    assert_eq!(missing().await, [Drift::gone("the Secret with the password")]);
    let again_with_data = Deployment { data_exists: true, ..again.clone() };
    assert!(!platform.ensure(&again_with_data).await.unwrap());
    assert_eq!(missing().await, [Drift::gone("the Secret with the password")]);
    platform.set_password(&key("demo"), &"another one".to_owned().into()).await.unwrap();
    connect(&subject, "demo", "another one", PgSslMode::VerifyFull).await.unwrap();
    platform.set_password(&key("demo"), &PASSWORD.to_owned().into()).await.unwrap();
    // All others at once.
    let objects: Vec<_> = parts.iter().map(|(object, _)| *object).collect();
    subject.kubectl(&[&["delete", "--wait=true"], &objects[..]].concat());
    let gone = missing().await;
    assert!(parts.iter().all(|(_, part)| gone.contains(&Drift::gone(part))), "{gone:?}");
    assert!(platform.ensure(&again).await.unwrap());
    assert_eq!(ask(&subject, "demo", "SELECT word FROM kept").await, "kept");
    platform.remove(&key("demo")).await.unwrap();
    assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_is_told_with_who_did_and_put_right_without_a_restart() {
    let Some(subject) = Kubernetes::new("17").await else { return };
    let platform = subject.platform();
    platform.ensure(&spec(&subject, "demo")).await.unwrap();
    subject.settle("demo").await;
    let again = powered(&subject, "demo", Power::Running);
    let drift = async || platform.drift(&key("demo"), &again.spec).await.unwrap();
    let uid = || subject.kubectl(&["get", "pod", "demo-0", "-o", "jsonpath={.metadata.uid}"]);
    assert_eq!(drift().await, []);
    assert!(!platform.suspects().await.unwrap().contains(&again.key), "it was found to be as it should");
    let before = uid();

    // Object, patch, the field that is told, what it is, and what it is to be.
    let changes = [
        ("service/demo", r#"{"spec":{"type":"NodePort"}}"#, "spec.type", Some("NodePort"), Some("ClusterIP")),
        (
            "service/demo",
            r#"{"spec":{"selector":{"toygres.io/member":"7"}}}"#,
            "spec.selector.toygres.io/member",
            Some("7"),
            None,
        ),
        (
            "service/demo",
            r#"{"metadata":{"labels":{"app.kubernetes.io/component":null}}}"#,
            "metadata.labels.app.kubernetes.io/component",
            None,
            Some("database"),
        ),
        ("networkpolicy/demo-postgres", r#"{"spec":{"egress":[{}]}}"#, "spec.egress", Some("[{}]"), None),
        ("poddisruptionbudget/demo-postgres", r#"{"spec":{"maxUnavailable":1}}"#, "spec.maxUnavailable", Some("1"), Some("0")),
        (
            "serviceaccount/demo-postgres",
            r#"{"automountServiceAccountToken":true}"#,
            "automountServiceAccountToken",
            Some("true"),
            Some("false"),
        ),
        (
            "configmap/demo-config",
            r#"{"data":{"pg_hba.conf":"host all all all trust"}}"#,
            "data.pg_hba.conf",
            Some("host all all all trust"),
            None,
        ),
        (
            "statefulset/demo",
            r#"{"spec":{"updateStrategy":{"type":"RollingUpdate"}}}"#,
            "spec.updateStrategy.type",
            Some("RollingUpdate"),
            Some("OnDelete"),
        ),
        ("secret/demo-connection", r#"{"stringData":{"host":"elsewhere"}}"#, "data.host", None, None),
        ("secret/demo-tls", r#"{"stringData":{"tls.crt":"no certificate"}}"#, "data", None, None),
    ];
    for (object, patch, field, found, wanted) in changes {
        subject.kubectl(&["patch", object, "--field-manager=somebody", "--type=merge", "-p", patch]);
        assert!(platform.suspects().await.unwrap().contains(&again.key), "{object} {field}");
        let told = drift().await;
        let of_field = told.iter().find(|drift| drift.field.as_deref() == Some(field));
        let of_field = of_field.unwrap_or_else(|| panic!("{object} {field}: {told:?}"));
        assert!(of_field.is_mended() && of_field.found.as_deref() == found, "{of_field:?}");
        assert!(wanted.is_none() || of_field.wanted.as_deref() == wanted, "{of_field:?}");
        // Of what was removed nobody is the owner, and a certificate is compared as a whole.
        let is_told = object != "secret/demo-tls" && (found.is_some() || wanted.is_none());
        assert_eq!(of_field.changed_by.as_deref(), is_told.then_some("somebody"), "{of_field:?}");
        assert!(!platform.ensure(&again).await.unwrap(), "nothing had to be made");
        assert_eq!(drift().await, [], "{object} {field}");
        assert!(!platform.suspects().await.unwrap().contains(&again.key), "{object} {field}");
    }
    assert_eq!(ask(&subject, "demo", "SELECT 'fine'").await, "fine");

    // What others add, and nothing of toygres's says otherwise, is theirs.
    subject.kubectl(&["label", "service/demo", "team=a"]);
    subject.kubectl(&["annotate", "statefulset/demo", "note=b"]);
    assert_eq!(drift().await, []);
    assert_eq!(uid(), before, "its server was restarted");
    platform.remove(&key("demo")).await.unwrap();
    assert_eq!(subject.leftovers(), Vec::<String>::new());
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

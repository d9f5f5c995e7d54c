//! What the Kubernetes platform does for a server that runs in the cluster: the Secret that its
//! replicas share. Runs where `TOYGRES_TEST_KUBERNETES=1` and KUBECONFIG say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

#[macro_use]
mod support;

use secrecy::ExposeSecret;
use support::Subject;
use support::kubernetes::{Kubernetes, kubectl_apply};
use toygres_activities::k8s_client::K8sClient;
use toygres_activities::platform::kubernetes::{KubernetesConfig, KubernetesPlatform, OwnSecret};
use toygres_models::FailureKind;

async fn subject() -> Option<Kubernetes> {
    Kubernetes::new("17").await
}

fn data(subject: &Kubernetes, name: &str, key: &str) -> String {
    subject.kubectl(&["get", "secret", name, "-o", &format!("go-template={{{{index .data {key:?} | base64decode}}}}")])
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_share_one_secret() {
    let Some(subject) = subject().await else { return };
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut tasks = Vec::new();
    for folder in &folders {
        // A client each, as replicas have.
        let client = K8sClient::connect(&subject.own_cluster()).await.unwrap();
        let folder = folder.path().join("ca");
        tasks.push(tokio::spawn(async move {
            let own = OwnSecret::open(&client, client.default_namespace(), "toygres", &folder).await.unwrap();
            assert!(!folder.join("ca.key").exists());
            (own.token.expose_secret().to_owned(), std::fs::read_to_string(folder.join("ca.crt")).unwrap())
        }));
    }
    let all: Vec<_> = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    assert!(all.iter().all(|one| *one == all[0]), "they differ");
    assert_eq!(all[0], (data(&subject, "toygres", "token"), data(&subject, "toygres", "ca.crt")));
    assert!(subject.platform().list().await.unwrap().is_empty(), "it was taken for an instance's");

    // A platform of each replica signs with that CA.
    let config = KubernetesConfig {
        cluster: subject.own_cluster(),
        own_secret: Some("toygres".into()),
        ca_dir: folders[0].path().join("other"),
        ..subject.config.clone()
    };
    KubernetesPlatform::connect(config.clone()).await.unwrap();
    assert_eq!(std::fs::read_to_string(config.ca_dir.join("ca.crt")).unwrap(), all[0].1);
    // One folder can't hold two CAs.
    let failure = KubernetesPlatform::connect(KubernetesConfig { ca_dir: subject.config.ca_dir.clone(), ..config }).await;
    assert_eq!(failure.err().unwrap().kind, FailureKind::InvalidInput);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_filled_secret_is_completed_and_an_unusable_one_is_left_alone() {
    let Some(subject) = subject().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let client = K8sClient::connect(&subject.own_cluster()).await.unwrap();
    let open = || OwnSecret::open(&client, &subject.namespace, "mine", folder.path());
    let secret = |fields: &str| {
        let namespace = &subject.namespace;
        let metadata = format!("{{name: mine, namespace: {namespace}, labels: {{theirs: x}}}}");
        kubectl_apply(&format!("apiVersion: v1\nkind: Secret\nmetadata: {metadata}\nstringData: {{{fields}}}\n"));
    };
    secret("token: chosen, other: theirs");
    let (first, second) = futures::join!(open(), open());
    assert_eq!((first.unwrap().token.expose_secret(), second.unwrap().token.expose_secret()), ("chosen", "chosen"));
    let certificate = data(&subject, "mine", "ca.crt");
    assert_eq!(std::fs::read_to_string(folder.path().join("ca.crt")).unwrap(), certificate);
    assert_eq!(data(&subject, "mine", "other"), "theirs");
    assert!(subject.kubectl(&["get", "secret", "mine", "-o", "jsonpath={.metadata.labels}"]).contains("theirs"));

    let other_key = data(&subject, "mine", "ca.key").replacen("MI", "MJ", 1);
    for fields in ["ca.key: find-me".to_owned(), format!("ca.key: {other_key:?}"), "ca.key: \"\"".to_owned()] {
        secret(&fields);
        let before = subject.kubectl(&["get", "secret", "mine", "-o", "jsonpath={.data}"]);
        let failure = open().await.err().unwrap();
        assert!(!failure.retryable && failure.message.contains("/mine") && failure.message.contains("ca.key"), "{failure}");
        assert!(!failure.message.contains("find-me"), "{failure}");
        assert_eq!(subject.kubectl(&["get", "secret", "mine", "-o", "jsonpath={.data}"]), before);
    }

    let failure = OwnSecret::open(&client, "no-such-namespace", "mine", folder.path()).await.err().unwrap();
    assert!(failure.kind == FailureKind::NotFound && failure.message.contains("no-such-namespace"), "{failure}");
}

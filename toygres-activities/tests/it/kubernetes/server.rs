//! What the Kubernetes platform does for a server that runs in the cluster: the Secret that its
//! replicas share, and its own database. Runs where `TOYGRES_TEST_KUBERNETES=1` and KUBECONFIG say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use secrecy::ExposeSecret;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use toygres_activities::k8s_client::K8sClient;
use toygres_activities::platform::Platform;
use toygres_activities::platform::kubernetes::{Forward, Images, KubernetesConfig, KubernetesPlatform, OwnSecret};
use toygres_models::{FailureKind, InstanceKey, InstanceName};

use crate::support::kubernetes::{Kubernetes, kubectl_apply};
use crate::support::{Subject, spec};

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

/// Asks the server's own database, from outside the cluster, as its URI says.
async fn asks(subject: &Kubernetes, uri: &secrecy::SecretString, question: &str) -> String {
    let options: PgConnectOptions = uri.expose_secret().parse().unwrap();
    let key = InstanceKey { name: InstanceName::own("database").unwrap(), ..subject.real_key("demo") };
    assert_eq!(options.get_host(), format!("{}.{}.svc.cluster.local", key.name, key.namespace));
    let way = Forward::open(subject.platform.client(), &key, 0).await.unwrap();
    let options = options.host("127.0.0.1").port(way.address().port());
    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    let answer = sqlx::query_scalar(question).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_start_at_once_share_one_database() {
    let Some(subject) = subject().await else { return };
    let newer = Images::parse(None, Some("18")).unwrap();
    let config = KubernetesConfig {
        cluster: subject.own_cluster(),
        own_secret: Some("toygres".into()),
        ca_dir: subject.folder.path().join("own"),
        namespaces: vec!["served".parse().unwrap()],
        ..subject.config.clone()
    };
    let (first, second) =
        futures::join!(KubernetesPlatform::connect(config.clone()), KubernetesPlatform::connect(config.clone()));
    let (first, second) = (first.unwrap(), second.unwrap());
    let size = toygres_models::StorageSize::default();
    let (one, other) = futures::join!(first.start_control(size), second.start_control(size));
    let uri = one.unwrap();
    assert_eq!(uri.expose_secret(), other.unwrap().expose_secret());
    assert!(uri.expose_secret().contains("sslmode=verify-full") && uri.expose_secret().contains("ca.crt"));
    asks(&subject, &uri, "SELECT 'x'").await;
    let version = asks(&subject, &uri, "SHOW server_version").await;
    assert!(version.starts_with("17."), "{version}");

    // It is no user's instance.
    assert!(first.list().await.unwrap().is_empty() && subject.platform.list().await.unwrap().is_empty());
    let mut events = subject.platform.events();
    subject.kubectl(&["exec", "toygres-database-0", "--", "sh", "-c", "kill -QUIT 1"]);
    subject.platform().ensure(&spec(&subject, "demo")).await.unwrap();
    subject.settle("demo").await;
    subject.kubectl(&["exec", "demo-0", "--", "sh", "-c", "kill -QUIT 1"]);
    let told = tokio::time::timeout(std::time::Duration::from_secs(90), events.recv()).await.unwrap().unwrap();
    assert_eq!(told.key, subject.real_key("demo"));
    let failure = InstanceKey::parse(&subject.namespace, "toygres-database").unwrap_err();
    assert!(failure.to_string().contains("reserved"), "{failure}");

    // A later start finds it, whatever else is configured by then; another major it never becomes.
    let both = Images::parse(None, Some("18,17")).unwrap();
    let later = KubernetesPlatform::connect(KubernetesConfig { images: both, ..config.clone() }).await.unwrap();
    assert_eq!(later.start_control(size).await.unwrap().expose_secret(), uri.expose_secret());
    let failure = KubernetesPlatform::connect(KubernetesConfig { images: newer, ..config }).await.unwrap();
    let failure = failure.start_control(size).await.unwrap_err();
    assert!(!failure.retryable && failure.message.contains("no image for PostgreSQL 17"), "{failure}");
    assert_eq!(asks(&subject, &uri, "SHOW server_version").await, version);

    // A password that is lost is replaced by one that the database knows.
    subject.kubectl(&["delete", "secret", "toygres-database-connection"]);
    let renewed = later.start_control(size).await.unwrap();
    assert_ne!(renewed.expose_secret(), uri.expose_secret());
    asks(&subject, &renewed, "SELECT 'x'").await;
    assert_eq!(later.start_control(size).await.unwrap().expose_secret(), renewed.expose_secret());
}

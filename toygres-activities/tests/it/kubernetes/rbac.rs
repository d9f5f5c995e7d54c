//! The rights that the server gets on a cluster, by the Role in `deploy/manifests/toygres.yaml`:
//! they are enough for whole lives of instances, and without any one of them something breaks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fmt::{self, Debug};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use secrecy::ExposeSecret;
use serde_json::{Value as Json, json};
use toygres_activities::k8s_client::ClusterChoice;
use toygres_activities::platform::kubernetes::{Images, KubernetesConfig, KubernetesPlatform, Resources};
use toygres_activities::platform::{Phase, Platform};
use toygres_activities::secrets::{Kept, SecretStore};
use toygres_models::{Failure, FailureKind, InstanceKey, StorageSize};
use uuid::Uuid;

use crate::support;
use crate::support::kubernetes::{Kubernetes, kubectl, kubectl_apply};
use crate::support::{READY, Subject, secret, spec};

const MANIFESTS: &str = include_str!("../../../../deploy/manifests/toygres.yaml");
/// How long something is waited for that the cluster does by itself.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// One verb on one resource.
#[derive(Clone, PartialEq, Eq)]
struct Right {
    group: String,
    resource: String,
    verb: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)
    }
}

/// What the Role in the server's own namespace grants, one by one.
fn granted() -> Vec<Right> {
    let documents = MANIFESTS.split("\n---\n").map(|document| serde_saphyr::from_str::<Json>(document).unwrap_or_default());
    let roles: Vec<Role> = documents
        // The one in kube-system is for its uid alone; `deploy/test-install` needs it.
        .filter(|document| document["kind"] == "Role" && document["metadata"]["namespace"] != "kube-system")
        .map(|document| serde_json::from_value(document).unwrap())
        .collect();
    assert_eq!(roles.len(), 1);
    let mut rights = Vec::new();
    for rule in roles[0].rules.as_deref().unwrap() {
        assert!(rule.resource_names.is_none() && rule.non_resource_urls.is_none(), "{rule:?}");
        for group in rule.api_groups.as_deref().unwrap() {
            for resource in rule.resources.as_deref().unwrap() {
                let right = |verb: &String| Right { group: group.clone(), resource: resource.clone(), verb: verb.clone() };
                rights.extend(rule.verbs.iter().map(right));
            }
        }
    }
    assert!(!rights.iter().any(|right| [&right.group, &right.resource, &right.verb].contains(&&"*".to_owned())));
    rights
}

/// A platform that comes with a ServiceAccount's token and has these rights alone.
async fn platform_with(subject: &Kubernetes, rights: &[Right], folder: &Path) -> Result<Arc<KubernetesPlatform>, Broken> {
    let namespace = &subject.namespace;
    // In a pod it reaches instances itself; here it can't.
    let forwards = ["get", "create"].map(|verb| Right {
        group: String::new(),
        resource: "pods/portforward".to_owned(),
        verb: verb.to_owned(),
    });
    let rules: Vec<_> = rights
        .iter()
        .chain(&forwards)
        .map(|right| PolicyRule {
            api_groups: Some(vec![right.group.clone()]),
            resources: Some(vec![right.resource.clone()]),
            verbs: vec![right.verb.clone()],
            ..PolicyRule::default()
        })
        .collect();
    let meta = json!({"name": "toygres", "namespace": namespace});
    let api = "rbac.authorization.k8s.io";
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": format!("{api}/v1"), "kind": "Role", "metadata": meta, "rules": rules},
        {"apiVersion": format!("{api}/v1"), "kind": "RoleBinding", "metadata": meta,
         "roleRef": {"apiGroup": api, "kind": "Role", "name": "toygres"},
         "subjects": [{"kind": "ServiceAccount", "name": "toygres", "namespace": namespace}]},
    ]});
    kubectl_apply(&objects.to_string());
    // The API server takes note of them a moment later.
    let last = rights.last().unwrap();
    let account = format!("--as=system:serviceaccount:{namespace}:toygres");
    support::eventually("the rights are granted", || async {
        let arguments = ["-n", namespace, "auth", "can-i", &last.verb, &last.resource, &account];
        std::process::Command::new("kubectl").args(arguments).output().unwrap().status.success()
    })
    .await;

    let view = kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]);
    let mut kubeconfig: Json = serde_json::from_str(&view).unwrap();
    let token = subject.kubectl(&["create", "token", "toygres", "--duration=1h"]);
    kubeconfig["users"][0]["user"] = json!({"token": token.trim()});
    // As in a pod, where the server's own things are in its own namespace.
    kubeconfig["contexts"][0]["context"]["namespace"] = json!(namespace);
    let file = folder.join("kubeconfig");
    std::fs::write(&file, kubeconfig.to_string()).unwrap();
    // A registry that says no at once.
    let images = format!("{}=17,16=localhost/no-such-postgres:1", subject.version());
    let config = KubernetesConfig {
        cluster: ClusterChoice { kubeconfig: Some(file), context: None },
        images: Images::parse(None, Some(&images)).unwrap(),
        // Many lives at once fit on a small node.
        resources: Resources { cpu_request: "10m".to_owned(), ..Resources::default() },
        own_secret: Some("toygres-server".to_owned()),
        ca_dir: folder.join("ca"),
        ..subject.config.clone()
    };
    Ok(KubernetesPlatform::connect(config).await?)
}

/// What broke in a life.
struct Broken(String);

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self(failure.to_string())
    }
}

fn expect<T: PartialEq + Debug>(what: &str, got: T, wanted: T) -> Result<(), Broken> {
    if got == wanted { Ok(()) } else { Err(Broken(format!("{what}: {got:?}"))) }
}

/// Waits as the workflow does, for the failure that ends it.
async fn failure_of(platform: &KubernetesPlatform, key: &InstanceKey) -> Result<Failure, Broken> {
    let begun = Instant::now();
    while begun.elapsed() < RETRY_TIMEOUT {
        match platform.wait_ready(key, Duration::from_secs(5)).await {
            Err(failure) if !failure.retryable => return Ok(failure),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    Err(Broken(format!("{key} didn't fail")))
}

async fn endpoint_of(platform: &KubernetesPlatform, key: &InstanceKey) -> Result<String, Broken> {
    let begun = Instant::now();
    loop {
        match platform.endpoint(key).await {
            Ok(endpoint) => return Ok(endpoint.address.host),
            // The load balancer's address comes later.
            Err(failure) if failure.retryable && begun.elapsed() < RETRY_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(failure) => return Err(failure.into()),
        }
    }
}

/// All that a server in a pod does on its cluster. Ends where something isn't as it should be.
async fn live(subject: &Kubernetes, rights: &[Right]) -> Result<Arc<KubernetesPlatform>, Broken> {
    let folder = tempfile::tempdir().unwrap();
    let platform = platform_with(subject, rights, folder.path()).await?;
    expect("there is a token", platform.token().is_some(), true)?;
    let real = |name: &str| subject.real_key(name);
    let wanted = |name: &str| {
        let mut wanted = spec(subject, name);
        wanted.key = real(name);
        wanted
    };
    let (private, mut public, mut unable) = (wanted("private"), wanted("public"), wanted("unable"));
    public.spec.use_load_balancer = true;
    unable.spec.postgres_version = "16".parse().unwrap();

    let mut news = platform.events();
    expect("nothing is there", platform.list().await?, vec![])?;
    expect("nothing is removed", platform.remove(&private.key).await?, false)?;

    let passwords = platform.secrets();
    passwords.put(&real("given-up"), &secret("x")).await?;
    passwords.remove(&real("given-up")).await?;
    let (winner, loser) = (Uuid::now_v7(), Uuid::now_v7());
    passwords.put_new(&private.key, winner, &private.password).await?;
    passwords.put_new(&private.key, loser, &secret("x")).await?;
    for _ in 0..2 {
        passwords.settle(&private.key, winner).await?;
        passwords.discard(&private.key, winner).await?;
        passwords.discard(&private.key, loser).await?;
    }
    let kept = passwords.get(&private.key).await?;
    expect("it is the winner's", kept.expose_secret(), private.password.expose_secret())?;
    let only = Kept { key: private.key.clone(), instance_id: None };
    expect("it is kept", passwords.list(Duration::ZERO).await?, vec![only])?;

    for instance in [&private, &public, &unable] {
        expect("it is made", platform.ensure(instance).await?, true)?;
    }
    // The server's own database; the others get ready meanwhile.
    platform.start_control(StorageSize::default()).await?;
    for instance in [&private, &public] {
        expect("it gets ready", platform.wait_ready(&instance.key, READY).await?.ready, true)?;
        expect("it is there already", platform.ensure(instance).await?, false)?;
        let seen = platform.observe(&instance.key).await?.map(|seen| (seen.phase, seen.reason));
        expect("it runs", seen, Some((Phase::Running, None)))?;
        endpoint_of(&platform, &instance.key).await?;
        expect("it has a log", platform.log_tail(&instance.key, 3).await?.len(), 3)?;
    }
    expect("all are listed", platform.list().await?.len(), 3)?;

    subject.kubectl(&["exec", "private-0", "--", "sh", "-c", "kill -QUIT 1"]);
    for kind in ["server_exited", "server_restarted"] {
        let told =
            tokio::time::timeout(RETRY_TIMEOUT, news.recv()).await.map_err(|_| Broken(format!("no news of {kind}")))?.unwrap();
        expect("the news", (told.kind, told.key), (kind, private.key.clone()))?;
    }

    let spoil = "echo no_such_setting=1 >> $PGDATA/postgresql.auto.conf; kill -QUIT 1";
    subject.kubectl(&["exec", "private-0", "--", "sh", "-c", spoil]);
    let failure = failure_of(&platform, &private.key).await?;
    expect(&failure.message, failure.kind, FailureKind::StartFailed)?;
    let quoted = failure.evidence.iter().any(|line| line.contains("LOG:") || line.contains("FATAL:"));
    expect(&format!("the log tells why: {failure} {:?}", failure.evidence), quoted, true)?;

    let failure = failure_of(&platform, &unable.key).await?;
    expect(&failure.message, failure.kind, FailureKind::ProgramsUnavailable)?;
    let quoted = failure.evidence.iter().any(|line| line.starts_with("Pod unable-0: Failed: "));
    expect(&format!("events tell why: {:?}", failure.evidence), quoted, true)?;

    // Somebody's finalizers: what they hold is waited for.
    let held = [
        "configmap/private-config",
        "networkpolicy/private-postgres",
        "poddisruptionbudget/private-postgres",
        "secret/private-connection",
        "serviceaccount/private-postgres",
        "service/private",
        "statefulset/private",
    ];
    let finalizers = |list: Json| {
        let patch = json!({"metadata": {"finalizers": list}}).to_string();
        subject.kubectl(&[&["patch", "--type=merge", "-p", &patch][..], &held].concat());
    };
    finalizers(json!(["example.com/held"]));
    // Who lacks a right may not get so far; the finalizers go all the same.
    let let_go = async {
        let marked = [&["get", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}"][..], &held].concat();
        let seen = support::eventually("something is held back", || async { !subject.kubectl(&marked).is_empty() });
        let _ = tokio::time::timeout(Duration::from_secs(15), seen).await;
        finalizers(json!([]));
    };
    let removed = futures::future::join_all([&private, &public, &unable].map(|instance| platform.remove(&instance.key)));
    let (removed, ()) = tokio::join!(removed, let_go);
    for removed in removed {
        expect("it is removed", removed?, true)?;
    }
    expect("nothing is left", platform.list().await?, vec![])?;
    Ok(platform)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_are_enough_and_end_at_the_namespace() {
    let Some(subject) = Kubernetes::new("17").await else { return };
    let platform = live(&subject, &granted()).await.unwrap_or_else(|Broken(what)| panic!("{what}"));
    let elsewhere = InstanceKey::parse("default", "demo").unwrap();
    let failure = platform.secrets().get(&elsewhere).await.unwrap_err();
    assert!(failure.message.contains("forbidden"), "{failure}");
}

/// Each right is taken away by itself, and a life is lived without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn without_any_one_of_the_rights_something_breaks() {
    if !support::kubernetes::is_wanted() {
        return;
    }
    let lives = granted().into_iter().map(|missing| {
        tokio::spawn(async move {
            let subject = Kubernetes::new("17").await.unwrap();
            let rights: Vec<_> = granted().into_iter().filter(|right| *right != missing).collect();
            let refusal = format!("cannot {} resource \"{}\"", missing.verb, missing.resource);
            match live(&subject, &rights).await {
                // And for no other reason.
                Err(Broken(what)) if what.contains(&refusal) => None,
                Err(Broken(what)) => Some(format!("without {missing}: {what}")),
                Ok(_) => Some(format!("without {missing}: nothing broke")),
            }
        })
    });
    // All at once they would keep each other, and the other tests, waiting for longer than a life takes.
    let needless = futures::stream::iter(lives).buffer_unordered(8).map(Result::unwrap);
    let needless: Vec<_> = needless.filter_map(std::future::ready).collect().await;
    assert!(needless.is_empty(), "what the Role grants isn't seen to be needed: {needless:#?}");
}

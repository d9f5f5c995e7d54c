//! The promises of `Platform` on a real Kubernetes cluster, and what the Kubernetes platform
//! promises besides. Runs where `TOYGRES_TEST_KUBERNETES=1` and KUBECONFIG say so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::time::{Duration, Instant};

use sqlx::postgres::PgSslMode;
use toygres_activities::platform::kubernetes::{Forward, Images, KubernetesConfig, KubernetesPlatform, Resources};
use toygres_activities::platform::{Deployment, Phase, Platform};
use toygres_models::FailureKind;

use crate::support;
use crate::support::kubernetes::{Kubernetes, kubectl, kubectl_apply};
use crate::support::{PASSWORD, READY, Subject, ask, checks, connect, connect_as_superuser, key, spec};

async fn subject() -> Option<Kubernetes> {
    Kubernetes::new("17").await
}

conformance!(on_kubernetes, super::subject);

/// One life on the oldest and the newest image, which keep their data in different places.
#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_and_the_newest_image_work_as_well() {
    for major in ["15", "18"] {
        let Some(subject) = Kubernetes::new(major).await else { return };
        checks::a_created_instance_is_reached_over_verified_tls_only(&subject).await;
        assert!(subject.platform().remove(&key("demo")).await.unwrap());
        assert_eq!(subject.leftovers(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_and_delete_are_timed_and_their_calls_counted() {
    let Some(subject) = subject().await else { return };
    let platform = subject.platform();
    for round in 0..3 {
        let (begun, before) = (Instant::now(), subject.platform.client().calls());
        platform.ensure(&spec(&subject, "demo")).await.unwrap();
        let (applied, calls_ensure) = (begun.elapsed(), subject.platform.client().calls() - before);
        platform.wait_ready(&key("demo"), READY).await.unwrap();
        let (ready, calls_wait) = (begun.elapsed(), subject.platform.client().calls() - before - calls_ensure);
        ask(&subject, "demo", "SELECT 'x'").await;
        let (answered, before) = (begun.elapsed(), subject.platform.client().calls());
        let begun = Instant::now();
        platform.remove(&key("demo")).await.unwrap();
        let (removed, calls_remove) = (begun.elapsed(), subject.platform.client().calls() - before);
        eprintln!(
            "round {round}: applied {applied:.2?} ({calls_ensure} calls), ready {ready:.2?} ({calls_wait} calls), \
             SELECT 1 {answered:.2?}; removed {removed:.2?} ({calls_remove} calls)"
        );
    }
}

/// Waits as the workflow does; the failure that ends it before the workflow's own limit.
async fn fails(subject: &Kubernetes, name: &str) -> toygres_models::Failure {
    let begun = Instant::now();
    let platform = subject.platform();
    while begun.elapsed() < READY {
        match platform.wait_ready(&key(name), Duration::from_secs(5)).await {
            Ok(seen) => assert!(!seen.ready),
            Err(failure) if failure.retryable => {}
            Err(failure) => {
                eprintln!("failed after {:.1?}: {failure}\n  {}", begun.elapsed(), failure.evidence.join("\n  "));
                return failure;
            }
        }
    }
    panic!("it didn't fail within {READY:?}");
}

async fn clear(subject: &Kubernetes, name: &str) {
    clear_all(subject, &[name]).await;
}

async fn clear_all(subject: &Kubernetes, names: &[&str]) {
    for name in names {
        subject.platform().remove(&key(name)).await.unwrap();
    }
    assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]));
}

fn with_image(image: &'static str) -> impl FnOnce(KubernetesConfig) -> KubernetesConfig {
    move |mut config| {
        config.images = Images::parse(None, Some(&format!("17.0={image},17={image}"))).unwrap();
        config
    }
}

async fn platform_with(subject: &Kubernetes, change: impl FnOnce(&mut KubernetesConfig)) -> std::sync::Arc<KubernetesPlatform> {
    let mut config = subject.config.clone();
    change(&mut config);
    KubernetesPlatform::connect(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_at_once_take_little_longer_than_one() {
    let Some(subject) = subject().await else { return };
    let platform = subject.platform();
    let names: Vec<_> = (0..10).map(|number| format!("demo-{number}")).collect();
    let begun = Instant::now();
    let made = futures::future::join_all(names.iter().map(|name| async {
        platform.ensure(&spec(&subject, name)).await.unwrap();
        ask(&subject, name, "SELECT 'x'").await;
    }));
    made.await;
    let created = begun.elapsed();
    let removed = futures::future::join_all(names.iter().map(|name| async { platform.remove(&key(name)).await.unwrap() }));
    assert!(removed.await.iter().all(|removed| *removed));
    eprintln!("ten at once: created {created:.2?}, removed {:.2?}", begun.elapsed() - created);
    assert_eq!((subject.servers(), subject.leftovers()), (0, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_pulled_fails_in_seconds() {
    let Some(subject) = Kubernetes::with("17", with_image("docker.io/library/no-such-postgres:1")).await else { return };
    let mut wanted = spec(&subject, "demo");
    wanted.spec.postgres_version = "17".parse().unwrap();
    subject.platform().ensure(&wanted).await.unwrap();
    let failure = fails(&subject, "demo").await;
    assert_eq!(failure.kind, FailureKind::ProgramsUnavailable);
    assert!(failure.message.contains("no-such-postgres"), "{failure}");
    let seen = subject.platform().observe(&key("demo")).await.unwrap().unwrap();
    // That no registry is reached here may pass.
    assert_eq!((seen.phase, seen.ready), (Phase::Pending, false));
    clear(&subject, "demo").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_no_storage_class_and_no_quota_fail_in_seconds() {
    let Some(subject) = subject().await else { return };
    // No node is that big.
    let real = subject.real_key("demo");
    let mut wanted = spec(&subject, "demo");
    wanted.key = real.clone();
    let big = platform_with(&subject, |config| {
        config.resources = Resources::default().with(Some(&"5000".parse().unwrap()), None);
    });
    big.await.ensure(&wanted).await.unwrap();
    let failure = fails(&subject, "demo").await;
    assert!(failure.kind == FailureKind::Exhausted && failure.message.contains("Insufficient cpu"), "{failure}");
    clear(&subject, "demo").await;

    let classless = platform_with(&subject, |config| config.storage_class = Some("no-such-class".into())).await;
    classless.ensure(&wanted).await.unwrap();
    let failure = fails(&subject, "demo").await;
    assert!(failure.message.contains("no-such-class"), "{failure}");
    clear(&subject, "demo").await;

    subject.kubectl(&["create", "quota", "none", "--hard=pods=0"]);
    subject.platform().ensure(&spec(&subject, "demo")).await.unwrap();
    let failure = fails(&subject, "demo").await;
    assert!(failure.kind == FailureKind::Exhausted && failure.message.contains("exceeded quota"), "{failure}");
    subject.kubectl(&["delete", "quota", "none"]);
    clear(&subject, "demo").await;

    subject.kubectl(&["create", "quota", "none", "--hard=persistentvolumeclaims=0"]);
    let failure = subject.platform().ensure(&spec(&subject, "demo")).await.unwrap_err();
    assert_eq!((failure.kind, failure.retryable), (FailureKind::Exhausted, false), "{failure}");
    subject.kubectl(&["delete", "quota", "none"]);
    clear(&subject, "demo").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_is_quoted() {
    let Some(subject) = subject().await else { return };
    let mut events = subject.platform().events();
    subject.platform().ensure(&spec(&subject, "demo")).await.unwrap();
    let mut connection = connect_as_superuser(&subject, "demo").await;
    sqlx::raw_sql("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'").execute(&mut connection).await.unwrap();
    drop(connection);
    subject.kubectl(&["exec", "demo-0", "--", "sh", "-c", "kill -QUIT 1"]);
    let told = tokio::time::timeout(Duration::from_secs(90), events.recv()).await.unwrap().unwrap();
    assert_eq!((told.kind, told.healthy, &told.key), ("server_exited", false, &subject.real_key("demo")));
    let failure = fails(&subject, "demo").await;
    assert_eq!(failure.kind, FailureKind::StartFailed);
    assert!(failure.message.contains("no_such_library"), "{failure}");
    let told = tokio::time::timeout(Duration::from_secs(90), events.recv()).await.unwrap().unwrap();
    assert!(["server_exited", "server_start_failed"].contains(&told.kind), "the next start failed as well: {told:?}");
    clear(&subject, "demo").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_toygres_did_not_make_is_left_alone() {
    let Some(subject) = subject().await else { return };
    let namespace = &subject.namespace;
    for (kind, name, manifest) in [
        ("persistentvolumeclaim", "demo-data", "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}"),
        ("service", "demo", "spec: {ports: [{port: 80}]}"),
        ("configmap", "demo-config", "data: {theirs: x}"),
        ("secret", "demo-connection", "stringData: {theirs: x}"),
        (
            "statefulset",
            "demo",
            "spec: {replicas: 0, serviceName: x, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: c}]}}}",
        ),
    ] {
        let (version, title) = match kind {
            "persistentvolumeclaim" => ("v1", "PersistentVolumeClaim"),
            "service" => ("v1", "Service"),
            "configmap" => ("v1", "ConfigMap"),
            "secret" => ("v1", "Secret"),
            _ => ("apps/v1", "StatefulSet"),
        };
        kubectl_apply(&format!(
            "apiVersion: {version}\nkind: {title}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{manifest}\n"
        ));
        if kind == "persistentvolumeclaim" {
            // Until then its controllers write to it.
            subject.kubectl(&["wait", "pvc/demo-data", "--for=jsonpath={.status.phase}=Bound", "--timeout=120s"]);
        }
        let shown =
            || subject.kubectl(&["get", kind, name, "-o", "jsonpath={.metadata.labels}{.metadata.annotations}{.spec}{.data}"]);
        let before = shown();
        let failure = subject.platform().ensure(&spec(&subject, "demo")).await.unwrap_err();
        assert_eq!((failure.kind, failure.retryable), (FailureKind::Conflict, false), "{failure}");
        assert!(failure.message.contains(name), "{failure}");
        assert!(!subject.platform().remove(&key("demo")).await.unwrap(), "nothing was made");
        assert_eq!(shown(), before);
        subject.kubectl(&["delete", kind, name, "--wait=true"]);
        assert_eq!(subject.leftovers(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_instance_has_an_address_a_name_and_a_certificate_for_both() {
    let Some(subject) = subject().await else { return };
    let mut wanted = spec(&subject, "demo");
    wanted.spec.use_load_balancer = true;
    wanted.spec.dns_label = Some("my-demo".parse().unwrap());
    assert!(subject.platform().ensure(&wanted).await.unwrap());
    assert!(!subject.platform().ensure(&wanted).await.unwrap());
    subject.settle("demo").await;
    let endpoint = subject.platform().endpoint(&key("demo")).await.unwrap();
    assert_eq!(endpoint.dns_name.as_deref(), Some("my-demo.westus3.cloudapp.azure.com"));
    assert_eq!(endpoint.external_ip.as_deref(), Some(endpoint.address.host.as_str()));
    // By its public address, with the certificate verified. The nodes learn of it a moment later.
    support::eventually("it answers", || async { connect(&subject, "demo", PASSWORD, PgSslMode::VerifyFull).await.is_ok() })
        .await;
    ask(&subject, "demo", "SELECT 'x'").await;
    let certificate = subject.kubectl(&["get", "secret", "demo-tls", "-o", "jsonpath={.metadata.annotations}"]);
    assert!(certificate.contains("my-demo.westus3.cloudapp.azure.com"), "{certificate}");
    clear(&subject, "demo").await;
}

/// A load balancer's address that comes late, a CA that is replaced: the running server takes the
/// new certificate without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_takes_a_new_certificate() {
    let Some(subject) = subject().await else { return };
    subject.platform().ensure(&spec(&subject, "demo")).await.unwrap();
    subject.settle("demo").await;
    let mut public = spec(&subject, "demo");
    public.spec.use_load_balancer = true;
    assert!(!subject.platform().ensure(&public).await.unwrap());
    support::eventually("there is an address", || async { subject.platform().endpoint(&key("demo")).await.is_ok() }).await;
    let begun = Instant::now();
    // The kubelet looks at Secrets about once a minute.
    support::eventually_within(Duration::from_secs(120), "it serves the new certificate", || async {
        connect(&subject, "demo", PASSWORD, PgSslMode::VerifyFull).await.is_ok()
    })
    .await;
    eprintln!("the new certificate was served after {:.1?}", begun.elapsed());
    assert_eq!(subject.kubectl(&["get", "pod", "demo-0", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]), "0");
}

/// What is to be seen of how an instance is reached: its Service's type, whether that has an address, its
/// annotations, whom the NetworkPolicy lets in; and since when its server runs.
async fn exposure(subject: &Kubernetes) -> (String, bool, String, bool, String) {
    let service = |path: &str| subject.kubectl(&["get", "service", "demo", "-o", &format!("jsonpath={path}")]);
    let policy = subject.kubectl(&["get", "networkpolicy", "demo-postgres", "-o", "jsonpath={.spec.ingress[0].from}"]);
    let way = Forward::open(subject.platform.client(), &subject.real_key("demo"), 0).await.unwrap();
    let options = sqlx::postgres::PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(way.address().port())
        .username("app")
        .password(PASSWORD)
        .ssl_mode(PgSslMode::Require);
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect_with(&options).await.unwrap();
    let (started,): (String,) =
        sqlx::query_as("SELECT pg_postmaster_start_time()::text").fetch_one(&mut connection).await.unwrap();
    (
        service("{.spec.type}"),
        !service("{.status.loadBalancer.ingress}").is_empty(),
        service("{.metadata.annotations}"),
        policy.is_empty(),
        started,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_goes_public_and_private_again_without_a_restart() {
    let Some(subject) = subject().await else { return };
    let platform = subject.platform();
    let private = spec(&subject, "demo");
    let mut nameless = private.clone();
    nameless.spec.use_load_balancer = true;
    let mut public = nameless.clone();
    public.spec.dns_label = Some("my-demo".parse().unwrap());
    platform.ensure(&private).await.unwrap();
    subject.settle("demo").await;
    let before = exposure(&subject).await;
    assert_eq!((before.0.as_str(), before.1, before.3), ("ClusterIP", false, false));
    for round in 0..2 {
        assert!(!platform.ensure(&public).await.unwrap(), "nothing is made but an address");
        support::eventually("there is an address", || async { platform.endpoint(&key("demo")).await.is_ok() }).await;
        let endpoint = platform.endpoint(&key("demo")).await.unwrap();
        assert_eq!(endpoint.dns_name.as_deref(), Some("my-demo.westus3.cloudapp.azure.com"));
        let seen = exposure(&subject).await;
        assert_eq!((seen.0.as_str(), seen.1, seen.3), ("LoadBalancer", true, true), "round {round}");
        assert!(seen.2.contains("azure-dns-label-name"), "{}", seen.2);
        // The name goes by itself.
        platform.ensure(&nameless).await.unwrap();
        let endpoint = platform.endpoint(&key("demo")).await.unwrap();
        assert_eq!((endpoint.dns_name, endpoint.external_ip.is_some()), (None, true));
        platform.ensure(&private).await.unwrap();
        let endpoint = platform.endpoint(&key("demo")).await.unwrap();
        assert!(endpoint.external_ip.is_none() && endpoint.address.host.contains(".svc."), "{endpoint:?}");
        assert_eq!(exposure(&subject).await, before, "round {round}");
    }
    ask(&subject, "demo", "SELECT 'x'").await;
    assert_eq!(subject.kubectl(&["get", "pod", "demo-0", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]), "0");
    clear(&subject, "demo").await;
}

/// What kept a server from coming up is mended: making it again is enough, though its pod is the old one
/// and its controller waits before it tries again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_could_not_come_up_does_so_when_it_is_made_again_after_the_cause_is_gone() {
    let Some(subject) = subject().await else { return };
    let wanted = Deployment { key: subject.real_key("demo"), ..spec(&subject, "demo") };
    let version = subject.version();
    // A wrong image, then no room, then a quota; the volume stays the same throughout.
    type Break = Box<dyn FnOnce(&mut KubernetesConfig)>;
    let broken: [(&str, Break); 3] = [
        (
            "image",
            Box::new(move |config| {
                config.images = Images::parse(None, Some(&format!("{}=docker.io/library/no-such-postgres:1", version))).unwrap();
            }),
        ),
        ("room", Box::new(|config| config.resources = Resources::default().with(Some(&"5000".parse().unwrap()), None))),
        ("quota", Box::new(|_| ())),
    ];
    for (what, change) in broken {
        let platform = platform_with(&subject, change).await;
        if what == "quota" {
            subject.kubectl(&["create", "quota", "none", "--hard=pods=0"]);
            subject.kubectl(&["wait", "resourcequota/none", "--for=jsonpath={.status.hard.pods}=0", "--timeout=30s"]);
        }
        platform.ensure(&wanted).await.unwrap();
        let failure = fails(&subject, "demo").await;
        if what == "quota" {
            subject.kubectl(&["delete", "quota", "none"]);
        }
        let begun = Instant::now();
        subject.platform().ensure(&spec(&subject, "demo")).await.unwrap();
        while !subject.platform().wait_ready(&key("demo"), Duration::from_secs(5)).await.unwrap().ready {
            assert!(begun.elapsed() < READY, "{what}");
        }
        eprintln!("{what} ({failure}): ready {:.1?} after it was made again", begun.elapsed());
        ask(&subject, "demo", "SELECT 'x'").await;
        // The server alone is removed, its data isn't.
        subject.kubectl(&["delete", "statefulset", "demo", "--wait=true"]);
        subject.kubectl(&["wait", "pod/demo-0", "--for=delete", "--timeout=60s"]);
    }
    clear(&subject, "demo").await;
}

/// The serial number of the certificate that the server presents.
async fn presented(subject: &Kubernetes, name: &str) -> String {
    let way = Forward::open(subject.platform.client(), &subject.real_key(name), 0).await.unwrap();
    let script = format!(
        "openssl s_client -starttls postgres -connect {} </dev/null 2>/dev/null | openssl x509 -noout -serial",
        way.address()
    );
    let shown = tokio::process::Command::new("sh").args(["-c", &script]).output().await.unwrap();
    let serial = String::from_utf8(shown.stdout).unwrap();
    assert!(serial.starts_with("serial="), "{serial:?}");
    serial
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_due_is_renewed_without_anyone_asking() {
    let Some(subject) = subject().await else { return };
    for name in ["demo", "other"] {
        subject.platform().ensure(&spec(&subject, name)).await.unwrap();
        subject.settle(name).await;
    }
    assert_eq!(subject.platform.renew_certificates().await.unwrap(), 0, "none is due");
    let (first, other) = (presented(&subject, "demo").await, presented(&subject, "other").await);
    let past = "toygres.io/certificate-renew-at=2020-01-01T00:00:00Z";
    subject.kubectl(&["annotate", "secret", "demo-tls", past, "--overwrite"]);
    // Two servers at once.
    let second = platform_with(&subject, |_| {}).await;
    let (one, two) = futures::join!(subject.platform.renew_certificates(), second.renew_certificates());
    assert!((1..=2).contains(&(one.unwrap() + two.unwrap())));
    assert_eq!(subject.platform.renew_certificates().await.unwrap(), 0, "it is done");
    // The kubelet copies a changed Secret into its pod within about a minute.
    let begun = Instant::now();
    support::eventually_within(Duration::from_secs(180), "it presents the new certificate", || async {
        presented(&subject, "demo").await != first
    })
    .await;
    eprintln!("the renewed certificate was served after {:.1?}", begun.elapsed());
    ask(&subject, "demo", "SELECT 'x'").await;
    assert_eq!(presented(&subject, "other").await, other, "not due, not renewed");

    // By itself, from the moment on that somebody listens.
    subject.kubectl(&["annotate", "secret", "demo-tls", past, "--overwrite"]);
    let _events = second.events();
    support::eventually("it is renewed", || async {
        !subject.kubectl(&["get", "secret", "demo-tls", "-o", "jsonpath={.metadata.annotations}"]).contains("2020-01-01")
    })
    .await;
    second.shutdown();
    clear_all(&subject, &["demo", "other"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_not_there_or_not_served_is_named() {
    let Some(subject) = subject().await else { return };
    let mut wanted = spec(&subject, "demo");
    wanted.key = toygres_models::InstanceKey::parse("no-such-namespace", "demo").unwrap();
    let failure = subject.platform.ensure(&wanted).await.unwrap_err();
    assert_eq!((failure.kind, failure.retryable), (FailureKind::InvalidInput, false), "{failure}");
    let anywhere = platform_with(&subject, |config| config.namespaces.clear()).await;
    let failure = anywhere.ensure(&wanted).await.unwrap_err();
    assert_eq!((failure.kind, failure.retryable), (FailureKind::NotFound, false), "{failure}");
    assert!(failure.message.contains("kubectl create namespace no-such-namespace"), "{failure}");
    assert!(!anywhere.remove(&wanted.key).await.unwrap());
    assert!(!kubectl(&["get", "namespaces"]).contains("no-such-namespace"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_data_is_reported_and_never_replaced_by_an_empty_database() {
    let Some(subject) = subject().await else { return };
    subject.platform().ensure(&spec(&subject, "demo")).await.unwrap();
    subject.settle("demo").await;
    subject.kubectl(&["delete", "pvc", "demo-data", "--wait=false"]);
    subject.kubectl(&["delete", "pod", "demo-0", "--now"]);
    let failure = fails(&subject, "demo").await;
    assert!(failure.message.contains("demo-data"), "{failure}");
    let failure = subject.platform().ensure(&spec(&subject, "demo")).await.unwrap_err();
    assert!(!failure.retryable && failure.message.contains("backup"), "{failure}");
    clear(&subject, "demo").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_is_in_its_secret_alone() {
    let Some(subject) = subject().await else { return };
    let password = format!("find-me-{}", uuid::Uuid::new_v4());
    let mut wanted = spec(&subject, "demo");
    wanted.password = password.clone().into();
    subject.platform().ensure(&wanted).await.unwrap();
    subject.settle("demo").await;
    let everything =
        subject.kubectl(&["get", "statefulsets,pods,services,pvc,configmaps,events,controllerrevisions", "-o", "yaml"]);
    assert!(everything.contains("demo-0") && !everything.contains("find-me"));
    assert!(!subject.kubectl(&["logs", "demo-0"]).contains("find-me"));
    let environment = subject.kubectl(&["exec", "demo-0", "--", "sh", "-c", "cat /proc/*/environ /proc/*/cmdline"]);
    assert!(environment.contains("PGDATA") && !environment.contains("find-me"));
}

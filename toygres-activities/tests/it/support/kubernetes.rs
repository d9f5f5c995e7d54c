//! A Kubernetes cluster as a subject: a namespace of its own for each test, under the restricted
//! security profile. Only where it is asked for, so that nobody's cluster is touched by accident.

pub mod proxy;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use proxy::Proxy;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, broadcast};
use toygres_activities::k8s_client::ClusterChoice;
use toygres_activities::platform::kubernetes::{Images, KubernetesConfig, KubernetesPlatform};
use toygres_activities::platform::{
    Deployment, Endpoint, InstanceRecord, LogRequest, LogStream, Observation, OfferedVersion, OwnSession, Platform,
    PlatformEvent, Reach,
};
use toygres_models::{Drift, Failure, InstanceKey, InstanceSpec, Invalid, PlatformName, PostgresVersion};

use super::{READY, Subject, key};

/// Pods are heavy; more at once than that only wait for each other.
static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(4)));

/// Every namespaced kind that the cluster knows, but for what is only said of others.
static KINDS: LazyLock<String> = LazyLock::new(|| {
    let kinds = kubectl(&["api-resources", "--verbs=list", "--namespaced", "-o", "name"]);
    kinds.lines().filter(|kind| !kind.starts_with("events")).collect::<Vec<_>>().join(",")
});

pub struct Kubernetes {
    pub platform: Arc<KubernetesPlatform>,
    pub config: KubernetesConfig,
    pub namespace: String,
    version: PostgresVersion,
    renamed: Arc<InNamespace>,
    /// For its CA, and what a test writes.
    pub folder: tempfile::TempDir,
    _turn: OwnedSemaphorePermit,
}

/// Whether a cluster may be used; says so where not.
pub fn is_wanted() -> bool {
    let wanted = std::env::var_os("TOYGRES_TEST_KUBERNETES").is_some_and(|value| value == "1");
    if !wanted {
        let required = std::env::var_os("TOYGRES_TEST_KUBERNETES_REQUIRED").is_some_and(|value| value == "1");
        assert!(
            !required,
            "TOYGRES_TEST_KUBERNETES_REQUIRED=1 asks for tests on a cluster, and TOYGRES_TEST_KUBERNETES=1 is missing"
        );
        static ONCE: std::sync::Once = std::sync::Once::new();
        // Past the capture of output, which would hide it from those who read "ok".
        ONCE.call_once(|| {
            let words = "SKIPPED: there is no cluster, so the tests on Kubernetes did nothing, whatever their results say; \
                         set TOYGRES_TEST_KUBERNETES=1 and KUBECONFIG to test on that cluster";
            let _ = writeln!(std::io::stderr(), "\n{words}");
        });
    }
    wanted
}

pub fn kubectl(arguments: &[&str]) -> String {
    try_kubectl(arguments).unwrap_or_else(|words| panic!("{words}"))
}

fn try_kubectl(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("kubectl").args(arguments).output().expect("kubectl is needed for tests on Kubernetes");
    if !output.status.success() {
        return Err(format!("kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8(output.stdout).unwrap())
}

/// Writes a kubeconfig: the one that the tests use, its one cluster and one user changed.
pub fn kubeconfig(folder: &Path, change: impl FnOnce(&mut Value)) -> ClusterChoice {
    let text = kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]);
    let mut config: Value = serde_json::from_str(&text).unwrap();
    change(&mut config);
    let path = folder.join(format!("kubeconfig-{}", uuid::Uuid::new_v4().simple()));
    std::fs::write(&path, config.to_string()).unwrap();
    ClusterChoice { kubeconfig: Some(path), context: None }
}

/// Applies a manifest, as somebody else than toygres would.
pub fn kubectl_apply(manifest: &str) {
    let mut child = Command::new("kubectl").args(["apply", "-f", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Which minor an image really has, by its own word, so that the configuration is the truth. Asked
/// once: on a cluster whose pods don't run, each test would else wait to learn it anew.
async fn real_version(namespace: &str, major: &str) -> PostgresVersion {
    type Answer = Arc<OnceCell<Result<PostgresVersion, String>>>;
    static KNOWN: LazyLock<std::sync::Mutex<std::collections::HashMap<String, Answer>>> =
        LazyLock::new(std::sync::Mutex::default);
    let cell = KNOWN.lock().unwrap().entry(major.to_owned()).or_default().clone();
    let ask = || async {
        let image = format!("--image=docker.io/library/postgres:{major}");
        let kubectl = |arguments: &[&str]| try_kubectl(&[&["-n", namespace], arguments].concat());
        kubectl(&["run", "ask", &image, "--restart=Never", "--command", "--", "postgres", "--version"])?;
        if let Err(words) = kubectl(&["wait", "pod/ask", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s"]) {
            return Err(format!("{words}{}", kubectl(&["describe", "pod/ask"])?));
        }
        let words = kubectl(&["logs", "ask"])?;
        kubectl(&["delete", "pod", "ask", "--now", "--wait"])?;
        // postgres (PostgreSQL) 17.6 (Debian 17.6-0+deb13u1)
        let version = words.split_whitespace().nth(2).and_then(|word| word.parse().ok());
        version.ok_or_else(|| format!("the image postgres:{major} gave no version: {words}"))
    };
    match cell.get_or_init(ask).await {
        Ok(version) => *version,
        Err(words) => panic!("{words}"),
    }
}

impl Kubernetes {
    /// `None` where no cluster was given.
    pub async fn new(major: &str) -> Option<Self> {
        Self::with(major, |config| config).await
    }

    /// With another configuration.
    pub async fn with(major: &str, change: impl FnOnce(KubernetesConfig) -> KubernetesConfig) -> Option<Self> {
        if !is_wanted() {
            return None;
        }
        let turn = TURNS.clone().acquire_owned().await.unwrap();
        let namespace = format!("toygres-test-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        kubectl(&["create", "namespace", &namespace]);
        let version = real_version(&namespace, major).await;
        kubectl(&["label", "namespace", &namespace, "pod-security.kubernetes.io/enforce=restricted"]);
        let folder = tempfile::tempdir().unwrap();
        let images = Images::parse(None, Some(&format!("{version}={major}"))).unwrap();
        let config = KubernetesConfig {
            namespaces: vec![namespace.parse().unwrap()],
            images,
            ca_dir: folder.path().to_owned(),
            // No autoscaler adds a node.
            scheduling_timeout_seconds: 3,
            ..KubernetesConfig::default()
        };
        let config = change(config);
        let platform = KubernetesPlatform::connect(config.clone()).await.unwrap();
        let renamed = Arc::new(InNamespace { inner: platform.clone(), namespace: namespace.clone() });
        Some(Self { platform, config, namespace, version, renamed, folder, _turn: turn })
    }

    /// The instance's key as the platform knows it.
    pub fn real_key(&self, name: &str) -> InstanceKey {
        self.renamed.real(&key(name))
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        kubectl(&[&["-n", &self.namespace], arguments].concat())
    }

    /// The cluster, with the test's namespace as the client's own.
    pub fn own_cluster(&self) -> ClusterChoice {
        kubeconfig(self.folder.path(), |config| config["contexts"][0]["context"]["namespace"] = self.namespace.clone().into())
    }

    /// The cluster as somebody else.
    pub fn as_user(&self, user: Value) -> ClusterChoice {
        kubeconfig(self.folder.path(), |config| config["users"][0]["user"] = user)
    }

    /// Another platform on the same cluster.
    pub async fn platform_on(&self, cluster: ClusterChoice) -> Arc<KubernetesPlatform> {
        KubernetesPlatform::connect(KubernetesConfig { cluster, ..self.config.clone() }).await.unwrap()
    }

    /// What is wanted of the instance, under its real key.
    pub fn real_spec(&self, name: &str) -> Deployment {
        Deployment { key: self.real_key(name), ..super::spec(self, name) }
    }

    /// The cluster by way of a proxy to the API without TLS.
    pub fn by_way_of(&self, proxy: &Proxy) -> ClusterChoice {
        kubeconfig(self.folder.path(), |config| {
            config["clusters"][0]["cluster"] = json!({"server": format!("http://{}", proxy.address)});
            config["users"][0]["user"] = json!({});
        })
    }

    fn describe(&self) {
        eprintln!("--- namespace {}", self.namespace);
        for arguments in [
            vec!["get", "statefulsets,pods,services,persistentvolumeclaims,secrets", "-o", "wide"],
            vec!["describe", "pods"],
            vec!["get", "events", "--sort-by=.lastTimestamp"],
            vec!["logs", "-l", "app.kubernetes.io/managed-by=toygres", "--tail=40", "--prefix"],
        ] {
            let output = Command::new("kubectl").args(["-n", &self.namespace]).args(&arguments).output().unwrap();
            eprintln!("--- kubectl {}\n{}", arguments.join(" "), String::from_utf8_lossy(&output.stdout));
        }
    }

    /// What is left in the namespace, besides what every namespace has, and of its volumes.
    fn remains(&self) -> Vec<String> {
        let own = ["configmap/kube-root-ca.crt", "serviceaccount/default"];
        let objects = self.kubectl(&["get", &KINDS, "-o", "name"]);
        let mut found: Vec<_> = objects.lines().filter(|line| !own.contains(line)).map(str::to_owned).collect();
        let volumes = kubectl(&[
            "get",
            "persistentvolumes",
            "-o",
            "jsonpath={range .items[*]}{.spec.claimRef.namespace}/{.metadata.name}{\"\\n\"}{end}",
        ]);
        found.extend(volumes.lines().filter(|line| line.starts_with(&format!("{}/", self.namespace))).map(str::to_owned));
        found
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.describe();
        }
        self.platform.shutdown();
        let _ = Command::new("kubectl").args(["delete", "namespace", &self.namespace, "--wait=false"]).output();
    }
}

#[async_trait]
impl Subject for Kubernetes {
    fn platform(&self) -> Arc<dyn Platform> {
        self.renamed.clone()
    }

    fn version(&self) -> PostgresVersion {
        self.version
    }

    async fn settle(&self, name: &str) {
        let seen = self.platform.wait_ready(&self.real_key(name), READY).await.unwrap_or_else(|failure| panic!("{failure:#?}"));
        assert!(seen.ready, "{seen:#?}");
    }

    /// No signal from inside kills a container's first process; this one has it end without a shutdown.
    fn fell(&self, name: &str) {
        self.kubectl(&["exec", &format!("{name}-0"), "--", "sh", "-c", "kill -QUIT 1"]);
    }

    fn break_start(&self, name: &str) {
        let script = "echo 'no_such_setting = 1' >> \"$PGDATA/postgresql.auto.conf\"";
        self.kubectl(&["exec", &format!("{name}-0"), "--", "sh", "-c", script]);
    }

    fn lose(&self, name: &str) {
        self.kubectl(&["delete", "statefulset", name, "--wait=true"]);
        self.kubectl(&["delete", "pvc", &format!("{name}-data"), "--wait=true"]);
    }

    async fn again(&self) -> Arc<dyn Platform> {
        let inner = KubernetesPlatform::connect(self.config.clone()).await.unwrap();
        Arc::new(InNamespace { inner, namespace: self.namespace.clone() })
    }

    /// StatefulSets' replicas, whose pods may still be on their way, or pods without one.
    fn servers(&self) -> usize {
        let replicas = self.kubectl(&["get", "statefulsets", "-o", "jsonpath={range .items[*]}{.spec.replicas}{\"\\n\"}{end}"]);
        let asked: usize = replicas.lines().map(|line| line.parse::<usize>().unwrap()).sum();
        asked.max(self.kubectl(&["get", "pods", "-o", "name"]).lines().count())
    }

    /// Endpoint slices and volumes go a moment later, by the cluster's own controllers.
    fn leftovers(&self) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let found = self.remains();
            if found.is_empty() || begun.elapsed() > Duration::from_secs(90) {
                return found;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A platform whose instances are in another namespace than they seem to be: the checks use one
/// name for all, and here each test has its own.
pub struct InNamespace {
    inner: Arc<KubernetesPlatform>,
    namespace: String,
}

impl InNamespace {
    fn real(&self, key: &InstanceKey) -> InstanceKey {
        InstanceKey::parse(&self.namespace, key.name.as_str()).unwrap()
    }
}

#[async_trait]
impl Platform for InNamespace {
    fn name(&self) -> PlatformName {
        self.inner.name()
    }

    fn check(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<(), Invalid> {
        self.inner.check(&self.real(key), spec)
    }

    async fn versions(&self) -> Result<Vec<OfferedVersion>, Failure> {
        self.inner.versions().await
    }

    async fn resolve_version(&self, wanted: Option<PostgresVersion>) -> Result<PostgresVersion, Failure> {
        self.inner.resolve_version(wanted).await
    }

    async fn ensure(&self, deployment: &Deployment) -> Result<bool, Failure> {
        self.inner.ensure(&Deployment { key: self.real(&deployment.key), ..deployment.clone() }).await
    }

    async fn restart(&self, key: &InstanceKey, request_id: &str) -> Result<bool, Failure> {
        self.inner.restart(&self.real(key), request_id).await
    }

    async fn set_extensions(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<(), Failure> {
        self.inner.set_extensions(&self.real(key), spec).await
    }

    async fn open_superuser(
        &self,
        key: &InstanceKey,
        password: &SecretString,
        valid_until: chrono::DateTime<chrono::Utc>,
    ) -> Result<(), Failure> {
        self.inner.open_superuser(&self.real(key), password, valid_until).await
    }

    async fn set_password(&self, key: &InstanceKey, password: &SecretString) -> Result<(), Failure> {
        self.inner.set_password(&self.real(key), password).await
    }

    async fn drift(&self, key: &InstanceKey, spec: &InstanceSpec) -> Result<Vec<Drift>, Failure> {
        self.inner.drift(&self.real(key), spec).await
    }

    async fn suspects(&self) -> Result<Vec<InstanceKey>, Failure> {
        let here = self.inner.suspects().await?.into_iter().filter(|key| key.namespace.as_str() == self.namespace);
        Ok(here.map(|real| key(real.name.as_str())).collect())
    }

    async fn session(&self, key: &InstanceKey) -> Result<OwnSession, Failure> {
        self.inner.session(&self.real(key)).await
    }

    async fn records(&self) -> Result<Vec<InstanceRecord>, Failure> {
        let records = self.inner.records().await?;
        Ok(records.into_iter().map(|record| InstanceRecord { key: key(record.key.name.as_str()), ..record }).collect())
    }

    async fn observe(&self, key: &InstanceKey) -> Result<Option<Observation>, Failure> {
        self.inner.observe(&self.real(key)).await
    }

    async fn probe(&self, key: &InstanceKey, max_age: Duration) -> Result<toygres_activities::platform::probe::Probe, Failure> {
        self.inner.probe(&self.real(key), max_age).await
    }

    async fn wait_ready(&self, key: &InstanceKey, timeout: Duration) -> Result<Observation, Failure> {
        self.inner.wait_ready(&self.real(key), timeout).await
    }

    async fn endpoint(&self, key: &InstanceKey) -> Result<Endpoint, Failure> {
        self.inner.endpoint(&self.real(key)).await
    }

    async fn reach(&self, host: &str, port: u16) -> Result<Option<Reach>, Failure> {
        self.inner.reach(host, port).await
    }

    async fn remove(&self, key: &InstanceKey) -> Result<bool, Failure> {
        self.inner.remove(&self.real(key)).await
    }

    async fn list(&self) -> Result<Vec<InstanceKey>, Failure> {
        let keys = self.inner.list().await?;
        Ok(keys.iter().map(|found| key(found.name.as_str())).collect())
    }

    async fn logs(&self, key: &InstanceKey, request: LogRequest) -> Result<LogStream, Failure> {
        self.inner.logs(&self.real(key), request).await
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }

    fn events(&self) -> broadcast::Receiver<PlatformEvent> {
        self.inner.events()
    }
}

//! A Kubernetes cluster to test on, a namespace of its own for each test, and a `toygres` that makes
//! instances there. Only where it is asked for, so that nobody's cluster is touched by accident.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::process::{Output, Stdio};
use std::sync::{Arc, LazyLock, Once};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::run::Run;
use crate::wait::{SOON, eventually};
use crate::{Api, Toygres};

/// Pods are heavy; more tests at once than that only wait for each other.
static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(4)));

/// What Kubernetes itself puts into every namespace.
const EVERYWHERE: [&str; 2] = ["configmap/kube-root-ca.crt", "serviceaccount/default"];

/// How long a failure may take that waiting can't mend: less than the five minutes that an instance is given to come up,
/// however busy the machine is.
pub const IN_SECONDS: Duration = Duration::from_secs(240);

/// A test that takes longer says so.
const SLOW: Duration = Duration::from_secs(30);

/// Past the capture of a test's output, which would hide it from those who read "ok".
fn tell(words: &str) {
    let _ = writeln!(std::io::stderr(), "\n{words}");
}

/// The kubeconfig of the cluster to test on. `None`, and a word about it, where none was given and
/// none is required.
///
/// # Errors
/// If a cluster is required and wasn't given, or was asked for without a KUBECONFIG.
pub fn kubeconfig() -> Result<Option<OsString>> {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| value == "1");
    if !is_set("TOYGRES_TEST_KUBERNETES") {
        let required = is_set("TOYGRES_TEST_KUBERNETES_REQUIRED");
        ensure!(!required, "tests on Kubernetes are required, and TOYGRES_TEST_KUBERNETES=1 is missing");
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            tell(
                "SKIPPED: there is no cluster, so nothing was done on Kubernetes, whatever the results say; \
                 set TOYGRES_TEST_KUBERNETES=1 and KUBECONFIG to use that cluster",
            );
        });
        return Ok(None);
    }
    let file = std::env::var_os("KUBECONFIG").filter(|file| !file.is_empty());
    file.map(Some).context("TOYGRES_TEST_KUBERNETES=1 needs KUBECONFIG: which cluster is said and not guessed")
}

/// Runs kubectl with something to read.
///
/// # Errors
/// With kubectl's own words, if it fails.
pub async fn kubectl_with_input(arguments: &[&str], input: &str) -> Result<String> {
    let output = run_kubectl(arguments, input).await?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {}: {words}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs kubectl.
///
/// # Errors
/// With kubectl's own words, if it fails.
pub async fn kubectl(arguments: &[&str]) -> Result<String> {
    kubectl_with_input(arguments, "").await
}

async fn run_kubectl(arguments: &[&str], input: &str) -> Result<Output> {
    let mut command = Command::new("kubectl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().context("kubectl is needed for tests on Kubernetes")?;
    let mut pipe = child.stdin.take().context("kubectl reads nothing")?;
    let fed = async move {
        // It may have read enough before the end.
        let _ = pipe.write_all(input.as_bytes()).await;
    };
    Ok(tokio::join!(child.wait_with_output(), fed).0?)
}

/// Every kind of object that a namespace can hold, but events, which stay for a while.
///
/// # Errors
/// If the cluster doesn't answer.
pub async fn kinds() -> Result<&'static str> {
    static KINDS: OnceCell<String> = OnceCell::const_new();
    let ask = async || {
        let kinds = kubectl(&["api-resources", "--verbs=list", "--namespaced", "-o", "name"]).await?;
        let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
        ensure!(kinds.contains(&"statefulsets.apps"), "no kinds were found: {kinds:?}");
        Ok(kinds.join(","))
    };
    KINDS.get_or_try_init(ask).await.map(String::as_str)
}

/// A namespace of a test's own, under the restricted security profile; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    began: Instant,
}

impl Namespace {
    /// Makes one whose name tells what it is for.
    ///
    /// # Errors
    /// If the cluster doesn't answer.
    pub async fn new(purpose: &str) -> Result<Self> {
        let name = format!("e2e-{purpose}-{:08x}", RandomState::new().hash_one(0) as u32);
        kubectl(&["create", "namespace", &name]).await?;
        let namespace = Self { name, began: Instant::now() };
        kubectl(&["label", "namespace", &namespace.name, "pod-security.kubernetes.io/enforce=restricted"]).await?;
        Ok(namespace)
    }

    /// Runs kubectl in it.
    ///
    /// # Errors
    /// With kubectl's own words, if it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        kubectl(&[&["-n", &self.name], arguments].concat()).await
    }

    /// An object, such as `pod/demo-0`, or the objects of a kind.
    ///
    /// # Errors
    /// If it isn't there.
    pub async fn object(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["get", name, "-o", "json"]).await?)?)
    }

    /// An object's uid; `None` if there is none of that name.
    ///
    /// # Errors
    /// If the cluster doesn't answer.
    pub async fn uid(&self, name: &str) -> Result<Option<String>> {
        let uid = self.kubectl(&["get", name, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}"]).await?;
        Ok(Some(uid).filter(|uid| !uid.is_empty()))
    }

    /// Everything in it, of every kind, but what every namespace has; and its volumes.
    ///
    /// # Errors
    /// If the cluster doesn't answer.
    pub async fn objects(&self) -> Result<BTreeSet<String>> {
        let kinds = kinds().await?;
        let objects = self.kubectl(&["get", kinds, "-o", "name", "--ignore-not-found"]).await?;
        let mut found: BTreeSet<String> = objects.lines().map(ToOwned::to_owned).collect();
        found.retain(|object| !EVERYWHERE.contains(&object.as_str()));
        let lines = "jsonpath={range .items[*]}{.spec.claimRef.namespace}/{.metadata.name}{\"\\n\"}{end}";
        let volumes = kubectl(&["get", "persistentvolumes", "-o", lines]).await?;
        let own = volumes.lines().filter_map(|line| line.strip_prefix(&self.name)?.strip_prefix('/'));
        found.extend(own.map(|volume| format!("persistentvolume/{volume}")));
        Ok(found)
    }

    /// Waits until nothing is left: endpoint slices and volumes go a moment after what they belong
    /// to, by the cluster's own controllers.
    ///
    /// # Errors
    /// Names what is left.
    pub async fn expect_empty(&self) -> Result<()> {
        let empty = async || {
            let left = self.objects().await?;
            ensure!(left.is_empty(), "{left:?} is left in {}", self.name);
            Ok(Some(()))
        };
        eventually("an empty namespace", SOON, empty).await
    }

    /// What one needs to see when a test failed.
    fn describe(&self) {
        eprintln!("\n==== namespace {}", self.name);
        for arguments in [
            &["get", "statefulsets,pods,services,persistentvolumeclaims,secrets,configmaps", "-o", "wide"][..],
            &["describe", "pods"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", "-l", "app.kubernetes.io/managed-by=toygres", "--tail=40", "--prefix"],
        ] {
            let output = std::process::Command::new("kubectl").args(["-n", &self.name]).args(arguments).output();
            let text = output.map(|output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
            eprintln!("-- kubectl {}\n{}", arguments.join(" "), text.unwrap_or_default());
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.began.elapsed() > SLOW {
            tell(&format!("{} took {:.0} s", self.name, self.began.elapsed().as_secs_f64()));
        }
        if std::thread::panicking() {
            self.describe();
        }
        let mut command = std::process::Command::new("kubectl");
        let _ = command.args(["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"]).output();
    }
}

/// A `toygres` that may use the cluster, and a namespace for its instances.
#[derive(Debug)]
pub struct Cluster {
    /// The program, with its ordinary server for both platforms. Goes before the namespace does.
    pub toygres: Toygres,
    /// Where its instances are.
    pub namespace: Namespace,
    _turn: OwnedSemaphorePermit,
}

impl Cluster {
    /// `None` where no cluster was given, and none is required.
    ///
    /// # Errors
    /// If one is required, or was given and can't be used.
    pub async fn new(purpose: &str) -> Result<Option<Self>> {
        Self::with(purpose, |toygres| toygres).await
    }

    /// The same with a changed environment.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub async fn with(purpose: &str, change: impl FnOnce(Toygres) -> Toygres) -> Result<Option<Self>> {
        Self::around(purpose, || Ok(change(Toygres::new()?))).await
    }

    /// The optimised program with its defaults, for measurements.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub async fn for_measurement() -> Result<Option<Self>> {
        Self::around("bench", Toygres::for_measurement).await
    }

    async fn around(purpose: &str, make: impl FnOnce() -> Result<Toygres>) -> Result<Option<Self>> {
        let Some(file) = kubeconfig()? else { return Ok(None) };
        let turn = TURNS.clone().acquire_owned().await?;
        let namespace = Namespace::new(purpose).await?;
        // No autoscaler adds a node.
        let toygres = make()?.with_unless_set("KUBECONFIG", file).with_unless_set("TOYGRES_SCHEDULING_TIMEOUT_SECONDS", "3");
        Ok(Some(Self { toygres, namespace, _turn: turn }))
    }

    /// The words of a command, after the flag for the namespace.
    fn words<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["-n", self.namespace.name.as_str()], arguments].concat()
    }

    /// Runs the program in the namespace.
    ///
    /// # Errors
    /// If it can't be run, or hangs.
    pub async fn run(&self, arguments: &[&str]) -> Result<Run> {
        self.toygres.run(&self.words(arguments)).await
    }

    /// Runs the program in the namespace with something to read.
    ///
    /// # Errors
    /// If it can't be run, or hangs.
    pub async fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Result<Run> {
        self.toygres.run_with_input(&self.words(arguments), input).await
    }

    /// Runs the program in the namespace; it has to succeed.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn ok(&self, arguments: &[&str]) -> Result<Run> {
        self.toygres.ok(&self.words(arguments)).await
    }

    /// Runs the program in the namespace for its result as JSON.
    ///
    /// # Errors
    /// If it fails.
    pub async fn json(&self, arguments: &[&str]) -> Result<Value> {
        self.toygres.json(&self.words(arguments)).await
    }

    /// Runs the program in the namespace; it has to fail with a text for people.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn fails(&self, code: i32, arguments: &[&str]) -> Result<Run> {
        self.toygres.fails(code, &self.words(arguments)).await
    }

    /// A command in the namespace.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.toygres.command(&self.words(arguments))
    }

    /// `toygres create` on Kubernetes.
    ///
    /// # Errors
    /// If it fails.
    pub async fn create(&self, name: &str, more: &[&str]) -> Result<Run> {
        self.ok(&[&["create", name, "--platform", "kubernetes"], more].concat()).await
    }

    /// `toygres delete`.
    ///
    /// # Errors
    /// If it fails.
    pub async fn delete(&self, name: &str) -> Result<Run> {
        self.ok(&["delete", name, "--yes"]).await
    }

    /// What SQL answers, by `toygres psql`.
    ///
    /// # Errors
    /// If it fails.
    pub async fn sql(&self, name: &str, query: &str) -> Result<String> {
        Ok(self.ok(&["psql", name, "-XAtq", "-c", query]).await?.stdout.trim_end().to_owned())
    }

    /// The server's HTTP interface, for instances in the namespace on Kubernetes.
    ///
    /// # Errors
    /// If none left its record.
    pub fn api(&self) -> Result<Api> {
        Ok(self.toygres.api()?.on_kubernetes(&self.namespace.name))
    }

    /// Starts the server; its HTTP interface.
    ///
    /// # Errors
    /// If it doesn't start.
    pub async fn serve(&self) -> Result<Api> {
        self.toygres.serve().await?;
        self.api()
    }

    /// Makes an error of anything but one healthy instance that answers SQL, made once.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub async fn expect_made(&self, name: &str) -> Result<()> {
        let instance = self.json(&["get", name]).await?;
        ensure!(instance["state"] == "running" && instance["status"]["health_status"] == "healthy", "{instance:#}");
        ensure!(self.sql(name, "select 40 + 2").await? == "42", "no answer of {name}");
        let events = self.json(&["events", name]).await?;
        let made = events.as_array().into_iter().flatten().filter(|event| event["kind"] == "instance_running").count();
        ensure!(made == 1, "made {made} times: {events:#}");
        Ok(())
    }

    /// The failure of an instance: what it says to people, evidence included.
    ///
    /// # Errors
    /// If it didn't fail, or says nothing.
    pub async fn reason(&self, name: &str) -> Result<String> {
        let instance = self.json(&["get", name]).await?;
        ensure!(instance["state"] == "failed", "{name} hasn't failed: {instance:#}");
        let Some(message) = instance["status"]["failure"]["message"].as_str() else { bail!("it doesn't say why: {instance:#}") };
        crate::run::humane(message)?;
        Ok(self.ok(&["get", name]).await?.stdout)
    }
}

//! The one place that makes a Kubernetes client: from KUBECONFIG and a context, or in-cluster.
//!
//! Every call through [`K8sClient::call`] has a time limit, is counted, and ends in a [`Failure`]
//! that says whether trying again can help.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http_body_util::BodyExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, Patch, PatchParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::Status;
use kube::{Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toygres_models::{Failure, FailureKind};

/// The name under which toygres owns fields of objects.
pub const FIELD_MANAGER: &str = "toygres";

/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long one call may take, the client's own repetitions of throttled calls included.
const CALL_LIMIT: Duration = Duration::from_secs(15);

/// Which cluster, and as whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterChoice {
    /// A kubeconfig file; else `KUBECONFIG`, else `~/.kube/config`, else the pod's own account.
    pub kubeconfig: Option<PathBuf>,
    /// A context in it; else its current one.
    pub context: Option<String>,
}

/// A client that knows where it came from. Cheap to clone.
#[derive(Clone)]
pub struct K8sClient {
    client: Client,
    origin: Arc<Origin>,
    calls: Arc<AtomicU64>,
}

struct Origin {
    /// The API server's address.
    url: String,
    /// What the credentials were taken from.
    source: String,
    in_cluster: bool,
    /// The kubeconfig's files, and when each was written.
    files: Vec<(PathBuf, Option<SystemTime>)>,
}

/// A client for the cluster that the environment names.
///
/// # Errors
/// If there is no usable configuration. The cluster isn't called.
pub async fn get_k8s_client() -> Result<Client, Failure> {
    Ok(K8sClient::connect(&ClusterChoice::default()).await?.client)
}

/// Whether there is a StatefulSet of that instance.
///
/// # Errors
/// If the cluster can't be asked.
pub async fn check_resources_exist(client: &Client, namespace: &str, instance_name: &str) -> Result<bool, Failure> {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let failed = |why: &str| {
        let message = format!("could not read the StatefulSet of {namespace}/{instance_name}: {why}");
        Failure::transient(FailureKind::Platform, message)
    };
    let answer = tokio::time::timeout(CALL_LIMIT, sets.get_opt(instance_name)).await;
    let answer = answer.map_err(|_| failed(&format!("the API server gave no answer within {} s", CALL_LIMIT.as_secs())))?;
    Ok(answer.map_err(|error| failed(&chain(&error)))?.is_some())
}

impl K8sClient {
    /// A client for the chosen cluster. Calls nothing but, perhaps, the kubeconfig's own plugin.
    ///
    /// # Errors
    /// Permanent, and naming the file, if there is no usable configuration.
    pub async fn connect(choice: &ClusterChoice) -> Result<Self, Failure> {
        // Before they are read: what is written meanwhile is seen as newer.
        let files = files(choice).into_iter().map(|path| (path.clone(), written(&path))).collect();
        let (mut config, source, in_cluster) = configuration(choice).await?;
        config.connect_timeout = Some(CONNECT_LIMIT);
        // Reading has none: a watch may be silent for long. Each call has its limit in `call`.
        config.read_timeout = None;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config)
            .map_err(|error| unusable(&source, &format!("no client can be made of it: {}", chain(&error))))?;
        let origin = Origin { url, source, in_cluster, files };
        Ok(Self { client, origin: Arc::new(origin), calls: Arc::default() })
    }

    /// The client itself, for watches and streams, which have no time limit.
    #[must_use]
    pub fn raw(&self) -> Client {
        self.client.clone()
    }

    /// Whether toygres itself runs in this cluster.
    #[must_use]
    pub fn is_in_cluster(&self) -> bool {
        self.origin.in_cluster
    }

    /// Whether the kubeconfig has changed since: a new log-in needs a new client.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.origin.files.iter().any(|(path, then)| written(path) != *then)
    }

    /// What the credentials were taken from, for a person.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.origin.source
    }

    /// The namespace that the configuration names; in a pod, the pod's.
    #[must_use]
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// How many calls were made so far, watches included.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Which cluster this is: the uid of its namespace `kube-system`, as is customary. `None` where
    /// the credentials don't allow to read it.
    ///
    /// # Errors
    /// If the API server can't be asked.
    pub async fn cluster_id(&self) -> Result<Option<String>, Failure> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let call = async {
            match namespaces.get_metadata("kube-system").await {
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Ok(None),
                Err(error) => Err(error),
                Ok(namespace) => Ok(namespace.metadata.uid),
            }
        };
        self.call("find out which cluster this is", call).await
    }

    /// Counts a call that doesn't go through [`call`](Self::call).
    pub(crate) fn count(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// The objects of one kind in a namespace.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes a call within the time limit. `doing` completes "could not …".
    ///
    /// # Errors
    /// See [`failure`](Self::failure).
    pub async fn call<T>(&self, doing: impl Into<String>, call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        let doing = doing.into();
        self.count();
        match tokio::time::timeout(CALL_LIMIT, call).await {
            Ok(result) => result.map_err(|error| self.failure(&doing, &error)),
            Err(_) => Err(Failure::transient(
                FailureKind::Platform,
                format!("could not {doing}: the API server {} gave no answer within {} s", self.origin.url, CALL_LIMIT.as_secs()),
            )),
        }
    }

    /// Server-side apply with strict validation. `true` if the object was made by it.
    ///
    /// # Errors
    /// See [`failure`](Self::failure).
    pub(crate) async fn apply<K>(&self, namespace: &str, object: &K, dry_run: bool) -> Result<(K, bool), Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Serialize + DeserializeOwned,
        K::DynamicType: Default,
    {
        let mut params = PatchParams::apply(FIELD_MANAGER).force().validation_strict();
        params.dry_run = dry_run;
        let name = object.meta().name.clone().unwrap_or_default();
        self.call(applying::<K>(namespace, &name), self.send_apply(namespace, &name, object, &params)).await
    }

    /// Server-side apply of an object that isn't there yet. `None` if there is one of its name, which
    /// isn't touched.
    ///
    /// # Errors
    /// See [`failure`](Self::failure).
    pub(crate) async fn create<K>(&self, namespace: &str, mut object: K) -> Result<Option<K>, Failure>
    where
        K: Resource<Scope = NamespaceResourceScope> + Serialize + DeserializeOwned,
        K::DynamicType: Default,
    {
        // The API server demands this version of an object that is there, which none ever had, and
        // overlooks it where there is none. A plain create would own the fields in another way than
        // later applies, which could then remove none of them.
        object.meta_mut().resource_version = Some("1".to_owned());
        let name = object.meta().name.clone().unwrap_or_default();
        let params = PatchParams::apply(FIELD_MANAGER).validation_strict();
        let call = async {
            match self.send_apply(namespace, &name, &object, &params).await {
                Ok((created, true)) => Ok(Some(created)),
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
                Ok((_, false)) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.call(applying::<K>(namespace, &name), call).await
    }

    /// `true` if the object was made by it.
    async fn send_apply<K>(&self, namespace: &str, name: &str, object: &K, params: &PatchParams) -> kube::Result<(K, bool)>
    where
        K: Resource<Scope = NamespaceResourceScope> + Serialize + DeserializeOwned,
        K::DynamicType: Default,
    {
        let path = K::url_path(&K::DynamicType::default(), Some(namespace));
        let request =
            kube::core::Request::new(path).patch(name, params, &Patch::Apply(object)).map_err(kube::Error::BuildRequest)?;
        let response = self.client.send(request.map(Body::from)).await?;
        let code = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if code.is_success() {
            let applied = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
            // Only the status code tells a created object from a changed one.
            return Ok((applied, code.as_u16() == 201));
        }
        let status = serde_json::from_slice::<Status>(&body)
            .unwrap_or_else(|_| Status::failure(String::from_utf8_lossy(&body).trim(), "").with_code(code.as_u16()));
        Err(kube::Error::Api(status.boxed()))
    }

    /// What a failed call means. `doing` completes "could not …".
    #[must_use]
    pub fn failure(&self, doing: &str, error: &kube::Error) -> Failure {
        match error {
            kube::Error::Api(status) => self.answered(doing, status),
            // A plugin or a token file that can't be had; what runs in a pod is renewed by the kubelet.
            kube::Error::Auth(_) => Failure::permanent(
                FailureKind::Platform,
                format!("could not {doing}: {} gives no valid credentials: {}", self.origin.source, chain(error)),
            ),
            _ => Failure::transient(
                FailureKind::Platform,
                format!(
                    "could not {doing}: the API server {} can't be reached: {}. Is the cluster up, and is {} the right configuration?",
                    self.origin.url,
                    chain(error),
                    self.origin.source
                ),
            ),
        }
    }

    fn answered(&self, doing: &str, status: &Status) -> Failure {
        let words = if status.message.is_empty() { &status.reason } else { &status.message };
        let details = status.details.as_ref();
        let is_namespace = details.is_some_and(|details| details.kind == "namespaces");
        let terminating = words.contains("because it is being terminated");
        let plain = format!("could not {doing}: {words}");
        match status.code {
            // A pod that was removed by force runs on for a moment, and its token ends with its record: another server does it.
            401 if self.is_in_cluster() => Failure::transient(
                FailureKind::Platform,
                format!(
                    "could not {doing}: the API server {} refuses the credentials of {}: {words}. Was the pod removed?",
                    self.origin.url, self.origin.source
                ),
            ),
            401 => Failure::permanent(
                FailureKind::Platform,
                format!(
                    "could not {doing}: the API server {} refuses the credentials of {}: {words}. Have they expired? Log in anew",
                    self.origin.url, self.origin.source
                ),
            ),
            403 if words.contains("exceeded quota") || words.contains("LimitRange") => {
                Failure::permanent(FailureKind::Exhausted, format!("{plain}. Free some of the quota, or have it raised"))
            }
            403 if words.contains("status unknown for quota") => Failure::transient(FailureKind::Platform, plain),
            403 if terminating => Failure::permanent(
                FailureKind::Conflict,
                format!("namespace: {words}; when it is gone, make it anew, or choose another one"),
            )
            .with_field("namespace"),
            403 => Failure::permanent(
                FailureKind::Platform,
                format!("{plain}. toygres isn't allowed to do that; give {} the rights that its docs list", self.origin.source),
            ),
            404 if is_namespace => Failure::permanent(
                FailureKind::NotFound,
                format!(
                    "namespace: {words}; make it first: kubectl create namespace {}",
                    details.map_or("", |details| &details.name)
                ),
            )
            .with_field("namespace"),
            404 => Failure::permanent(FailureKind::NotFound, plain),
            // Somebody else was at the same object; the next attempt sees what they did.
            409 | 410 => Failure::transient(FailureKind::Platform, plain),
            400 | 405 | 413 | 415 | 422 => Failure::permanent(FailureKind::Platform, plain),
            _ => Failure::transient(FailureKind::Platform, plain),
        }
    }
}

fn applying<K: Resource>(namespace: &str, name: &str) -> String
where
    K::DynamicType: Default,
{
    format!("apply the {} {namespace}/{name}", K::kind(&K::DynamicType::default()))
}

/// An error with its causes, each said once.
fn chain(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}

fn unusable(source: &str, words: &str) -> Failure {
    Failure::permanent(FailureKind::Platform, format!("the Kubernetes configuration {source} can't be used: {words}"))
}

/// When a file was written; none if it isn't there.
fn written(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// The kubeconfig's files, whether or not they are there.
fn files(choice: &ClusterChoice) -> Vec<PathBuf> {
    let from_environment = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
    match (&choice.kubeconfig, from_environment) {
        (Some(path), _) => vec![path.clone()],
        (None, Some(paths)) => std::env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty()).collect(),
        (None, None) => std::env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect(),
    }
}

async fn configuration(choice: &ClusterChoice) -> Result<(Config, String, bool), Failure> {
    let from_environment = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
    let at_home = std::env::home_dir().map(|home| home.join(".kube/config")).filter(|path| path.exists());
    let (kubeconfig, source) = match (&choice.kubeconfig, from_environment, at_home) {
        (Some(path), _, _) => (read(path), path.display().to_string()),
        (None, Some(paths), _) => {
            let source = format!("KUBECONFIG={}", paths.display());
            (merged(&paths), source)
        }
        (None, None, Some(path)) => (read(&path), path.display().to_string()),
        (None, None, None) if choice.context.is_none() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            let source = "the pod's service account".to_owned();
            let config = Config::incluster().map_err(|error| unusable(&source, &error.to_string()))?;
            return Ok((config, source, true));
        }
        (None, None, None) => {
            return Err(Failure::permanent(
                FailureKind::Platform,
                "there is no Kubernetes configuration: set KUBECONFIG, or put one at ~/.kube/config",
            ));
        }
    };
    let refuse = |error: KubeconfigError| unusable(&source, &without_content(&error));
    let options = KubeConfigOptions { context: choice.context.clone(), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig.map_err(refuse)?, &options).await.map_err(refuse)?;
    let source = match &choice.context {
        Some(context) => format!("{source} (context {context})"),
        None => source,
    };
    Ok((config, source, false))
}

/// What is wrong with a kubeconfig. A parser's own words would show the lines around, and with them
/// tokens and keys.
fn without_content(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(error) => match error.location() {
            Some(location) => format!("it is no kubeconfig in YAML, at or before line {}", location.line()),
            None => "it is no kubeconfig in YAML".to_owned(),
        },
        KubeconfigError::ReadConfig(error, path) => format!("{} can't be read: {error}", path.display()),
        other => other.to_string(),
    }
}

fn read(path: &Path) -> Result<Kubeconfig, KubeconfigError> {
    Kubeconfig::read_from(path)
}

/// `KUBECONFIG` may name several files; of a setting that more than one has, the first wins.
fn merged(paths: &std::ffi::OsStr) -> Result<Kubeconfig, KubeconfigError> {
    let mut all = Kubeconfig::default();
    for path in std::env::split_paths(paths).filter(|path| !path.as_os_str().is_empty()) {
        all = all.merge(read(&path)?)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use kube::core::response::StatusDetails;

    use super::*;

    async fn refused(content: Option<&str>, context: Option<&str>) -> Failure {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let choice = ClusterChoice { kubeconfig: Some(path.clone()), context: context.map(str::to_owned) };
        let failure = K8sClient::connect(&choice).await.err().unwrap();
        assert!(!failure.retryable && failure.message.contains(path.to_str().unwrap()), "{failure}");
        failure
    }

    fn kubeconfig(server: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\ncontexts: [{{name: here, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: {server}}}}}]\nusers: [{{name: u, user: {{token: secret-token}}}}]\n"
        )
    }

    async fn client(server: &str) -> K8sClient {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, kubeconfig(server)).unwrap();
        K8sClient::connect(&ClusterChoice { kubeconfig: Some(path), context: None }).await.unwrap()
    }

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_used_is_named() {
        refused(None, None).await;
        refused(Some("}"), None).await;
        refused(Some("apiVersion: v1\nkind: Config\n"), None).await;
        let failure = refused(Some(&kubeconfig("https://127.0.0.1:1")), Some("elsewhere")).await;
        assert!(failure.message.contains("elsewhere") && !failure.message.contains("secret-token"), "{failure}");
    }

    #[tokio::test]
    async fn a_cluster_that_is_not_there_may_come_back() {
        let client = client("http://127.0.0.1:1").await;
        let failure = client.call("ask", client.raw().apiserver_version()).await.unwrap_err();
        assert!(failure.retryable && failure.message.contains("127.0.0.1:1"), "{failure}");
        assert_eq!(client.calls(), 1);
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        let client = client("http://127.0.0.1:1").await;
        let classify_for = |client: &K8sClient, code: u16, message: &str, kind: &str| {
            let details = StatusDetails {
                name: "n".into(),
                group: String::new(),
                kind: kind.into(),
                uid: String::new(),
                causes: Vec::new(),
                retry_after_seconds: 0,
            };
            let status = Status::failure(message, "").with_code(code).with_details(details);
            let failure = client.failure("do it", &kube::Error::Api(status.boxed()));
            (failure.kind, failure.retryable)
        };
        let classify = |code: u16, message: &str, kind: &str| classify_for(&client, code, message, kind);
        assert_eq!(classify(401, "Unauthorized", ""), (FailureKind::Platform, false));
        let origin = Origin { url: String::new(), source: String::new(), in_cluster: true, files: Vec::new() };
        let pod = K8sClient { origin: origin.into(), ..client.clone() };
        assert_eq!(classify_for(&pod, 401, "Unauthorized", ""), (FailureKind::Platform, true));
        assert_eq!(classify(403, "forbidden: exceeded quota: q", "pods"), (FailureKind::Exhausted, false));
        assert_eq!(classify(403, "User \"x\" cannot get resource", "pods"), (FailureKind::Platform, false));
        assert_eq!(classify(404, "namespaces \"n\" not found", "namespaces"), (FailureKind::NotFound, false));
        assert_eq!(classify(409, "Operation cannot be fulfilled", "pods"), (FailureKind::Platform, true));
        assert_eq!(classify(422, "spec: Invalid value", "pods"), (FailureKind::Platform, false));
        for passing in [429, 500, 503, 504] {
            assert!(classify(passing, "later", "").1);
        }
    }
}

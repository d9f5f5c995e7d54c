//! What may be chosen about instances on Kubernetes. Everything is checked here, before it gets
//! near a template.

use std::path::PathBuf;

use toygres_models::{ClusterDomain, Cpu, Failure, FailureKind, Invalid, Memory, Namespace, StorageClass};

use super::images::Images;
use super::own_secret::OwnSecret;
use crate::k8s_client::ClusterChoice;
use crate::platform::DefaultFolder;

/// How the Kubernetes platform is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// Which cluster.
    pub cluster: ClusterChoice,
    /// The namespaces that are served; all if there are none.
    pub namespaces: Vec<Namespace>,
    /// The images, by version.
    pub images: Images,
    /// The StorageClass of volumes; the cluster's default if there is none.
    pub storage_class: Option<String>,
    /// What a server may use.
    pub resources: Resources,
    /// The user in the image that servers run as: 999 in Debian's official ones, 70 in Alpine's.
    pub user_id: i64,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// How long a pod may be without a node that can take it, or without its image because the registry fails, before it is
    /// given up. An autoscaler adds a node within some minutes.
    pub scheduling_timeout_seconds: u64,
    /// The folder with the CAs' certificates and keys, which are made if they aren't there.
    pub ca_dir: PathBuf,
    /// The Secret in the client's own namespace that holds the CA (see
    /// [`OwnSecret`](super::OwnSecret)); only the certificates are then put into [`ca_dir`](Self::ca_dir).
    pub own_secret: Option<String>,
}

/// What a server may use: quantities as Kubernetes writes them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Resources {
    /// What its node has to have free.
    pub cpu_request: String,
    /// What it gets at most.
    pub cpu_limit: String,
    /// What its node has to have free.
    pub memory_request: String,
    /// Above it, the server is killed.
    pub memory_limit: String,
}

impl Default for Resources {
    /// A small server that may use a core while nobody else wants it.
    fn default() -> Self {
        let text = str::to_owned;
        Self { cpu_request: text("100m"), cpu_limit: text("1"), memory_request: text("256Mi"), memory_limit: text("1Gi") }
    }
}

impl Resources {
    /// The memory that a server gets at most, in MiB.
    pub(in crate::platform::kubernetes) fn memory_mib(&self) -> u64 {
        self.memory_limit.parse::<Memory>().map_or(0, |memory| memory.mebibytes())
    }

    /// That much, guaranteed; `self` for what isn't given.
    #[must_use]
    pub fn with(mut self, cpu: Option<&Cpu>, memory: Option<&Memory>) -> Self {
        if let Some(cpu) = cpu.map(ToString::to_string) {
            (self.cpu_request, self.cpu_limit) = (cpu.clone(), cpu);
        }
        if let Some(memory) = memory.map(ToString::to_string) {
            (self.memory_request, self.memory_limit) = (memory.clone(), memory);
        }
        self
    }
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            cluster: ClusterChoice::default(),
            namespaces: Vec::new(),
            images: Images::default(),
            storage_class: None,
            resources: Resources::default(),
            user_id: 999,
            cluster_domain: "cluster.local".to_owned(),
            scheduling_timeout_seconds: 180,
            ca_dir: DefaultFolder::State.of_this_process(),
            own_secret: None,
        }
    }
}

impl KubernetesConfig {
    /// The settings that it is made of: as keys here, as `TOYGRES_…` in the environment.
    pub const KEYS: [&str; 11] = [
        "kube_context",
        "kube_namespaces",
        "image_repository",
        "images",
        "storage_class",
        "cpu",
        "memory",
        "image_user_id",
        "cluster_domain",
        "kube_secret",
        "scheduling_timeout_seconds",
    ];

    /// From the settings in [`KEYS`](Self::KEYS), as `get` gives them; the default for each that it
    /// doesn't. `KUBECONFIG` is read when the client is made.
    ///
    /// # Errors
    /// Names the key that can't be understood.
    pub fn from_settings(ca_dir: PathBuf, get: &dyn Fn(&'static str) -> Option<String>) -> Result<Self, Invalid> {
        let mut config = Self { ca_dir, ..Self::default() };
        config.cluster.context = get("kube_context");
        for namespace in get("kube_namespaces").iter().flat_map(|list| list.split(',')) {
            let parsed = namespace.trim().parse();
            config.namespaces.push(parsed.map_err(|invalid: Invalid| Invalid { field: "kube_namespaces", ..invalid })?);
        }
        config.images = Images::parse(get("image_repository").as_deref(), get("images").as_deref())?;
        config.storage_class = get("storage_class").map(|name| name.parse::<StorageClass>()).transpose()?.map(String::from);
        let cpu = get("cpu").map(|cpu| cpu.parse()).transpose()?;
        let memory = get("memory").map(|memory| memory.parse()).transpose()?;
        config.resources = Resources::default().with(cpu.as_ref(), memory.as_ref());
        if let Some(id) = get("image_user_id") {
            let id = id.parse().ok().filter(|id| *id > 0);
            let problem = || Invalid::new("image_user_id", "has to be a number above 0: servers don't run as root");
            config.user_id = id.ok_or_else(problem)?;
        }
        if let Some(domain) = get("cluster_domain") {
            config.cluster_domain = domain.parse::<ClusterDomain>()?.into();
        }
        if let Some(seconds) = get("scheduling_timeout_seconds") {
            let in_range = seconds.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
            let problem = || Invalid::new("scheduling_timeout_seconds", "has to be a number from 1 to 3600");
            config.scheduling_timeout_seconds = in_range.ok_or_else(problem)?;
        }
        if let Some(name) = get("kube_secret") {
            OwnSecret::check_name(&name)?;
            config.own_secret = Some(name);
        }
        Ok(config)
    }

    /// From `TOYGRES_KUBE_CONTEXT`, `TOYGRES_KUBE_NAMESPACES`, `TOYGRES_IMAGE_REPOSITORY`,
    /// `TOYGRES_IMAGES`, `TOYGRES_STORAGE_CLASS`, `TOYGRES_CPU`, `TOYGRES_MEMORY`,
    /// `TOYGRES_IMAGE_USER_ID`, `TOYGRES_CLUSTER_DOMAIN`, `TOYGRES_KUBE_SECRET`, `TOYGRES_SCHEDULING_TIMEOUT_SECONDS`, and `TOYGRES_CA_DIR` or
    /// `TOYGRES_STATE_DIR`; the default for each that is unset or empty.
    ///
    /// # Errors
    /// Names the variable that can't be understood.
    pub fn from_environment() -> Result<Self, Failure> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let variable = |key: &str| format!("TOYGRES_{}", key.to_ascii_uppercase());
        let ca_dir = set("TOYGRES_CA_DIR").or_else(|| set("TOYGRES_STATE_DIR")).map(PathBuf::from);
        let ca_dir = ca_dir.unwrap_or_else(|| DefaultFolder::State.of_this_process());
        Self::from_settings(ca_dir, &|key| set(&variable(key))).map_err(|invalid| {
            Failure::permanent(FailureKind::InvalidInput, format!("{}: {}", variable(invalid.field), invalid.problem))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(key: &'static str, value: &str) -> Result<KubernetesConfig, Invalid> {
        KubernetesConfig::from_settings("/ca".into(), &|asked| (asked == key).then(|| value.to_owned()))
    }

    #[test]
    fn every_setting_is_understood_and_checked() {
        assert_eq!(config("", "").unwrap(), KubernetesConfig { ca_dir: "/ca".into(), ..KubernetesConfig::default() });
        assert_eq!(config("cpu", "2").unwrap().resources.cpu_limit, "2");
        assert_eq!(config("memory", "2Gi").unwrap().resources.memory_request, "2Gi");
        assert_eq!(config("kube_namespaces", "a, b").unwrap().namespaces.len(), 2);
        for (key, value) in [
            ("cpu", "many"),
            ("memory", "2"),
            ("kube_namespaces", "a,B"),
            ("images", "13"),
            ("storage_class", "a b"),
            ("image_user_id", "0"),
            ("image_user_id", "x"),
            ("cluster_domain", "a..b"),
            ("kube_secret", "A b"),
            ("scheduling_timeout_seconds", "0"),
        ] {
            assert_eq!(config(key, value).unwrap_err().field, key, "{value:?} was accepted");
        }
    }
}

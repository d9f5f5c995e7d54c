//! What may be chosen about instances on Kubernetes. Everything is checked here, before it gets
//! near a template.

use std::path::PathBuf;

use toygres_models::{Failure, FailureKind, Invalid, Namespace};

use super::images::Images;
use super::own_secret::OwnSecret;
use crate::k8s_client::ClusterChoice;
use crate::platform::local::LocalConfig;

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
    /// The folder with `ca.crt` and `ca.key`, which are made if they aren't there.
    pub ca_dir: PathBuf,
    /// The Secret in the client's own namespace that holds the CA (see
    /// [`OwnSecret`](super::OwnSecret)); only `ca.crt` is then put into [`ca_dir`](Self::ca_dir).
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
    /// That much, guaranteed; the default for what isn't given.
    ///
    /// # Errors
    /// Names the one that isn't a quantity such as `500m` or `2Gi`.
    pub fn guaranteed(cpu: Option<&str>, memory: Option<&str>) -> Result<Self, Invalid> {
        let mut resources = Self::default();
        if let Some(cpu) = cpu {
            let cpu = quantity("cpu", cpu, &["", "m"], "1 or 500m")?;
            (resources.cpu_request, resources.cpu_limit) = (cpu.clone(), cpu);
        }
        if let Some(memory) = memory {
            let memory = quantity("memory", memory, &["Mi", "Gi", "Ti", "M", "G", "T"], "512Mi or 2Gi")?;
            (resources.memory_request, resources.memory_limit) = (memory.clone(), memory);
        }
        Ok(resources)
    }
}

fn quantity(field: &'static str, value: &str, units: &[&str], example: &str) -> Result<String, Invalid> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &value[digits.len()..];
    let is_number = (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    if is_number && units.contains(&unit) {
        return Ok(value.to_owned());
    }
    let shown: String = value.chars().take(40).collect();
    Err(Invalid::new(field, format!("{shown:?} is not an amount that can be used; give one such as {example}")))
}

/// A DNS name in lowercase, as Kubernetes wants names of storage classes and domains.
fn dns_name(field: &'static str, value: &str) -> Result<String, Invalid> {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        plain && !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
    };
    if value.len() <= 253 && value.split('.').all(is_label) {
        return Ok(value.to_owned());
    }
    let shown: String = value.chars().take(40).collect();
    Err(Invalid::new(field, format!("{shown:?} is not a name of lowercase letters, digits, '-' and '.'")))
}

/// The label of a public name, by Azure's rules: 3 to 63 of `a-z0-9-`, a letter first, no `-` last.
pub(super) fn dns_label(value: &str) -> Result<&str, Invalid> {
    let plain = value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let begins = value.starts_with(|c: char| c.is_ascii_lowercase());
    if plain && begins && !value.ends_with('-') && (3..=63).contains(&value.len()) {
        return Ok(value);
    }
    let problem = "has to be 3 to 63 lowercase letters, digits and '-', a letter first and no '-' last";
    Err(Invalid::new("dns_label", problem))
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
            ca_dir: LocalConfig::default_state_dir(),
            own_secret: None,
        }
    }
}

impl KubernetesConfig {
    /// From `TOYGRES_KUBE_CONTEXT`, `TOYGRES_KUBE_NAMESPACES`, `TOYGRES_IMAGE_REPOSITORY`,
    /// `TOYGRES_IMAGES`, `TOYGRES_STORAGE_CLASS`, `TOYGRES_CPU`, `TOYGRES_MEMORY`,
    /// `TOYGRES_IMAGE_USER_ID`, `TOYGRES_CLUSTER_DOMAIN`, `TOYGRES_KUBE_SECRET`, and `TOYGRES_CA_DIR` or
    /// `TOYGRES_STATE_DIR`; the default for each that is unset or empty. `KUBECONFIG` is read when
    /// the client is made.
    ///
    /// # Errors
    /// Names the variable that can't be understood.
    pub fn from_environment() -> Result<Self, Failure> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let in_variable = |name: &'static str| {
            move |invalid: Invalid| Failure::permanent(FailureKind::InvalidInput, format!("{name}: {}", invalid.problem))
        };
        let mut config = Self::default();
        config.cluster.context = set("TOYGRES_KUBE_CONTEXT");
        for namespace in set("TOYGRES_KUBE_NAMESPACES").iter().flat_map(|list| list.split(',')) {
            config.namespaces.push(namespace.trim().parse().map_err(in_variable("TOYGRES_KUBE_NAMESPACES"))?);
        }
        config.images = Images::parse(set("TOYGRES_IMAGE_REPOSITORY").as_deref(), set("TOYGRES_IMAGES").as_deref())
            .map_err(in_variable("TOYGRES_IMAGES"))?;
        if let Some(name) = set("TOYGRES_STORAGE_CLASS") {
            config.storage_class = Some(dns_name("storage_class", &name).map_err(in_variable("TOYGRES_STORAGE_CLASS"))?);
        }
        config.resources = Resources::guaranteed(set("TOYGRES_CPU").as_deref(), set("TOYGRES_MEMORY").as_deref())?;
        if let Some(id) = set("TOYGRES_IMAGE_USER_ID") {
            let id = id.parse().ok().filter(|id| *id > 0);
            let problem = || Invalid::new("user_id", "has to be a number above 0: servers don't run as root");
            config.user_id = id.ok_or_else(problem).map_err(in_variable("TOYGRES_IMAGE_USER_ID"))?;
        }
        if let Some(domain) = set("TOYGRES_CLUSTER_DOMAIN") {
            config.cluster_domain = dns_name("cluster_domain", &domain).map_err(in_variable("TOYGRES_CLUSTER_DOMAIN"))?;
        }
        if let Some(name) = set("TOYGRES_KUBE_SECRET") {
            OwnSecret::check_name(&name).map_err(in_variable("TOYGRES_KUBE_SECRET"))?;
            config.own_secret = Some(name);
        }
        config.ca_dir = set("TOYGRES_CA_DIR").or_else(|| set("TOYGRES_STATE_DIR")).map_or(config.ca_dir, PathBuf::from);
        Ok(config)
    }

    /// With that StorageClass.
    ///
    /// # Errors
    /// If it isn't a name.
    pub fn with_storage_class(mut self, name: &str) -> Result<Self, Invalid> {
        self.storage_class = Some(dns_name("storage_class", name)?);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_amounts_are_amounts() {
        let resources = Resources::guaranteed(Some("500m"), Some("2Gi")).unwrap();
        assert_eq!((resources.cpu_request.as_str(), resources.memory_limit.as_str()), ("500m", "2Gi"));
        for bad in ["", "0", "-1", "1.5.2", "1e3", "m", "1 m", "1\nm", "9999999999", "{}"] {
            assert!(Resources::guaranteed(Some(bad), None).is_err(), "{bad:?} was accepted");
        }
        assert!(Resources::guaranteed(None, Some("2")).is_err(), "two bytes");
    }

    #[test]
    fn names_and_labels_are_checked() {
        let config = KubernetesConfig::default();
        assert!(config.clone().with_storage_class("fast.example").is_ok());
        for bad in ["", "A", "a..b", "a b", "-a", "a:\n b"] {
            assert!(config.clone().with_storage_class(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(dns_label("my-demo1").is_ok());
        for bad in ["", "ab", "1ab", "ab-", "Abc", "a.b.c", &"x".repeat(64)] {
            assert!(dns_label(bad).is_err(), "{bad:?} was accepted");
        }
    }
}

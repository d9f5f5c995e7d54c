//! Values that are typed: checked by their types in `toygres_models` before anything else happens.

use std::collections::BTreeMap;

use toygres_models::{
    Cpu, DatabaseName, DnsLabel, InstanceName, InstanceState, LabelSelector, Labels, Memory, PlatformName, PostgresVersion,
    RoleName, StorageClass, StorageSize,
};

/// A label by itself: whether all of them go together is checked by the server.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("give KEY=VALUE, such as team=a")?;
    let label = (key.to_owned(), value.to_owned());
    Labels::try_from(BTreeMap::from([label.clone()])).map_err(problem)?;
    Ok(label)
}

pub fn label_selector(text: &str) -> Result<LabelSelector, String> {
    text.parse().map_err(problem)
}

pub fn instance_state(text: &str) -> Result<InstanceState, String> {
    text.parse().map_err(problem)
}

pub fn instance_name(text: &str) -> Result<InstanceName, String> {
    text.parse().map_err(problem)
}

pub fn role_name(text: &str) -> Result<RoleName, String> {
    text.parse().map_err(problem)
}

pub fn database_name(text: &str) -> Result<DatabaseName, String> {
    text.parse().map_err(problem)
}

pub fn platform(text: &str) -> Result<PlatformName, String> {
    text.parse().map_err(problem)
}

pub fn dns_label(text: &str) -> Result<DnsLabel, String> {
    text.parse().map_err(problem)
}

pub fn cpu(text: &str) -> Result<Cpu, String> {
    text.parse().map_err(problem)
}

pub fn memory(text: &str) -> Result<Memory, String> {
    text.parse().map_err(problem)
}

pub fn storage_class(text: &str) -> Result<StorageClass, String> {
    text.parse().map_err(problem)
}

pub fn postgres_version(text: &str) -> Result<PostgresVersion, String> {
    text.parse().map_err(problem)
}

pub fn storage_size(text: &str) -> Result<StorageSize, String> {
    let digits = text.strip_suffix("GB").or_else(|| text.strip_suffix("gb")).unwrap_or(text).trim_end();
    let gb: i64 = digits.parse().map_err(|_| "give a whole number of GB, such as 10".to_owned())?;
    StorageSize::try_from(gb).map_err(problem)
}

/// An [`Invalid`](toygres_models::Invalid) without its field: clap names the argument.
pub fn problem(invalid: toygres_models::Invalid) -> String {
    invalid.problem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_have_their_unit() {
        for text in ["10", "10GB", "10 GB", "10gb"] {
            assert_eq!(storage_size(text).unwrap().gb(), 10);
        }
    }
}

//! What PostgreSQL is given of the memory that its server may use. `ALTER SYSTEM` wins over it.

use std::collections::BTreeMap;

/// Settings made from an amount of memory, by PostgreSQL's own advice
/// (<https://www.postgresql.org/docs/current/runtime-config-resource.html#GUC-SHARED-BUFFERS>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sizing(BTreeMap<&'static str, String>);

impl Sizing {
    /// Of a server that has so many MiB for itself.
    pub(crate) fn of(memory_mib: u64) -> Self {
        let megabytes = |amount: u64| format!("{amount}MB");
        Self(BTreeMap::from([
            ("shared_buffers", megabytes((memory_mib / 4).max(16))),
            // What the operating system keeps of files counts, too.
            ("effective_cache_size", megabytes((memory_mib * 3 / 4).max(16))),
            ("maintenance_work_mem", megabytes((memory_mib / 16).clamp(16, 2048))),
            // Each takes about 10 MiB at work.
            ("max_connections", (memory_mib * 100 / 1024).clamp(25, 500).to_string()),
        ]))
    }

    /// Of one of many servers that share a machine: small enough that a hundred of them run.
    pub(crate) fn shared_machine() -> Self {
        Self(BTreeMap::from([("shared_buffers", "64MB".to_owned()), ("max_connections", "100".to_owned())]))
    }

    /// As lines of `postgresql.conf`.
    pub(crate) fn to_conf(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name} = {value}\n")).collect()
    }

    /// By their names.
    pub(crate) fn settings(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_memory_and_stays_within_reason() {
        let of = |memory_mib: u64| Sizing::of(memory_mib).0.into_values().collect::<Vec<_>>();
        assert_eq!(of(1024), ["768MB", "64MB", "100", "256MB"]);
        assert_eq!(of(32 * 1024), ["24576MB", "2048MB", "500", "8192MB"]);
        assert_eq!(of(1), ["16MB", "16MB", "25", "16MB"]);
        assert!(Sizing::of(512).to_conf().contains("shared_buffers = 128MB\n"));
    }
}

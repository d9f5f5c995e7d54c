//! What of the system every server reads: nothing of it is anybody's secret.

use std::path::{Path, PathBuf};

use crate::platform::local::files::names_in;

/// Programs, libraries, time zones and locales.
pub(super) const PROGRAMS: [&str; 10] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/home/linuxbrew/.linuxbrew"];

/// What libraries read: where others of them are, whose name has which id or address, which CAs are trusted, and how much
/// memory and how many processors there are.
pub(super) const SETTINGS: [&str; 45] = [
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/crypto-policies",
    "/etc/debian_version",
    "/etc/default/locale",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/gss",
    "/etc/host.conf",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/krb5.conf",
    "/etc/krb5.conf.d",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/locale.alias",
    "/etc/locale.conf",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/postgresql-common",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
    "/proc/cpuinfo",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/sys/kernel",
    "/proc/sys/vm",
    // The other file of the name servers, which is replaced as networks come and go.
    "/run/systemd/resolve",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm",
];

/// Without /dev/shm, a terminal, and whatever else a machine has.
pub(super) const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// The folders of an installation, which can be anywhere: its programs, its libraries, and what PostgreSQL calls its share.
/// Nothing else beside them, as that can be somebody's home.
pub(super) fn installation(bin_dir: &Path) -> Vec<PathBuf> {
    let Some(prefix) = bin_dir.parent().filter(|prefix| prefix.parent().is_some()) else { return vec![bin_dir.to_owned()] };
    let mut folders = vec![bin_dir.to_owned(), prefix.join("lib"), prefix.join("lib64")];
    let share = prefix.join("share");
    if share.join("postgres.bki").exists() {
        folders.push(share);
    } else {
        let names = names_in(&share).unwrap_or_default();
        let is_its = |name: &String| name.starts_with("postgres") || name.starts_with("pgsql");
        folders.extend(names.iter().filter(|name| is_its(name)).map(|name| share.join(name)));
    }
    folders
}

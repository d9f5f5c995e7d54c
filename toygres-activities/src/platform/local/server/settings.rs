//! The configuration files that toygres gives a server.
//!
//! They are written again at every start, so what a person wants otherwise goes through
//! `ALTER SYSTEM`, which wins over `toygres.conf`. How toygres itself finds the server, its port, its
//! socket's folder and its log, stands in the command line, which wins over everything.

use std::fmt::Write;
use std::path::Path;

use crate::platform::local::account::Account;
use crate::platform::local::logs::files::{ServerLog, file_name};
use crate::server_log::PREFIX;

/// The file that `postgresql.conf` includes.
pub(in crate::platform::local) const CONF_FILE: &str = "toygres.conf";
/// What is added to `postgresql.conf` once, when a data directory is made.
pub(in crate::platform::local) const INCLUDE: &str =
    "\n# Written by toygres at every start; ALTER SYSTEM wins over it.\ninclude 'toygres.conf'\n";

/// What a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::platform::local) enum Role {
    /// An instance: TLS on loopback, and the socket.
    Instance,
    /// The control database: the socket only.
    Control,
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A folder's path as an element of a list setting.
fn list_element(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('"', "\"\""))
}

/// What stands in the command line of every server, besides its port.
pub(in crate::platform::local) fn arguments(socket_dir: &Path, log: &ServerLog) -> Vec<String> {
    vec![
        format!("unix_socket_directories={}", list_element(socket_dir)),
        format!("log_line_prefix={PREFIX}"),
        "log_timezone=UTC".into(),
        "lc_messages=C".into(),
        "log_destination=stderr".into(),
        "logging_collector=on".into(),
        format!("log_directory={}", log.folder().display()),
        "log_rotation_age=0".into(),
        "log_rotation_size=0".into(),
    ]
}

/// `toygres.conf` of the server whose data directory is in `home`, and which writes that file of its log.
pub(in crate::platform::local) fn conf(role: Role, major: u16, label: &str, home: &Path, log_file: u64) -> String {
    // cluster_name holds 63 bytes; names are ASCII.
    let cluster_name: String = label.chars().take(63).collect();
    let mut text = String::new();
    let mut set = |name: &str, value: &str| {
        let _ = writeln!(text, "{name} = {value}");
    };
    set("cluster_name", &quoted(&cluster_name));
    set("unix_socket_permissions", "0700");
    set("password_encryption", "'scram-sha-256'");
    set("log_filename", &quoted(&file_name(log_file)));
    // Many small servers on one machine: fresh ones take 39 MB of disk, not 100.
    set("min_wal_size", "'32MB'");
    if cfg!(target_os = "linux") {
        // A start after a crash syncs one file system instead of opening a thousand files.
        set("recovery_init_sync_method", "'syncfs'");
    }
    match role {
        Role::Instance => {
            set("listen_addresses", "'127.0.0.1'");
            set("ssl", "on");
            let file = |name: &str| quoted(&home.join(name).display().to_string());
            set("ssl_cert_file", &file(super::tls::CERTIFICATE_FILE));
            set("ssl_key_file", &file(super::tls::KEY_FILE));
            set("ssl_min_protocol_version", "'TLSv1.2'");
            set("max_wal_size", "'256MB'");
        }
        Role::Control => {
            set("listen_addresses", "''");
            set("ssl", "off");
            set("max_connections", "60");
            set("shared_buffers", "'16MB'");
            set("max_wal_size", "'128MB'");
            set("wal_level", "'minimal'");
            set("max_wal_senders", "0");
            set("jit", "off");
            set("max_parallel_workers_per_gather", "0");
            if major >= 18 {
                // Without three processes that would only wait.
                set("io_method", "'sync'");
            }
        }
    }
    text
}

/// `pg_hba.conf`: the socket for us, TLS with a password for everybody else, and nothing else.
pub(in crate::platform::local) fn hba(role: Role) -> String {
    let mut text = String::from("# Written by toygres at every start.\nlocal   all all     peer map=toygres\n");
    if role == Role::Instance {
        text.push_str("hostssl all all all scram-sha-256\n");
    }
    text
}

/// `pg_ident.conf`: who may be `postgres` over the socket.
pub(in crate::platform::local) fn ident(account: &Account) -> String {
    let mut names = vec![account.own_name.as_str(), account.name.as_str()];
    names.dedup();
    let mut text = String::from("# Written by toygres at every start.\n");
    for name in names {
        let _ = writeln!(text, "toygres \"{name}\" postgres");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_takes_nothing_in_plain_text() {
        let hba = hba(Role::Instance);
        let kinds: Vec<_> =
            hba.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_whitespace().next()).collect();
        assert!(kinds.iter().all(|kind| ["local", "hostssl"].contains(kind)), "{hba}");
    }

    #[test]
    fn the_control_database_has_no_network() {
        let conf = |major| conf(Role::Control, major, "control", Path::new("/state/control"), 1);
        assert!(conf(18).contains("listen_addresses = ''"));
        assert!(!hba(Role::Control).contains("host"));
        assert!(!conf(17).contains("io_method"));
    }

    #[test]
    fn odd_paths_are_quoted() {
        assert_eq!(list_element(Path::new("/a b,\"c")), "\"/a b,\"\"c\"");
        let conf = conf(Role::Instance, 15, "it's", Path::new(r"/o'clock\n"), 1);
        assert!(conf.contains("cluster_name = 'it''s'"));
        assert!(conf.contains(r"ssl_key_file = '/o''clock\\n/server.key'"), "{conf}");
    }

    #[test]
    fn root_and_the_run_as_user_are_both_let_in() {
        let account = Account { name: "toygres".into(), uid: 1, gid: 1, chosen: "", own_name: "root".into(), switches: true };
        assert!(ident(&account).contains("toygres \"root\" postgres\ntoygres \"toygres\" postgres\n"));
    }
}

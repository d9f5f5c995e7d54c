//! The configuration files that toygres gives a server.
//!
//! They are written again at every start, beside the data directory, where the server can't write. `toygres.conf` includes
//! the data directory's own `postgresql.conf` first; what a person wants otherwise goes through `ALTER SYSTEM`, which wins
//! over both. What decides who reaches the server, and how toygres finds it and its log, stands in the command line, which
//! wins over everything.

use std::fmt::Write;
use std::path::Path;

use super::Surroundings;
use crate::platform::local::logs::files::{ServerLog, file_name};
use crate::platform::session::TOYGRES;
use crate::platform::sizing::Sizing;
use crate::server_log::PREFIX;

/// Read in place of the data directory's `postgresql.conf`, which it includes.
pub(in crate::platform::local) const CONF_FILE: &str = "toygres.conf";
pub(in crate::platform::local) const HBA_FILE: &str = "pg_hba.conf";
/// Included by it: the libraries that the server loads when it starts. A file of its own, since it depends on the build of
/// PostgreSQL, which is known when a server is started and not when its configuration is written again later.
pub(in crate::platform::local) const PRELOAD_FILE: &str = "preload.conf";
/// What owners may ask for and has to be loaded at the start.
const PRELOADED: &str = "pg_stat_statements";

/// What a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::platform::local) enum Role {
    /// An instance: TLS on loopback, and no socket.
    Instance,
    /// The control database: a socket, and no network.
    Control,
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A folder's path as an element of a list setting.
fn list_element(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('"', "\"\""))
}

/// What stands in the command line of a server, besides its port.
pub(in crate::platform::local) fn arguments(
    role: Role,
    surroundings: &Surroundings,
    home: &Path,
    log: &ServerLog,
) -> Vec<String> {
    let file = |setting: &str, name: &str| format!("{setting}={}", home.join(name).display());
    let mut arguments = match role {
        Role::Instance => vec![
            "unix_socket_directories=".into(),
            "listen_addresses=127.0.0.1".into(),
            "ssl=on".into(),
            "ssl_min_protocol_version=TLSv1.2".into(),
            file("ssl_cert_file", super::tls::CERTIFICATE_FILE),
            file("ssl_key_file", super::tls::KEY_FILE),
            format!("ssl_ca_file={}", surroundings.way_in.clients().certificate_path().display()),
        ],
        Role::Control => vec![
            format!("unix_socket_directories={}", list_element(&surroundings.socket_dir)),
            "listen_addresses=".into(),
            "ssl=off".into(),
        ],
    };
    arguments.extend([
        file("config_file", CONF_FILE),
        file("hba_file", HBA_FILE),
        "unix_socket_permissions=0700".into(),
        // Files in the data directory, though a busy system may write them to the disk: in /dev/shm, which all share, those of
        // a killed server would be left, and others of the same user could read them.
        "dynamic_shared_memory_type=mmap".into(),
        "password_encryption=scram-sha-256".into(),
        format!("log_line_prefix={PREFIX}"),
        "log_timezone=UTC".into(),
        "lc_messages=C".into(),
        "log_destination=stderr".into(),
        "logging_collector=on".into(),
        format!("log_directory={}", log.folder().display()),
        "log_rotation_age=0".into(),
        "log_rotation_size=0".into(),
    ]);
    arguments
}

/// `toygres.conf` of the server whose data directory is in `home`, and which writes that file of its log.
pub(in crate::platform::local) fn conf(role: Role, major: u16, label: &str, home: &Path, log_file: u64) -> String {
    // cluster_name holds 63 bytes; names are ASCII.
    let cluster_name: String = label.chars().take(63).collect();
    let mut text = String::from("# Written by toygres at every start; ALTER SYSTEM wins over it.\n");
    let own = home.join("data/postgresql.conf");
    let _ = writeln!(text, "include_if_exists {}", quoted(&own.display().to_string()));
    let mut set = |name: &str, value: &str| {
        let _ = writeln!(text, "{name} = {value}");
    };
    set("cluster_name", &quoted(&cluster_name));
    set("log_filename", &quoted(&file_name(log_file)));
    // Many small servers on one machine: fresh ones take 39 MB of disk, not 100.
    set("min_wal_size", "'32MB'");
    if cfg!(target_os = "linux") {
        // A start after a crash syncs one file system instead of opening a thousand files.
        set("recovery_init_sync_method", "'syncfs'");
    }
    // The same wherever the server was started; by itself initdb takes the machine's.
    set("timezone", "'UTC'");
    // As in the command line: a reload complains where the file that initdb wrote says otherwise.
    set("dynamic_shared_memory_type", "'mmap'");
    // Who connects and says nothing has a place for no longer.
    set("authentication_timeout", "'15s'");
    match role {
        Role::Instance => {
            set("max_wal_size", "'256MB'");
            let _ = writeln!(text, "include_if_exists {}", quoted(&home.join(PRELOAD_FILE).display().to_string()));
            text.push_str(&Sizing::shared_machine().to_conf());
        }
        Role::Control => {
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

/// `preload.conf` of a server whose programs are in `bin_dir`.
pub(in crate::platform::local) fn preload(bin_dir: &Path) -> String {
    // Debian's builds have one folder, others have the other.
    let folders = [bin_dir.join("../lib"), bin_dir.join("../lib/postgresql")];
    let suffix = std::env::consts::DLL_SUFFIX;
    let has = |folder: &std::path::PathBuf| folder.join(format!("{PRELOADED}{suffix}")).exists();
    let line = if folders.iter().any(has) { format!("shared_preload_libraries = '{PRELOADED}'\n") } else { String::new() };
    format!("# Written by toygres at every start; ALTER SYSTEM wins over it.\n{line}")
}

/// `pg_hba.conf`: toygres by its certificate and by nothing else, everybody else by password over TLS. To the control
/// database, a password over the socket.
pub(in crate::platform::local) fn hba(role: Role) -> String {
    let rules = match role {
        Role::Instance => format!(
            "hostssl all,replication {TOYGRES} all cert\n\
             host    all,replication {TOYGRES} all reject\n\
             hostssl all,replication all     all scram-sha-256\n"
        ),
        Role::Control => "local   all all     scram-sha-256\n".to_owned(),
    };
    format!("# Written by toygres at every start.\n{rules}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_takes_nothing_in_plain_text_and_toygres_by_certificate_alone() {
        let rules: Vec<Vec<String>> = hba(Role::Instance)
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect();
        assert!(rules.iter().all(|rule| rule[0] == "hostssl" || rule[4] == "reject"), "{rules:?}");
        let toygres: Vec<_> = rules.iter().take_while(|rule| rule[2] == TOYGRES).map(|rule| rule[4].as_str()).collect();
        assert_eq!(toygres, ["cert", "reject"]);
    }

    #[test]
    fn the_control_database_has_no_network_and_trusts_nobody() {
        assert_eq!(hba(Role::Control).lines().nth(1), Some("local   all all     scram-sha-256"));
        assert!(!conf(Role::Control, 17, "control", Path::new("/state/control"), 1).contains("io_method"));
    }

    #[test]
    fn a_library_is_loaded_only_where_the_build_has_it() {
        let build = tempfile::tempdir().unwrap();
        let bin_dir = build.path().join("bin");
        std::fs::create_dir_all(&bin_dir).unwrap();
        assert!(!preload(&bin_dir).contains("shared_preload_libraries"));
        std::fs::create_dir_all(build.path().join("lib/postgresql")).unwrap();
        let library = format!("lib/postgresql/pg_stat_statements{}", std::env::consts::DLL_SUFFIX);
        std::fs::write(build.path().join(library), "").unwrap();
        assert!(preload(&bin_dir).contains("shared_preload_libraries = 'pg_stat_statements'\n"));
    }

    #[test]
    fn odd_paths_are_quoted() {
        assert_eq!(list_element(Path::new("/a b,\"c")), "\"/a b,\"\"c\"");
        let conf = conf(Role::Instance, 15, "it's", Path::new(r"/o'clock\n"), 1);
        assert!(conf.contains("cluster_name = 'it''s'"));
        assert!(conf.contains(r"include_if_exists '/o''clock\\n/data/postgresql.conf'"), "{conf}");
    }
}

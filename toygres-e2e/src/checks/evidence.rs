//! What one needs to see when a test failed.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LOG_LINES: usize = 60;
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// The ends of all logs, the operations with their steps, the events, and the files of instances.
pub fn gather(state_dir: &Path) -> String {
    let mut text = format!("\n==== evidence of {}\n", state_dir.display());
    let logs = ["server.log", "server-0.log", "server.stderr"].map(|log| state_dir.join(log));
    for log in logs.iter().chain(&files(&state_dir.join("control/log"))) {
        add_tail(&mut text, log);
    }
    for namespace in folders(&state_dir.join("instances")) {
        for instance in folders(&namespace) {
            for log in files(&instance.join("log")) {
                add_tail(&mut text, &log);
            }
            let files: Vec<_> =
                folders(&instance).iter().chain(&files(&instance)).map(|path| path.display().to_string()).collect();
            let _ = writeln!(text, "-- holds {}", files.join(" "));
        }
    }
    for query in [
        "SELECT name, state, spec, generation, observed_generation, status FROM toygres.instances ORDER BY created_at DESC LIMIT 20",
        "SELECT o.kind, o.summary, o.reverting, o.instance_name, o.state, s.name, s.state, s.attempts, s.error FROM toygres.operations o \
         LEFT JOIN toygres.operation_steps s ON s.operation_id = o.id ORDER BY o.created_at DESC, s.position LIMIT 60",
        "SELECT created_at, instance_name, kind, message FROM toygres.events ORDER BY id DESC LIMIT 30",
    ] {
        let _ = writeln!(text, "-- {query}\n{}", ask(state_dir, query));
    }
    text.push_str("==== end of the evidence\n");
    text
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn folders(folder: &Path) -> Vec<std::path::PathBuf> {
    entries(folder).into_iter().filter(|path| path.is_dir()).collect()
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    entries(folder).into_iter().filter(|path| !path.is_dir()).collect()
}

fn add_tail(text: &mut String, path: &Path) {
    let Ok(log) = std::fs::read(path) else { return };
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
    let _ = writeln!(text, "-- {}\n{}", path.display(), tail.join("\n"));
}

/// Asks the control database, if psql is there and it answers at once.
fn ask(state_dir: &Path, query: &str) -> String {
    let child = Command::new("psql")
        .args(["-X", "-w", "-U", "postgres", "-d", "postgres", "-c", query, "-h"])
        .arg(state_dir.join("run"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return "(no psql)".into() };
    let began = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if began.elapsed() > COMMAND_LIMIT {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    match child.wait_with_output() {
        Ok(output) => format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        Err(error) => error.to_string(),
    }
}

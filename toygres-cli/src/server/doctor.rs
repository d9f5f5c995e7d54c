//! `toygres doctor`: what is missing on this machine, and how to get it. Needs no server.

use std::process::ExitCode;

use serde::Serialize;
use toygres_activities::platform::Diagnosis;
use toygres_activities::platform::{kubernetes, local};
use toygres_models::PlatformName;

use crate::error::Outcome;
use crate::output::progress::Progress;
use crate::output::ui::Ui;
use crate::session::{self, local_server};
use crate::settings::Settings;

/// What toygres can do without: psql for everything but `toygres psql`, the archives where
/// PostgreSQL is at hand (and where it isn't, that is a finding of its own), and confinement of people
/// who are trusted.
const NOT_NEEDED: &[&str] = &["psql", "archives", "landlock", "user ids"];

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    #[serde(flatten)]
    diagnosis: Diagnosis,
    /// Whether toygres can't do its work without it.
    needed: bool,
}

/// The platform that a create without a word about it takes.
fn platform(settings: &Settings) -> PlatformName {
    settings.platform.or(settings.server.platforms.first().copied()).unwrap_or_default()
}

/// What there is of a cluster, where someone means one: by the platform, a context, or a kubeconfig.
async fn cluster(settings: &Settings) -> Vec<Diagnosis> {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_meant = platform(settings) == PlatformName::Kubernetes
        || settings.server.kubernetes.cluster.context.is_some()
        || is_set("KUBECONFIG")
        || is_set("KUBERNETES_SERVICE_HOST");
    if !is_meant || !settings.server.platforms.contains(&PlatformName::Kubernetes) {
        return Vec::new();
    }
    kubernetes::diagnose(&settings.server.kubernetes, &settings.namespace_or_default()).await
}

pub async fn run(settings: &Settings, ui: &Ui) -> Outcome {
    let mut progress = Progress::begin(ui);
    if ui.live {
        progress.busy("looking at this machine and the cluster");
    }
    let local = settings.server.local_config();
    let (server, machine, cluster) = tokio::join!(server(settings), local::diagnose(&local), cluster(settings));
    progress.clear();
    let needs_cluster = platform(settings) == PlatformName::Kubernetes;
    let machine = machine.into_iter().map(|diagnosis| {
        let needed = !needs_cluster && !NOT_NEEDED.contains(&diagnosis.name);
        Finding { diagnosis, needed }
    });
    let needed = |diagnosis| Finding { diagnosis, needed: true };
    let findings: Vec<Finding> = std::iter::once(needed(config(settings)))
        .chain(machine)
        .chain(cluster.into_iter().map(|diagnosis| Finding { diagnosis, needed: needs_cluster }))
        .chain([needed(server)])
        .collect();
    if ui.is_for_people() {
        ui.print(text(ui, &findings))?
    } else {
        ui.print_record(&findings)?
    }
    Ok(ExitCode::from(u8::from(missing(&findings) > 0)))
}

fn missing(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.needed && !finding.diagnosis.ok).count()
}

fn config(settings: &Settings) -> Diagnosis {
    let message = match &settings.config_file {
        Some(path) => path.display().to_string(),
        None => "none; every setting is its default, a flag or an environment variable".into(),
    };
    Diagnosis { name: "config file", ok: true, message, remedy: None }
}

async fn server(settings: &Settings) -> Diagnosis {
    let remedy = || Some(format!("read its log: {}", settings.server.state().log_path().display()));
    let (ok, message) = match &settings.url {
        Some(url) => match session::client(settings, url, None) {
            Ok(client) => client
                .readiness()
                .await
                .map_or_else(|error| (false, error.to_string()), |health| (true, format!("toygres {} at {url}", health.version))),
            Err(error) => (false, error.message),
        },
        None => match local_server::find(settings).await {
            Ok(Some(server)) => {
                let name = format!("toygres {} at {}{}", server.version, server.url, local_server::process(server.pid));
                match local_server::client(settings, None) {
                    Ok(client) => match client.readiness().await {
                        Ok(_) => (true, name),
                        Err(error) => (false, format!("{name} isn't ready: {error}")),
                    },
                    Err(error) => (false, error.message),
                }
            }
            Ok(None) => (true, "not running; the first command that needs it starts it".into()),
            Err(error) => (false, error.message),
        },
    };
    Diagnosis { name: "server", ok, message, remedy: remedy().filter(|_| !ok && settings.url.is_none()) }
}

fn text(ui: &Ui, findings: &[Finding]) -> String {
    let style = ui.out;
    let width = findings.iter().map(|finding| finding.diagnosis.name.len()).max().unwrap_or_default();
    let mut lines = Vec::new();
    for Finding { diagnosis, needed } in findings {
        let mark = match (diagnosis.ok, needed) {
            (true, _) => style.green("✓"),
            (false, true) => style.red("✗"),
            (false, false) => style.yellow("!"),
        };
        lines.push(format!("{mark} {:width$}  {}", diagnosis.name, diagnosis.message));
        lines.extend(diagnosis.remedy.iter().map(|remedy| format!("  {:width$}  {} {remedy}", "", style.cyan("→"))));
    }
    lines.push(String::new());
    lines.push(match missing(findings) {
        0 => "Everything that toygres needs is here.".into(),
        1 => style.red("One thing that toygres needs is missing."),
        more => style.red(format_args!("{more} things that toygres needs are missing.")),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn what_can_be_done_without_is_no_failure() {
        let finding = |name, ok: bool, needed| {
            let remedy = (!ok).then(|| "r".into());
            Finding { diagnosis: Diagnosis { name, ok, message: "m".into(), remedy }, needed }
        };
        let findings = [finding("psql", false, false), finding("user", true, true)];
        assert_eq!(missing(&findings), 0);
        assert_eq!(
            text(&testing::ui(), &findings),
            "! psql  m\n        → r\n✓ user  m\n\nEverything that toygres needs is here."
        );
        assert_eq!(missing(&[finding("postgresql", false, true)]), 1);
    }
}

//! `toygres diff`: what `apply` would change, as a unified diff of the documents.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value};
use similar::{ChangeTag, TextDiff};
use toygres_client::Client;
use toygres_client::resources::{InstanceManifest, Plan};
use toygres_models::InstanceName;

use super::apply::{effects, plans, refusals};
use super::documents::{self, Document};
use crate::error::{CliError, Outcome};
use crate::output::ui::{Style, Ui};
use crate::session::Session;
use crate::settings::Settings;
use crate::values::instance_name;

#[derive(Debug, Args)]
#[command(override_usage = "toygres diff <NAME>\n       toygres diff -f <FILE>")]
#[command(after_help = "\
Examples:
  toygres diff demo                what others changed of the instance on its platform
  toygres diff -f instances.yaml   what apply would change
  toygres diff -f instances.yaml || echo 'apply would change something'

Nothing is changed. Of an instance's objects on Kubernetes, what others add beside toygres's fields is no difference. What apply
would refuse is shown, too, and told on standard error.
Exit status: 0 no difference, 1 differences, 2 wrong usage or a failure.")]
pub struct Diff {
    /// The instance that is compared with what is there of it
    #[arg(value_parser = instance_name, required_unless_present = "files", conflicts_with = "files")]
    pub name: Option<InstanceName>,

    /// File with instances; `-` is standard input. May be given several times
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub files: Vec<String>,
}

pub async fn run(arguments: &Diff, settings: &Settings, ui: &Ui) -> Outcome {
    if let Some(name) = &arguments.name {
        return drift(name, &mut Session::open(settings, ui).await?).await;
    }
    let documents = documents::read(&arguments.files, &settings.namespace_or_default())?;
    let mut session = Session::open(settings, ui).await?;
    let plans = plans(&session, &documents).await?;
    let mut exit_status = 0;
    for (document, plan) in documents.iter().zip(&plans) {
        for refusal in refusals(document, plan) {
            ui.warn(format_args!("{refusal}"));
            exit_status = 1;
        }
        let live = match plan.generation {
            Some(_) => {
                let key = &document.key;
                let instance = session.call(async |client: &Client| client.instance(key).await).await?;
                Some(InstanceManifest::from(&instance))
            }
            None => None,
        };
        if let Some(text) = unified(ui.out, document, live.as_ref(), plan)? {
            exit_status = 1;
            ui.print(text.trim_end())?;
        }
        for effect in effects(plan) {
            exit_status = 1;
            ui.note(format_args!("{}: {effect}", document.key));
        }
    }
    Ok(ExitCode::from(exit_status))
}

/// What of an instance isn't as its spec has it.
async fn drift(name: &InstanceName, session: &mut Session<'_>) -> Outcome {
    let (ui, key) = (session.ui, session.key(name.clone()));
    let told = session.call(async |client: &Client| client.instance_drift(&key).await).await?;
    if !ui.is_for_people() {
        ui.print_record(&told)?;
    }
    for drift in &told.items {
        if ui.is_for_people() {
            ui.print(drift)?;
        }
    }
    if let Some(reason) = &told.not_compared {
        ui.warn(format_args!("{key}: {reason}"));
    }
    if told.items.is_empty() && told.not_compared.is_none() {
        ui.note(format_args!("{key} is as its spec has it."));
    }
    Ok(ExitCode::from(match (told.items.is_empty(), &told.not_compared) {
        (false, _) => 1,
        (true, Some(_)) => 2,
        (true, None) => 0,
    }))
}

/// `None` if there is no difference.
fn unified(style: Style, document: &Document, live: Option<&InstanceManifest>, plan: &Plan) -> Result<Option<String>, CliError> {
    let before = live.map(|live| documents::to_yaml(std::slice::from_ref(live))).transpose()?.unwrap_or_default();
    let after = documents::to_yaml(&[wanted(document, live, plan)?])?;
    let diff = TextDiff::from_lines(&before, &after);
    let mut text = String::new();
    for hunk in diff.unified_diff().context_radius(3).iter_hunks() {
        text.push_str(&format!("{}\n", style.cyan(hunk.header())));
        for change in hunk.iter_changes() {
            let line = format!("{}{}", change.tag(), change.value().trim_end_matches('\n'));
            let line = match change.tag() {
                ChangeTag::Delete => style.red(line),
                ChangeTag::Insert => style.green(line),
                ChangeTag::Equal => line,
            };
            text.push_str(&format!("{line}\n"));
        }
    }
    if text.is_empty() {
        return Ok(None);
    }
    let key = &document.key;
    let live = if live.is_some() { format!("{key} (live)") } else { "/dev/null".into() };
    Ok(Some(format!(
        "{}\n{}\n{text}",
        style.bold(format_args!("--- {live}")),
        style.bold(format_args!("+++ {key} ({})", document.origin.file()))
    )))
}

/// The live document with what the plan would have different.
fn wanted(document: &Document, live: Option<&InstanceManifest>, plan: &Plan) -> Result<InstanceManifest, CliError> {
    let unreadable = |error: serde_json::Error| CliError::failed(format!("the server's plan can't be shown: {error}"));
    let named = InstanceManifest {
        namespace: Some(document.key.namespace.to_string()),
        ..InstanceManifest::of(document.key.name.to_string())
    };
    let mut fields: Map<String, Value> = match serde_json::to_value(live.unwrap_or(&named)).map_err(unreadable)? {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for change in plan.changes.iter().chain(&plan.refused) {
        fields.insert(change.field.clone(), change.to.clone());
    }
    serde_json::from_value(Value::Object(fields)).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::instances::documents;
    use crate::testing;

    fn shown(plan: Value, live: bool) -> Option<String> {
        let live = live.then(|| InstanceManifest::from(&testing::instance("demo")));
        let plan = serde_json::from_value(plan).unwrap();
        unified(testing::ui().out, &documents::tests::good("name: demo\n")[0], live.as_ref(), &plan).unwrap()
    }

    #[test]
    fn what_differs_shows_and_nothing_else() {
        let none = json!({ "action": "none", "changes": [], "refused": [], "generation": 1 });
        assert_eq!(shown(none, true), None);
        let update = json!({ "action": "update", "refused": [], "generation": 1,
            "changes": [{ "field": "labels", "from": {}, "to": { "team": "a" }, "effect": "record", "can_revert": true }] });
        let text = shown(update, true).unwrap();
        assert!(text.starts_with("--- default/demo (live)\n+++ default/demo (f.yaml)\n@@ "), "{text}");
        assert!(text.contains("\n-labels: {}\n+labels:\n+  team: a\n"), "{text}");
    }

    #[test]
    fn a_new_instance_is_all_new_and_a_password_hidden() {
        let create = json!({ "action": "create", "refused": [], "changes": [
            { "field": "storage_size_gb", "from": null, "to": 5, "effect": "never", "can_revert": true }, { "field": "password", "from": null, "to": "(hidden)", "effect": "never", "can_revert": false }] });
        let text = shown(create, false).unwrap();
        assert_eq!(
            text,
            "--- /dev/null\n+++ default/demo (f.yaml)\n@@ -0,0 +1,4 @@\n+name: demo\n+namespace: default\n+storage_size_gb: 5\n\
             +password: (hidden)\n"
        );
    }
}

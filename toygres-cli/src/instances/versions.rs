//! `toygres versions`.

use std::process::ExitCode;

use comfy_table::{Cell, Color};
use toygres_client::Client;
use toygres_models::{OfferedVersion, PlatformName};

use crate::error::Outcome;
use crate::output::display;
use crate::output::ui::Ui;
use crate::session::Session;

pub async fn run(platform: Option<PlatformName>, session: &mut Session<'_>) -> Outcome {
    let platform = platform.or(session.settings.platform);
    let versions = session.call(async |client: &Client| client.versions(platform).await).await?.items;
    let ui = session.ui;
    if ui.is_for_people() {
        ui.print(versions_table(ui, &versions))?
    } else {
        ui.print_record(&versions)?
    }
    Ok(ExitCode::SUCCESS)
}

fn versions_table(ui: &Ui, versions: &[OfferedVersion]) -> String {
    let row = |version: &OfferedVersion| {
        let at_hand =
            if version.at_hand { display::coloured(ui.out, "yes", Color::DarkGreen) } else { Cell::new("no, will be fetched") };
        let default = if version.default { "default" } else { "" };
        vec![Cell::new(version.postgres_version), at_hand, Cell::new(&version.source), Cell::new(default)]
    };
    display::table(ui, &["VERSION", "AT HAND", "SOURCE", ""], &[], versions.iter().map(row).collect())
}

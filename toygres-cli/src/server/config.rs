//! `toygres server config`.

use std::process::ExitCode;

use comfy_table::Cell;

use crate::error::Outcome;
use crate::output::display;
use crate::output::ui::Ui;
use crate::settings::Settings;

/// Prints what a server that is started here is told. Contexts aren't settings.
pub fn run(settings: &Settings, ui: &Ui) -> Outcome {
    if !ui.is_for_people() {
        ui.print_record(&settings.shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = settings.shown.iter().map(|setting| {
        vec![Cell::new(&setting.key), Cell::new(setting.value.as_deref().unwrap_or("-")), Cell::new(&setting.source)]
    });
    ui.print(display::table(ui, &["SETTING", "VALUE", "FROM"], &[], rows.collect()))?;
    if let Some(file) = &settings.config_file {
        ui.note(format_args!("The config file is {}.", file.display()));
    }
    Ok(ExitCode::SUCCESS)
}

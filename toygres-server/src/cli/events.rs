//! `toygres events`.

use std::process::ExitCode;

use comfy_table::Cell;
use toygres_models::store::Event;

use super::args::Events;
use super::display::{self, moment};
use super::error::Outcome;
use super::session::Session;
use super::ui::Ui;
use crate::client::{self, Client};

pub async fn run(arguments: Events, session: &mut Session<'_>) -> Outcome {
    let key = session.key(arguments.name);
    let mut events = session
        .call(async |client: &Client| client::all_pages(None, async |page: &_| client.events(&key, page).await).await)
        .await?;
    let too_many = events.len().saturating_sub(arguments.limit as usize);
    events.drain(..too_many);
    let ui = session.ui;
    if !ui.is_for_people() {
        ui.print_record(&events)?;
    } else if events.is_empty() {
        ui.note(format_args!("Nothing has happened to {} yet.", key.name));
    } else {
        ui.print(events_table(ui, &events))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn events_table(ui: &Ui, events: &[Event]) -> String {
    let row = |event: &Event| {
        let message = if ui.out.is_on { event.message.clone() } else { event.message.replace('\n', " ") };
        vec![Cell::new(moment(event.created_at)), Cell::new(&event.kind), Cell::new(message), Cell::new(&event.cause)]
    };
    display::table(ui, &["TIME", "EVENT", "MESSAGE", "CAUSE"], &["MESSAGE", "CAUSE"], events.iter().map(row).collect())
}

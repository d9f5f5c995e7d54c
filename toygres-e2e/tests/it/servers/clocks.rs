//! Servers whose clocks are apart. They share work by leases that each reads by its own clock, so one whose
//! clock is off doesn't start, takes nothing up, and says that it isn't ready.

use std::path::Path;

use anyhow::Result;
use serde_json::json;
use toygres_e2e::place::temporary_folder;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Toygres, eventually, required_or_skip, store_database};

/// Gives a process a clock of its own (Debian's package `faketime`).
const LIBRARIES: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"];

/// The same program, its clock as far from the machine's as the file `shift` says.
fn with_clock(toygres: Toygres, shift: &Path) -> Result<Option<Toygres>> {
    let Some(library) = LIBRARIES.iter().find(|library| Path::new(library).exists()) else {
        required_or_skip("the package faketime is not installed")?;
        return Ok(None);
    };
    let shifted = toygres
        .with("LD_PRELOAD", *library)
        .with("FAKETIME_TIMESTAMP_FILE", shift)
        // Looked at by every call, and timeouts stay what they are.
        .with("FAKETIME_NO_CACHE", "1")
        .with("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    Ok(Some(shifted))
}

#[tokio::test]
async fn a_server_whose_clock_is_off_is_not_ready_and_does_not_start() {
    let Some(database) = store_database::empty_database().await.unwrap() else { return };
    let machine = || Toygres::new().unwrap().with("TOYGRES_DATABASE_URL", &database.url);
    let here = machine();
    let folder = temporary_folder().unwrap();
    let shift = folder.path().join("shift");
    std::fs::write(&shift, "+0").unwrap();
    let Some(there) = with_clock(machine(), &shift).unwrap() else { return };
    let (first, second) = (here.serve().await.unwrap(), there.serve().await.unwrap());
    first.create("here").await.unwrap();
    second.create("there").await.unwrap();

    for (shift_by, seconds, direction) in [("+1h", 3600.0, "ahead of"), ("-90s", 90.0, "behind")] {
        std::fs::write(&shift, shift_by).unwrap();
        let detail = second.get("/readyz").await.unwrap().expect_problem(503).unwrap();
        let told: f64 = detail.split_once("clock is ").unwrap().1.split_once(" s ").unwrap().0.parse().unwrap();
        // At least so much: what the answer took is left out.
        assert!((seconds - 10.0..=seconds).contains(&told) && detail.contains(direction) && detail.contains("NTP"), "{detail}");
        second.get("/healthz").await.unwrap().expect(200).unwrap();
        first.get("/readyz").await.unwrap().expect(200).unwrap();
        second.log_in("there").await.unwrap();
    }
    // It notices by itself, too.
    std::fs::write(&shift, "+0").unwrap();
    second.get("/readyz").await.unwrap().expect(200).unwrap();
    let log = there.state_dir().join("server.log");
    let noticed = || std::fs::read_to_string(&log).unwrap().matches("no work is begun until the clocks agree").count();
    let before = noticed();
    std::fs::write(&shift, "+1h").unwrap();
    eventually("the server to notice its clock", SOON, async || Ok((noticed() > before).then_some(()))).await.unwrap();
    // What it is asked for meanwhile is written down, and done when its clock is right.
    let asked = second.begin_create("meanwhile").await.unwrap();
    let still = second.get(&format!("/v1/operations/{asked}?wait=3s")).await.unwrap().expect(200).unwrap();
    assert_eq!((&still["state"], &still["steps"]), (&"pending".into(), &json!([])), "{still:#}");
    // A little is borne.
    std::fs::write(&shift, "+0.5").unwrap();
    second.get("/readyz").await.unwrap().expect(200).unwrap();
    second.wait_success(&asked).await.unwrap();
    second.log_in("meanwhile").await.unwrap();

    there.ok(&["server", "stop"]).await.unwrap();
    std::fs::write(&shift, "+1h").unwrap();
    let refused = there.fails(1, &["server", "start"]).await.unwrap();
    assert!(refused.stderr.contains("s ahead of the database's") && refused.stderr.contains("not started"), "{refused}");
    // Nothing of it is in the way of the one that runs.
    first.create("here-too").await.unwrap();

    std::fs::write(&shift, "+0").unwrap();
    let second = there.serve().await.unwrap();
    eventually("it to be ready", SOON, async || Ok(second.get("/readyz").await?.expect(200).ok())).await.unwrap();
    second.create("after").await.unwrap();
}

//! Instances of every installed version of PostgreSQL, and of the newest one, which is fetched if it isn't installed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde_json::Value;
use toygres_e2e::by_hand::Programs;
use toygres_e2e::{Toygres, place, required_or_skip};

const NEWEST: u64 = 18;

async fn works(toygres: &Toygres, name: &str, version: &str) -> anyhow::Result<()> {
    toygres.ok(&["create", name, "--version", version]).await?;
    let instance = toygres.json(&["get", name]).await?;
    let full = instance["spec"]["postgres_version"].as_str().unwrap_or_default();
    anyhow::ensure!(full == version || full.starts_with(&format!("{version}.")), "not {version}: {instance:#}");
    let mut session = toygres.api()?.log_in(name).await?;
    let (said, checksums): (String, String) =
        sqlx::query_as("SELECT current_setting('server_version'), current_setting('data_checksums')")
            .fetch_one(&mut session)
            .await?;
    anyhow::ensure!(said.starts_with(full), "the server says it is {said}, not {full}");
    anyhow::ensure!(checksums == "on", "checksums are {checksums}");
    Ok(())
}

/// The newest version's builds in the cache, and which folder each is: one that is fetched again is another.
fn fetched_folders() -> anyhow::Result<BTreeMap<PathBuf, u64>> {
    let cache = place::shared_cache();
    let mut folders = BTreeMap::new();
    for entry in cache.exists().then(|| std::fs::read_dir(&cache)).transpose()?.into_iter().flatten() {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&format!("postgresql-{NEWEST}.")) {
            folders.insert(entry.path(), entry.metadata()?.ino());
        }
    }
    Ok(folders)
}

async fn is_gone(toygres: &Toygres, name: &str) -> anyhow::Result<()> {
    toygres.ok(&["delete", name, "--yes"]).await?;
    toygres.expect_nothing_of(name).await
}

#[tokio::test]
async fn every_installed_version_works() {
    let installed: Vec<u16> =
        Programs::all_installed().into_iter().map(|(major, _)| major).filter(|major| (14..=18).contains(major)).collect();
    if installed.is_empty() {
        return required_or_skip("no PostgreSQL is installed on this machine").unwrap();
    }
    let toygres = Toygres::new().unwrap();
    for major in &installed {
        works(&toygres, &format!("demo-{major}"), &major.to_string()).await.unwrap();
    }
    let listed = toygres.json(&["versions"]).await.unwrap();
    for major in &installed {
        let name = format!("demo-{major}");
        let full = toygres.json(&["get", &name]).await.unwrap()["spec"]["postgres_version"].clone();
        let offered = listed.as_array().unwrap().iter().find(|version| version["postgres_version"] == full);
        assert_eq!(offered.map(|version| &version["at_hand"]), Some(&Value::Bool(true)), "{full} in {listed:#}");
        // A full version that is at hand can be named.
        is_gone(&toygres, &name).await.unwrap();
        works(&toygres, &name, full.as_str().unwrap()).await.unwrap();
        is_gone(&toygres, &name).await.unwrap();
    }
    let defaults = listed.as_array().unwrap().iter().filter(|version| version["default"] == true).count();
    assert_eq!(defaults, 1, "{listed:#}");
}

#[tokio::test]
async fn the_newest_version_is_fetched_once_and_works() {
    let toygres = Toygres::new().unwrap().with_shared_cache();
    let offered = toygres.json(&["versions"]).await.unwrap();
    let newest = offered
        .as_array()
        .unwrap()
        .iter()
        .find(|version| version["postgres_version"].as_str().is_some_and(|version| version.starts_with(&NEWEST.to_string())));
    let Some(newest) = newest else {
        return required_or_skip("PostgreSQL 18 is not installed here, and no archive can be reached").unwrap();
    };
    let was_at_hand = newest["at_hand"] == true;
    let create_plain = async |name: &str| {
        toygres.ok(&["create", name]).await.unwrap();
        toygres.json(&["get", name]).await.unwrap()["spec"]["postgres_version"].clone()
    };
    let plain = create_plain("before").await;
    works(&toygres, "first", &NEWEST.to_string()).await.unwrap();
    assert_eq!(create_plain("after").await, plain, "the default changed because somebody fetched another version");
    for name in ["before", "after"] {
        is_gone(&toygres, name).await.unwrap();
    }
    let fetched = fetched_folders().unwrap();
    works(&toygres, "second", &NEWEST.to_string()).await.unwrap();
    assert_eq!(fetched_folders().unwrap(), fetched, "it was fetched again");
    let listed = toygres.json(&["versions"]).await.unwrap();
    let at_hand = listed.as_array().unwrap().iter().any(|version| {
        version["at_hand"] == true && version["postgres_version"].as_str().is_some_and(|version| version.starts_with("18."))
    });
    assert!(at_hand, "fetched before: {was_at_hand}; now {listed:#}");
    // An older one beside it, and both at the end of a server.
    if let Some((oldest, _)) = Programs::all_installed().into_iter().find(|(major, _)| (14..18).contains(major)) {
        works(&toygres, "older", &oldest.to_string()).await.unwrap();
        toygres.ok(&["server", "stop"]).await.unwrap();
        toygres.ok(&["server", "start"]).await.unwrap();
        for name in ["first", "older"] {
            toygres.api().unwrap().log_in(name).await.unwrap();
        }
        is_gone(&toygres, "older").await.unwrap();
    }
    for name in ["first", "second"] {
        is_gone(&toygres, name).await.unwrap();
    }
}

#[tokio::test]
async fn with_no_postgresql_at_all_the_first_create_fetches_one() {
    // A path without PostgreSQL; the system's folders are looked at all the same.
    if Programs::installed().is_some() {
        return required_or_skip_where_installed().unwrap();
    }
    let toygres = Toygres::new().unwrap().with_shared_cache();
    toygres.ok(&["create", "demo"]).await.unwrap();
    toygres.api().unwrap().log_in("demo").await.unwrap();
}

/// Both can't be tested on one machine; `CI` may be either.
fn required_or_skip_where_installed() -> anyhow::Result<()> {
    eprintln!("skipped: PostgreSQL is installed on this machine");
    Ok(())
}

//! What a superuser of an instance does to its files while toygres reads them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;

use anyhow::{Result, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Toygres, eventually, process};

/// Puts something else in a file's place.
type Trick = fn(&Toygres, &Path);

const TRICKS: [(&str, Trick); 6] = [
    ("a link to the token", |toygres, path| symlink(toygres.state_dir().join("token"), path).unwrap()),
    ("a link to an endless file", |_, path| symlink("/dev/zero", path).unwrap()),
    ("a pipe that nobody writes to", |_, path| mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap()),
    ("two gigabytes that take no room", |_, path| std::fs::File::create(path).unwrap().set_len(2 << 30).unwrap()),
    ("a folder", |_, path| std::fs::create_dir(path).unwrap()),
    ("no text", |_, path| std::fs::write(path, [0xff; 3]).unwrap()),
];

/// Everything that a viewer is shown of an instance.
async fn shown(api: &Api, name: &str) -> Result<String> {
    let mut shown = String::new();
    for path in ["", "/why", "/events"] {
        let answer = api.get(&format!("/v1/instances/{name}{path}")).await?;
        shown.push_str(&answer.expect(200)?.to_string());
    }
    Ok(shown)
}

/// Does it with `file` of the data directory while its server is down; the server's memory doesn't grow, it answers all
/// the time, and what is shown has nothing of other files. Afterwards the instance works again.
async fn expect_harmless(toygres: &Toygres, api: &Api, file: &str, (what, trick): (&str, Trick)) -> Result<()> {
    let data = toygres.instance_dir("demo").join("data");
    let (path, kept) = (data.join(file), data.join("kept-by-the-test"));
    let token = std::fs::read_to_string(toygres.state_dir().join("token"))?;
    let server = toygres.server_pid()?;
    let before = process::memory_bytes(server)?;
    let postmaster = toygres.only_postmaster("demo").await?;
    std::fs::rename(&path, &kept)?;
    trick(toygres, &path);
    let owner = std::fs::metadata(&data)?;
    if !path.is_symlink() {
        // It may be replaced already.
        let _ = chown(&path, Some(owner.uid()), Some(owner.gid()));
    }
    process::kill(postmaster).await?;
    for _ in 0..5 {
        let text = shown(api, "demo").await?;
        ensure!(!text.contains(token.trim()), "{what} as {file}: the token is shown: {text}");
        // The data is there.
        ensure!(!text.contains("toygres delete"), "{what} as {file}: a delete is advised: {text}");
    }
    api.get("/healthz").await?.expect(200)?;
    let grown = process::memory_bytes(server)?.saturating_sub(before) >> 20;
    ensure!(grown < 100, "{what} as {file}: the server's memory grew by {grown} MB");
    let log = std::fs::read_to_string(toygres.state_dir().join("server.log"))?;
    ensure!(!log.contains(token.trim()), "{what} as {file}: the token is in the server's log");
    // A process id's file is cleared away by the next start, unless it is a folder.
    let is_folder = std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
    match file {
        _ if is_folder => std::fs::remove_dir(&path)?,
        "PG_VERSION" => std::fs::remove_file(&path)?,
        _ => {}
    }
    match file {
        "PG_VERSION" => std::fs::rename(&kept, &path)?,
        _ => std::fs::remove_file(&kept)?,
    }
    eventually("the instance to work again", 2 * SOON, async || Ok(api.log_in("demo").await.ok())).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_in_the_place_of_the_version_is_neither_read_nor_waited_for() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    for trick in TRICKS {
        expect_harmless(&toygres, &api, "PG_VERSION", trick).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_in_the_place_of_the_process_id_is_neither_read_nor_waited_for() {
    let toygres = Toygres::new().unwrap();
    let api = toygres.serve().await.unwrap();
    api.create("demo").await.unwrap();
    for trick in TRICKS {
        expect_harmless(&toygres, &api, "postmaster.pid", trick).await.unwrap();
    }
}

use std::process::Stdio;

use super::*;

/// Runs a shell's command with these limits: whether it succeeded, and what it said.
async fn run(limits: &Limits, script: &str) -> (bool, String) {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = spawn(limits.clone(), command).unwrap().wait_with_output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).trim().to_owned())
}

fn limits(writes: &Path) -> Limits {
    Limits { bin_dir: "/usr/bin".into(), reads: Vec::new(), writes: vec![writes.to_owned()], port: None, has_unix_sockets: false }
}

#[tokio::test]
async fn a_program_reaches_its_own_folder_and_the_system_s_programs_and_nothing_else() {
    if confinement() == Confinement::None {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let own = root.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(root.path().join("secret"), "a secret").unwrap();
    std::fs::write(own.join("link"), "").unwrap();
    let (limits, root, own) = (limits(&own), root.path().display(), own.display());
    for allowed in [
        format!("echo x > {own}/new && cat {own}/new && mkdir {own}/folder && mv {own}/new {own}/folder/ && rm {own}/folder/new"),
        "ls /usr/bin > /dev/null && cat /etc/passwd".into(),
        "echo x | cat /dev/stdin".into(),
    ] {
        let (ok, said) = run(&limits, &allowed).await;
        assert!(ok, "{allowed}: {said}");
    }
    for refused in [
        format!("cat {root}/secret"),
        format!("ls {root}"),
        format!("echo x > {root}/new"),
        format!("ln -s {root}/secret {own}/symbolic; cat {own}/symbolic"),
        format!("cp /bin/true {own}/program && {own}/program"),
        "ls /dev/shm".into(),
        "ls /tmp".into(),
        "cat /proc/1/cmdline".into(),
        "cat /etc/shadow".into(),
        "ls /root".into(),
    ] {
        let (ok, said) = run(&limits, &refused).await;
        assert!(!ok && said.contains("ermission denied"), "{refused}: {said}");
    }
    // What is started later, without limits, has none of theirs.
    assert!(std::fs::read_to_string(root.to_string() + "/secret").is_ok());
}

#[test]
fn only_an_installation_s_own_folders_are_opened() {
    let home = tempfile::tempdir().unwrap();
    for folder in ["bin", "lib", "share/keyrings", "share/postgresql-18"] {
        std::fs::create_dir_all(home.path().join(folder)).unwrap();
    }
    let found = paths::installation(&home.path().join("bin"));
    assert!(found.contains(&home.path().join("share/postgresql-18")), "{found:?}");
    assert!(!found.contains(&home.path().join("share")) && !found.contains(&home.path().to_owned()), "{found:?}");
    std::fs::write(home.path().join("share/postgres.bki"), "").unwrap();
    assert!(paths::installation(&home.path().join("bin")).contains(&home.path().join("share")));
    assert_eq!(paths::installation(Path::new("/bin")), [PathBuf::from("/bin")]);
}

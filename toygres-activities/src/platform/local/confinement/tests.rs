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
    Limits { bin_dir: "/usr/bin".into(), reads: Vec::new(), writes: vec![writes.to_owned()], port: None }
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

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_landlock_lets_through_is_refused_to_an_instance() {
    if confinement() == Confinement::None {
        return;
    }
    let own = tempfile::tempdir().unwrap();
    std::fs::write(own.path().join("file"), "").unwrap();
    let limits = Limits { port: Some(23_456), ..limits(own.path()) };
    let own = own.path().display();
    for allowed in [
        format!("echo x > {own}/new && mv {own}/new {own}/other && mkdir {own}/folder"),
        "(echo x; true) | cat && /bin/sh -c true".into(),
        "perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0) && socket(T, AF_INET6, SOCK_DGRAM, 17) or die'".into(),
    ] {
        let (ok, said) = run(&limits, &allowed).await;
        assert!(ok, "{allowed}: {said}");
    }
    for refused in [
        format!("chmod 4755 {own}/file"),
        format!("chmod 600 {own}/file"),
        format!("chown 65534 {own}/file"),
        format!("touch -d yesterday {own}/file"),
        format!("mkfifo {own}/pipe"),
        format!("perl -MFcntl -e 'sysopen(F, \"{own}/suid\", O_CREAT | O_WRONLY, 04755) or die $!'"),
        "prlimit --pid 1 --nofile=3:3".into(),
        "renice -n 5 -p 1".into(),
        "unshare --user true".into(),
        "unshare --net true".into(),
        "ipcmk -Q".into(),
        "ipcmk -S 1".into(),
        "perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 262) or die $!'".into(),
        "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) or die $!'".into(),
        "perl -MSocket -e 'socket(S, 40, SOCK_STREAM, 0) or die $!'".into(),
    ] {
        let (ok, said) = run(&limits, &refused).await;
        let is_refusal = ["not permitted", "not supported", "ermission denied"].iter().any(|words| said.contains(words));
        assert!(!ok && is_refusal, "{refused}: {said}");
    }
}

//! What a person sees and types on a terminal.

use toygres_e2e::control::{Moment, hold_up, let_go, wait_held_up};
use toygres_e2e::terminal::Terminal;
use toygres_e2e::{Toygres, process, required_or_skip};

fn skip() -> anyhow::Result<()> {
    required_or_skip("there is no `script` of util-linux to make a terminal with")
}

#[tokio::test]
async fn the_steps_show_as_they_go_and_all_outlives_the_terminal() {
    if !Terminal::is_there() {
        return skip().unwrap();
    }
    let toygres = Toygres::new().unwrap();
    let (code, screen) = Terminal::open(&toygres, &["create", "demo"], &[]).unwrap().end().await.unwrap();
    assert_eq!(code, Some(0), "{screen}");
    for shown in ["\u{1b}[", "server ready", "✓", "deploy-postgres", "update-metadata", "demo is ready", "toygres psql demo"] {
        assert!(screen.contains(shown), "{shown:?} isn't on the screen: {screen:?}");
    }
    // The session that started them is over.
    assert!(process::is_alive(toygres.server_pid().unwrap()), "the server ended with the terminal");
    toygres.only_postmaster("demo").await.unwrap();

    let (code, screen) = Terminal::open(&toygres, &["get", "demo"], &[("NO_COLOR", "1")]).unwrap().end().await.unwrap();
    assert!(code == Some(0) && !screen.contains('\u{1b}'), "colours in spite of NO_COLOR: {screen:?}");
    let (code, screen) = Terminal::open(&toygres, &["get", "demo"], &[]).unwrap().end().await.unwrap();
    assert!(code == Some(0) && screen.contains("\u{1b}[32m"), "no colours on a terminal: {screen:?}");
    for table in ["list", "operations"] {
        let (code, screen) = Terminal::open(&toygres, &[table], &[]).unwrap().end().await.unwrap();
        assert!(code == Some(0) && screen.contains("\u{1b}[38;5;2m") && !screen.contains("\\u{"), "{table}: {screen:?}");
    }
    let (code, screen) = Terminal::open(&toygres, &["-q", "create", "quiet"], &[]).unwrap().end().await.unwrap();
    assert!(code == Some(0) && !screen.contains("deploy-postgres") && screen.lines().count() <= 1, "{screen:?}");
}

#[tokio::test]
async fn a_delete_tells_what_will_be_lost_and_wants_the_name() {
    if !Terminal::is_there() {
        return skip().unwrap();
    }
    let toygres = Toygres::new().unwrap();
    toygres.ok(&["create", "demo", "--storage", "7"]).await.unwrap();
    for (typed, expected) in [("dem\n", Some(1)), ("\n", Some(1)), ("yes\n", Some(1)), ("demo\n", Some(0))] {
        let mut terminal = Terminal::open(&toygres, &["delete", "demo"], &[]).unwrap();
        terminal.wait_for("to delete it").await.unwrap();
        toygres.only_postmaster("demo").await.unwrap();
        terminal.press(typed).await.unwrap();
        let (code, screen) = terminal.end().await.unwrap();
        assert_eq!(code, expected, "{typed:?}: {screen}");
        for told in ["demo", "default", "PostgreSQL", "7 GB", "gone for good"] {
            assert!(screen.contains(told), "{told:?} isn't told: {screen}");
        }
        assert!(expected == Some(0) || screen.contains("nothing was deleted"), "{screen}");
    }
    toygres.expect_nothing_of("demo").await.unwrap();

    // Ctrl-C at the question deletes nothing.
    toygres.ok(&["create", "demo"]).await.unwrap();
    let mut terminal = Terminal::open(&toygres, &["delete", "demo"], &[]).unwrap();
    terminal.wait_for("to delete it").await.unwrap();
    terminal.press("\u{3}").await.unwrap();
    assert_ne!(terminal.end().await.unwrap().0, Some(0));
    toygres.only_postmaster("demo").await.unwrap();
}

#[tokio::test]
async fn a_password_that_is_typed_is_not_shown() {
    if !Terminal::is_there() {
        return skip().unwrap();
    }
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    let mut terminal = Terminal::open(&toygres, &["create", "demo", "--password-stdin"], &[]).unwrap();
    terminal.wait_for("assword").await.unwrap();
    terminal.press("typed-by-hand\n").await.unwrap();
    let (code, screen) = terminal.end().await.unwrap();
    assert!(code == Some(0) && !screen.contains("typed-by-hand"), "{screen:?}");
    assert!(toygres.api().unwrap().uri("demo").await.unwrap().contains(":typed-by-hand@"));
    toygres.api().unwrap().log_in("demo").await.unwrap();
}

#[tokio::test]
async fn ctrl_c_on_a_terminal_reaches_the_command_only() {
    if !Terminal::is_there() {
        return skip().unwrap();
    }
    let toygres = Toygres::new().unwrap();
    toygres.serve().await.unwrap();
    let control = toygres.control().await.unwrap();
    hold_up(&control, "demo", "wait-for-ready", Moment::Begin).await.unwrap();
    let mut terminal = Terminal::open(&toygres, &["create", "demo"], &[]).unwrap();
    wait_held_up(&control, 1).await.unwrap();
    terminal.wait_for("deploy-postgres").await.unwrap();
    terminal.press("\u{3}").await.unwrap();
    let (code, screen) = terminal.end().await.unwrap();
    assert!(code == Some(1) && screen.contains("toygres operations watch"), "{code:?}: {screen:?}");
    let_go(&control).await.unwrap();
    let operations = toygres.json(&["operations", "demo"]).await.unwrap();
    toygres.api().unwrap().wait_success(operations[0]["id"].as_str().unwrap()).await.unwrap();
    toygres.only_postmaster("demo").await.unwrap();
}

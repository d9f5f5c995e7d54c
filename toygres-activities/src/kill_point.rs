//! Named places at which tests have the process killed.

/// Ends this process as `kill -9` does, if it is a debug build's and `TOYGRES_KILL_AT` names this place. In a
/// release build it does nothing.
pub fn kill_point(name: &str) {
    if cfg!(debug_assertions) && std::env::var_os("TOYGRES_KILL_AT").is_some_and(|place| place == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal comes at the latest on the way back from the next system call.
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

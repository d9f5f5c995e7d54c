//! Secrets from standard input: piped, or typed without being shown.

use std::io::{self, IsTerminal, Read};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::error::CliError;
use crate::output::ui::ask;

/// Reads `what` from standard input without its line's end; of a terminal, one line. If there is more
/// than `max_length` bytes, that is seen by the result's length.
pub async fn read(what: &str, max_length: usize) -> Result<String, CliError> {
    let unreadable = |error| CliError::failed(format!("the {what} can't be read from standard input: {error}"));
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    if stdin.is_terminal() {
        let hidden = HiddenInput::begin().map_err(unreadable)?;
        let typed = ask(format_args!("The {what} (it isn't shown): ")).await;
        drop(hidden);
        bytes = typed?.into_bytes();
    } else {
        // Enough to see that it is too long, however much is to come.
        let most = max_length as u64 + 3;
        stdin.lock().take(most).read_to_end(&mut bytes).map_err(unreadable)?;
    }
    text_of(what, bytes)
}

/// One line's end is how `echo` and editors finish a text; it isn't the secret's.
fn text_of(what: &str, mut bytes: Vec<u8>) -> Result<String, CliError> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    // The error of a failed conversion would hold the bytes.
    String::from_utf8(bytes).map_err(|_| CliError::usage(format!("the {what} on standard input is not valid UTF-8")))
}

/// While it lives, the terminal shows nothing of what is typed but the line's end.
struct HiddenInput {
    before: Termios,
}

impl HiddenInput {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
        Ok(Self { before })
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        // Where that fails the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_keeps_everything_but_one_line_end() {
        for (typed, secret) in
            [("p@:/?#%'\"\\ $", "p@:/?#%'\"\\ $"), ("a \n", "a "), ("a\r\n", "a"), (" ", " "), ("a\n\n", "a\n")]
        {
            assert_eq!(text_of("password", typed.into()).unwrap(), secret);
        }
        assert_eq!(text_of("password", vec![0xff]).unwrap_err().exit_status, 2);
    }
}

//! Where words go: results to standard output, the rest to standard error, colours only where a
//! person looks.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::interrupt::interrupted;
use crate::error::CliError;
use crate::settings::OutputFormat;

/// How this run of the program speaks.
#[derive(Debug, Clone)]
pub struct Ui {
    /// How results are printed.
    pub format: OutputFormat,
    /// Whether nothing but the result is printed.
    pub quiet: bool,
    /// Whether someone watches standard error, so that a line may be drawn again and again.
    pub live: bool,
    /// Colours for standard output.
    pub out: Style,
    /// Colours for standard error.
    pub err: Style,
}

impl Ui {
    /// Looks at where the output goes.
    pub fn new(format: OutputFormat, quiet: bool) -> Self {
        let live = io::stderr().is_terminal() && !terminal_is_dumb();
        Self { format, quiet, live, out: Style::of(&io::stdout()), err: Style::of(&io::stderr()) }
    }

    /// Whether a person reads the results, and not a program.
    pub fn is_for_people(&self) -> bool {
        self.format == OutputFormat::Table
    }

    /// Prints a result.
    pub fn print(&self, text: impl Display) -> Result<(), CliError> {
        write_stdout(format!("{text}\n").as_bytes())
    }

    /// Prints one of the API's records as it is, in JSON or YAML.
    pub fn print_record(&self, record: &impl Serialize) -> Result<(), CliError> {
        match self.format {
            OutputFormat::Yaml => self.print(serde_saphyr::to_string(record).map_err(unprintable)?.trim_end()),
            OutputFormat::Json | OutputFormat::Table => self.print_json(record),
        }
    }

    /// Prints one of the API's records as it is, in JSON.
    pub fn print_json(&self, record: &impl Serialize) -> Result<(), CliError> {
        self.print(serde_json::to_string_pretty(record).map_err(unprintable)?)
    }

    /// Tells what goes on, unless quiet was asked for.
    pub fn note(&self, text: impl Display) {
        if !self.quiet {
            write_stderr(format!("{text}\n").as_bytes());
        }
    }

    /// Ends the line on which the terminal showed `^C`.
    pub fn end_line(&self) {
        if self.live {
            write_stderr(b"\n");
        }
    }

    /// Tells what should be looked at some time, unless quiet was asked for.
    pub fn warn(&self, text: impl Display) {
        self.note(format_args!("{} {text}", self.err.yellow("warning:")));
    }
}

fn unprintable(error: impl Display) -> CliError {
    CliError::failed(format!("the answer can't be printed: {error}"))
}

/// Prints an error, even when quiet was asked for.
pub fn print_error(error: &CliError) {
    let style = Style::of(&io::stderr());
    let mut text = format!("{} {}\n", style.red("error:"), error.message);
    for line in &error.evidence {
        text.push_str(&format!("  {} {line}\n", style.dim("|")));
    }
    for hint in &error.hints {
        text.push_str(&format!("{} {hint}\n", style.cyan("hint:")));
    }
    write_stderr(text.as_bytes());
}

/// Writes to standard output. That nobody reads on (`toygres list | head -1`) is no failure.
pub fn write_stdout(bytes: &[u8]) -> Result<(), CliError> {
    write_to_reader(bytes).map(|_| ())
}

/// Empties the terminal that standard output is.
pub fn clear_screen() {
    let mut stdout = io::stdout().lock();
    // Where it can't be written to, the next result says so.
    let _ = stdout.write_all(b"\x1b[H\x1b[2J");
}

/// Writes to standard output. `false` if nobody reads on.
pub fn write_to_reader(bytes: &[u8]) -> Result<bool, CliError> {
    let mut stdout = io::stdout().lock();
    let bytes = for_reader(bytes, stdout.is_terminal());
    match stdout.write_all(&bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError::failed(format!("the result can't be written: {error}"))),
    }
}

fn write_stderr(bytes: &[u8]) {
    let mut stderr = io::stderr().lock();
    let bytes = for_reader(bytes, stderr.is_terminal());
    // Where standard error can't be written to, there is nobody left to tell.
    let _ = stderr.write_all(&bytes);
}

/// What a terminal would take for a command is shown to it as text: a server's log or an answer of the API may hold what
/// somebody wrote there for it. Anything else gets what there is.
fn for_reader(bytes: &[u8], is_terminal: bool) -> Cow<'_, [u8]> {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_terminal => Cow::Owned(harmless(text).into_bytes()),
        _ => Cow::Borrowed(bytes),
    }
}

/// The text, with everything that a terminal acts upon escaped, but for line breaks, tabs and our own colours.
pub fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if let Some(code) =
            CODES.iter().find_map(|code| rest.strip_prefix("\x1b[")?.strip_prefix(code)?.strip_prefix('m').map(|_| code))
        {
            let (own, after) = rest.split_at(code.len() + 3);
            harmless.push_str(own);
            rest = after;
            continue;
        }
        let acts = next.is_control() && !matches!(next, '\n' | '\t');
        // Marks that change in which order the rest of the line is read.
        let turns = matches!(next, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if acts || turns {
            harmless.extend(next.escape_unicode());
        } else {
            harmless.push(next);
        }
        rest = &rest[next.len_utf8()..];
    }
    harmless
}

/// Asks a person for a line. Ctrl-C calls it off.
pub async fn ask(question: impl Display) -> Result<String, CliError> {
    write_stderr(question.to_string().as_bytes());
    let read = || {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    };
    let line = tokio::select! {
        line = tokio::task::spawn_blocking(read) => line.map_err(io::Error::other).flatten(),
        () = interrupted() => {
            write_stderr(b"\n");
            return Err(CliError::failed("interrupted; nothing was changed"));
        }
    };
    line.map_err(|error| CliError::failed(format!("the answer can't be read: {error}")))
}

fn terminal_is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term == "dumb")
}

/// The codes of our own colours and emphasis, and of their end.
const CODES: [&str; 12] = ["0", "1", "2", "31", "32", "33", "36", "39", "38;5;1", "38;5;2", "38;5;3", "38;5;8"];

/// Colours and emphasis, or none.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Whether there are any.
    pub is_on: bool,
}

impl Style {
    fn of(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { is_on: stream.is_terminal() && !refused && !terminal_is_dumb() }
    }

    fn paint(self, code: &str, text: impl Display) -> String {
        let text = text.to_string();
        if self.is_on && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text }
    }

    /// What stands out.
    pub fn bold(self, text: impl Display) -> String {
        self.paint("1", text)
    }

    /// What stands back.
    pub fn dim(self, text: impl Display) -> String {
        self.paint("2", text)
    }

    /// What went wrong.
    pub fn red(self, text: impl Display) -> String {
        self.paint("31", text)
    }

    /// What went well.
    pub fn green(self, text: impl Display) -> String {
        self.paint("32", text)
    }

    /// What isn't as it should be.
    pub fn yellow(self, text: impl Display) -> String {
        self.paint("33", text)
    }

    /// What may be typed, or helps.
    pub fn cyan(self, text: impl Display) -> String {
        self.paint("36", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_given_no_commands_but_our_own_colours() {
        let style = Style { is_on: true };
        for own in [style.bold("a"), style.dim("b"), style.red("c"), style.green("d"), style.yellow("e"), style.cyan("f")] {
            assert_eq!(harmless(&own), own);
        }
        assert_eq!(harmless("two\tlines\nüber 🐘"), "two\tlines\nüber 🐘");
        for (attack, shown) in [
            ("\x1b]0;OWNED\x07", "\\u{1b}]0;OWNED\\u{7}"),
            ("\x1b[2J", "\\u{1b}[2J"),
            ("\x1b[31;5m", "\\u{1b}[31;5m"),
            ("\u{9b}2J", "\\u{9b}2J"),
            ("a\rb\x08", "a\\u{d}b\\u{8}"),
            ("\u{202e}evil", "\\u{202e}evil"),
        ] {
            assert_eq!(harmless(attack), shown);
        }
    }
}

//! The program `toygres`.

use std::process::ExitCode;

fn main() -> ExitCode {
    toygres_server::cli::main()
}

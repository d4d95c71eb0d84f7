//! The one binary: agent, engine, replica, and the operator's commands.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast::cli::run()
}

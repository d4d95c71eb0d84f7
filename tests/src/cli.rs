//! The command line under test: run, judged by its exit code, its output as JSON.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Finished, Running, holdfast};

/// How long a command may take; waits inside commands have deadlines of their own below this.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// What `holdfast ...` gave.
#[derive(Debug, Clone)]
pub struct CliOutput(pub Finished);

impl CliOutput {
    /// This, where it exited with `code`.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.0.code == Some(code), "expected exit code {code}: {}", self.0);
        self
    }
    /// Standard output as JSON, where it exited with 0.
    ///
    /// # Panics
    /// When it did not, or the output is no JSON.
    #[track_caller]
    #[must_use]
    pub fn json(self) -> Value {
        let this = self.expect_code(0);
        serde_json::from_str(&this.0.stdout).unwrap_or_else(|e| panic!("expected JSON ({e}): {}", this.0))
    }
    /// Both outputs.
    #[must_use]
    pub fn said(&self) -> String {
        format!("{}{}", self.0.stdout, self.0.stderr)
    }
}

/// `holdfast` with nothing of the caller's environment that could change what it does.
#[must_use]
pub fn command(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for variable in ["HOLDFAST_AGENT", "RUST_LOG", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(variable);
    }
    command.env("NO_COLOR", "1");
    command
}

/// `holdfast ARGS`, started.
#[must_use]
pub fn start(args: &[&str]) -> Running {
    let mut command = command(&holdfast());
    command.args(args);
    Running::start(command)
}

/// `holdfast ARGS`, run to its end.
#[must_use]
pub fn run(args: &[&str]) -> CliOutput {
    CliOutput(start(args).finish(DEADLINE))
}

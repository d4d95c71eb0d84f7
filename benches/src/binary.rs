//! The program that is measured: the `holdfast` beside the runner.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The directory of this program: `target/PROFILE`.
///
/// # Errors
/// When the system does not tell.
pub fn profile_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("failed to find this program")?;
    Ok(program.parent().context("failed to find this program's directory")?.to_owned())
}

/// The `holdfast` beside this program. Where cargo runs this, it is built first: a stale binary would be measured
/// without anybody noticing.
///
/// # Errors
/// When it cannot be built.
pub fn built_holdfast() -> Result<PathBuf> {
    let dir = profile_dir()?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--locked", "--quiet", "-p", "holdfast"]);
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        if dir.file_name().is_some_and(|profile| profile == "release") {
            build.arg("--release");
        } else {
            eprintln!("warning: this is not a release build; its figures mean nothing");
        }
        let status = build.status().context("failed to start cargo")?;
        if !status.success() {
            bail!("failed to build holdfast ({status})");
        }
    }
    Ok(dir.join("holdfast"))
}

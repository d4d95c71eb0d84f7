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

/// Where results go unless it is said: beside what cargo builds, or, where this program is installed elsewhere, in the
/// directory in which it is called.
///
/// # Errors
/// When the system does not tell.
pub fn results_dir() -> Result<PathBuf> {
    let dir = profile_dir()?;
    let built = dir.file_name().is_some_and(|name| name == "release" || name == "debug");
    Ok(match dir.parent() {
        Some(target) if built => target.join("bench-results"),
        Some(_) | None => std::env::current_dir()?.join("bench-results"),
    })
}

/// Refuses, with the packages to install, where a program is not there.
///
/// # Errors
/// Naming program and package.
pub fn require(programs: &[(&str, &str)]) -> Result<()> {
    let missing = missing(programs);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    bail!(
        "{} not found: apt-get install -y --no-install-recommends {}",
        names.join(", "),
        packages.join(" ")
    );
}

/// Those of the programs that no directory of `PATH` has.
#[must_use]
pub fn missing<'a>(programs: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    programs.iter().copied().filter(|(program, _)| !is_there(program)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        assert!(require(&[("sh", "dash")]).is_ok());
        let error = require(&[("sh", "dash"), ("no-such-program", "its-package")]).unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("its-package"), "{error}");
        assert!(!error.contains("dash"), "{error}");
    }
}

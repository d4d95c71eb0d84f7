//! What a person brings: a volume or device of their own, and what lies under it.
//!
//! A benchmark that writes destroys what is there. Nothing is written where that was not said to be wanted, and a block
//! device that is in use is refused even then.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::OFlag;

use crate::case::Case;
use crate::cpu::Accounted;
use crate::process;

/// Smaller is no benchmark, and fio's jobs count in MiB.
const SIZE_MIB_MIN: u64 = 4;

/// Where a job can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// An NBD server, by its URI.
    Nbd(String),
    /// A block device or a regular file.
    Path(PathBuf),
}

impl Place {
    /// From what a person typed.
    ///
    /// # Errors
    /// When it is a URI of something else.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some((scheme, _))
                if scheme == "nbd" || scheme.starts_with("nbd+") || scheme.starts_with("nbds") =>
            {
                Ok(Self::Nbd(text.to_owned()))
            }
            Some((scheme, _)) => {
                Err(format!("expected nbd://, nbd+unix:// or a path, found a URI of scheme {scheme}"))
            }
            None => Ok(Self::Path(PathBuf::from(text))),
        }
    }

    /// Its size in whole MiB.
    fn size_mib(&self) -> Result<u64> {
        let bytes = match self {
            Self::Nbd(uri) => {
                let said = process::output(Command::new("nbdinfo").args(["--size", uri]))
                    .context("failed to ask for the size (nbdinfo is in the package libnbd-bin)")?;
                said.trim()
                    .parse::<u64>()
                    .with_context(|| format!("failed to understand a size of {said:?}"))?
            }
            Self::Path(path) => {
                let mut file =
                    File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
                file.seek(SeekFrom::End(0)).with_context(|| format!("failed to size {}", path.display()))?
            }
        };
        let mib = bytes >> 20;
        ensure!(mib >= SIZE_MIB_MIN, "{self} has {bytes} bytes; at least {SIZE_MIB_MIN} MiB are needed");
        Ok(mib)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nbd(uri) => f.write_str(uri),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What a person asked to be measured.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// A volume.
    pub target: Option<Place>,
    /// What it is compared with, run through the page cache and with `O_DIRECT`.
    pub bare: Option<PathBuf>,
    /// The file to compare with did not exist: it is ours to write.
    pub bare_is_ours: bool,
    /// What is there may be lost.
    pub overwrite: bool,
    /// The processes that serve the target.
    pub processes: Vec<Accounted>,
}

impl Own {
    /// Whether there is anything.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.target.is_some() || self.bare.is_some()
    }

    /// How much of each can be used, of `wanted_mib`; a file that does not exist yet is made, and named so that it can be
    /// removed in the end.
    ///
    /// # Errors
    /// When `cases` would destroy what was not said to be lost, or something is not there, too small or in use.
    pub fn prepare(&mut self, cases: &[Case], wanted_mib: u64) -> Result<(u64, Option<Made>)> {
        let writing = cases.iter().find(|case| case.writes());
        let mut size_mib = wanted_mib;
        let mut made = None;
        if let Some(target) = &self.target {
            self.may_write(&target.to_string(), writing)?;
            if let Place::Path(path) = target {
                check(path)?;
            }
            size_mib = size_mib.min(target.size_mib()?);
        }
        if let Some(path) = &self.bare {
            if path.exists() {
                self.may_write(&path.display().to_string(), writing)?;
                check(path)?;
            } else {
                made = Some(Made::sparse(path, size_mib)?);
                self.bare_is_ours = true;
            }
            size_mib = size_mib.min(Place::Path(path.clone()).size_mib()?);
        }
        if size_mib < wanted_mib && self.is_any() {
            eprintln!("using {size_mib} MiB of each, the size of the smallest");
        }
        Ok((size_mib, made))
    }

    fn may_write(&self, place: &str, writing: Option<&Case>) -> Result<()> {
        match writing {
            Some(case) if !self.overwrite => bail!(
                "{} writes to {place} and destroys what is there: allow it with --overwrite-data, or choose cases that \
                 read, with --only randread,seqread",
                case.name
            ),
            Some(_) | None => Ok(()),
        }
    }
}

/// A file of ours in a person's directory; it goes when this does.
#[derive(Debug)]
pub struct Made(PathBuf);

impl Made {
    fn sparse(path: &Path, size_mib: u64) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.with_context(|| format!("failed to create {}", path.display()))?;
        let made = Self(path.to_owned());
        file.set_len(size_mib << 20).with_context(|| format!("failed to size {}", path.display()))?;
        Ok(made)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("failed to remove {}: {error}", self.0.display());
        }
    }
}

/// A block device that nobody uses, or a regular file.
fn check(path: &Path) -> Result<()> {
    let kind = path.metadata().with_context(|| format!("failed to look at {}", path.display()))?.file_type();
    ensure!(!kind.is_dir(), "{0} is a directory: name a file in it, such as {0}/bench.img", path.display());
    ensure!(
        kind.is_file() || kind.is_block_device(),
        "{} is neither a block device nor a regular file",
        path.display()
    );
    if kind.is_block_device() {
        // Without O_CREAT it means: nobody has mounted it or uses it otherwise.
        let exclusively = OpenOptions::new().read(true).custom_flags(OFlag::O_EXCL.bits()).open(path);
        exclusively.with_context(|| {
            format!(
                "failed to open {} for this alone; is it mounted, or part of another device?",
                path.display()
            )
        })?;
    }
    Ok(())
}

/// `ROLE=PID`, as a person types it.
///
/// # Errors
/// When it is something else.
pub fn parse_process(text: &str) -> Result<Accounted, String> {
    let parsed = text.split_once('=').and_then(|(role, pid)| Some((role, pid.parse().ok()?)));
    match parsed {
        Some((role, pid)) if !role.is_empty() && pid > 0 => Ok(Accounted { role: role.to_owned(), pid }),
        Some(_) | None => Err(format!("expected ROLE=PID, such as engine=4711, found {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CASES;

    fn own(target: Option<&Path>, bare: Option<&Path>, overwrite: bool) -> Own {
        Own {
            target: target.map(|path| Place::Path(path.to_owned())),
            bare: bare.map(Path::to_owned),
            overwrite,
            ..Own::default()
        }
    }

    #[test]
    fn places_are_uris_of_nbd_or_paths() {
        assert_eq!(Place::parse("/dev/nbd0"), Ok(Place::Path("/dev/nbd0".into())));
        for uri in ["nbd+unix:///v?socket=/s", "nbd://host:10809/v"] {
            assert_eq!(Place::parse(uri), Ok(Place::Nbd(uri.to_owned())));
        }
        assert!(Place::parse("http://x").unwrap_err().contains("http"));
    }

    #[test]
    fn nothing_is_written_where_that_was_not_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk.img");
        std::fs::write(&file, vec![7; 5 << 20]).unwrap();
        for mut mine in [own(Some(&file), None, false), own(None, Some(&file), false)] {
            let error = mine.prepare(&CASES, 1024).unwrap_err().to_string();
            assert!(error.contains("--overwrite-data") && error.contains("disk.img"), "{error}");
            let reads: Vec<Case> = CASES.into_iter().filter(|case| !case.writes()).collect();
            assert_eq!(mine.prepare(&reads, 1024).unwrap().0, 5, "as large as the smallest");
        }
        assert_eq!(own(Some(&file), None, true).prepare(&CASES, 4).unwrap().0, 4);
    }

    #[test]
    fn a_file_that_was_made_is_taken_away_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new.img");
        let made = own(None, Some(&file), false).prepare(&CASES, 8).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8 << 20);
        drop(made);
        assert!(!file.exists());
    }

    #[test]
    fn what_is_no_place_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let refused =
            |path: &Path| format!("{:#}", own(Some(path), None, true).prepare(&CASES, 8).unwrap_err());
        assert!(refused(dir.path()).contains("bench.img"));
        assert!(refused(Path::new("/dev/null")).contains("neither"));
        assert!(refused(&dir.path().join("absent")).contains("absent"));
        let small = dir.path().join("small");
        std::fs::write(&small, "x").unwrap();
        assert!(refused(&small).contains("4 MiB"));
    }

    #[test]
    fn processes_are_named() {
        assert_eq!(parse_process("engine=12"), Ok(Accounted { role: "engine".to_owned(), pid: 12 }));
        for wrong in ["12", "=12", "engine=", "engine=-3", "engine=x"] {
            assert!(parse_process(wrong).is_err(), "{wrong}");
        }
    }
}
